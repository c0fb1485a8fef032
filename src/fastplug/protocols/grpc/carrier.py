"""The broker's carrier without multiplexing: a listener of its own for each number, announced by its address."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from fastplug.errors import BrokerTimeout, Closed
from fastplug.net.dial import dial
from fastplug.protocols.grpc.broker import Listening
from fastplug.protocols.grpc.channel import ByteStream
from fastplug.protocols.grpc.messages import ConnInfo
from fastplug.protocols.grpc.stream import SocketStream

__all__ = ["AnnouncedSockets", "Announcements", "Socketlike", "Translator"]

# Announcements of a peer that nobody has dialled yet. go-plugin has no limit, and its users a handful.
ANNOUNCED_MAX = 1024


class Socketlike(Protocol):
    """What net/listener.py makes."""

    network: str
    address: str

    def accept(self) -> Any: ...
    def close(self) -> None: ...


class Translator(Protocol):
    """Addresses of a plugin that lives in another world than its host (go-plugin: runner.AddrTranslator)."""

    def plugin_to_host(self, network: str, address: str, /) -> tuple[str, str]: ...
    def host_to_plugin(self, network: str, address: str, /) -> tuple[str, str]: ...


class Announcements:
    """What the peer has announced: the first of each number counts, for ``keep_s`` seconds, and is taken once. Pure; the time is given."""

    def __init__(self, keep_s: float) -> None:
        self._keep_s = keep_s
        self._infos: dict[int, tuple[Any, float]] = {}

    def put(self, info: Any, now: float) -> bool:
        """Returns whether it was kept: not if its number waits already, or too many do."""
        self._expire(now)
        if info.service_id in self._infos or len(self._infos) >= ANNOUNCED_MAX:
            return False
        self._infos[info.service_id] = (info, now + self._keep_s)
        return True

    def take(self, service_id: int, now: float) -> Any | None:
        """The announcement of ``service_id``, and forgets it."""
        self._expire(now)
        found = self._infos.pop(service_id, None)
        return None if found is None else found[0]

    def _expire(self, now: float) -> None:
        for service_id in [key for key, (_, until) in self._infos.items() if until <= now]:
            del self._infos[service_id]


class AnnouncedSockets:
    """Carrier over fresh sockets. ``listen`` makes one by the rules of the main one; ``connect_timeout_s`` bounds the connect of a dial."""

    tls_inside = False

    def __init__(
        self,
        send: Callable[[Any], None],
        listen: Callable[[], Socketlike],
        *,
        keep_s: float,
        connect_timeout_s: float,
        translator: Translator | None = None,
    ) -> None:
        self._send = send
        self._listen = listen
        self._translator = translator
        self._connect_timeout_s = connect_timeout_s
        self._announced = Announcements(keep_s)
        self._changed = threading.Condition()
        self._closed = False

    def listen(self, service_id: int) -> Listening:
        made = self._listen()
        try:
            network, address = made.network, made.address
            if self._translator is not None:
                network, address = self._translator.host_to_plugin(network, address)
            self._send(ConnInfo(service_id=service_id, network=network, address=address))
        except BaseException:
            made.close()
            raise
        return _Accepting(made)

    def received(self, info: Any) -> None:
        with self._changed:
            self._announced.put(info, time.monotonic())
            self._changed.notify_all()

    def dial(self, service_id: int, timeout_s: float) -> ByteStream:
        info = self._wait(service_id, timeout_s)
        network, address = info.network, info.address
        if self._translator is not None:
            network, address = self._translator.plugin_to_host(network, address)
        return SocketStream(dial(network, address, timeout_s=self._connect_timeout_s))

    def _wait(self, service_id: int, timeout_s: float) -> Any:
        until = time.monotonic() + timeout_s
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                info = self._announced.take(service_id, now)
                if info is not None:
                    return info
                if now >= until:
                    raise BrokerTimeout(
                        f"timeout waiting for connection info: the peer announced nothing under id {service_id} within {timeout_s:g} s. "
                        f"It has to accept under {service_id} at about the time of the dial, and an id is good for one of each.",
                        service_id=service_id,
                    )
                self._changed.wait(until - now)
        raise Closed("the broker is closed: the plugin, or the connection to it, has ended")

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class _Accepting:
    """A listener as Listening."""

    def __init__(self, listener: Socketlike) -> None:
        self._listener = listener

    def accept(self) -> ByteStream | None:
        connected = self._listener.accept()
        return None if connected is None else SocketStream(connected)

    def close(self) -> None:
        self._listener.close()
