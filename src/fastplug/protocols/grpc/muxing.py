"""The broker's carrier with multiplexing: every connection is a yamux stream of the one socket between host and plugin.

A yamux stream has no name, so the dialling side knocks first: over the broker's stream it says which number its next stream is for, and
waits for the answer. Only one side's one dial is under way at a time, and the peer's next stream is the one that was announced. The main
connection is the host's first stream; it, and whatever else comes unannounced, goes to the plugin's own server.
"""

from __future__ import annotations

import collections
import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

from fastplug.errors import BrokerTimeout, Closed, HandshakeError, TlsRefused
from fastplug.net.relay import Joint, MuxSession
from fastplug.protocols.grpc.broker import Listening
from fastplug.protocols.grpc.channel import ByteStream
from fastplug.protocols.grpc.messages import ConnInfo
from fastplug.protocols.grpc.stream import SocketStream

__all__ = ["Doors", "MultiplexedStreams", "opened"]

# Knocks of a peer at numbers that nobody listens for yet. An honest one has a single knock under way.
KNOCKS_MAX = 1024
# Streams of a peer for one number that nobody has taken yet.
WAITING_MAX = 256

_CLOSED = "the broker is closed: the plugin, or the connection to it, has ended"
_log = logging.getLogger("fastplug.grpc")


class Doors:
    """Which number the peer's next stream is for. Pure; the time is given.

    A knock at a number that nobody listens for yet waits ``keep_s`` seconds, as its sender does. One that was answered, and whose stream
    never came, is forgotten after as long: it must not take a stream that was meant for somebody else.
    """

    def __init__(self, keep_s: float) -> None:
        self._keep_s = keep_s
        self._listening: set[int] = set()
        self._left: dict[int, None] = {}  # numbers that were listened for, the last ones
        self._knocks: dict[int, float] = {}  # number -> until when
        self._next: collections.deque[tuple[int, float]] = collections.deque()  # answered, in the order of the streams to come

    def listen(self, service_id: int, now: float) -> bool:
        """Somebody listens for the number from now on. Whether a knock at it is to be answered."""
        self._listening.add(service_id)
        self._left.pop(service_id, None)
        until = self._knocks.pop(service_id, 0.0)
        return until > now and self._answer(service_id, now)

    def leave(self, service_id: int) -> None:
        """Nobody listens for it any more."""
        self._listening.discard(service_id)
        self._left[service_id] = None
        if len(self._left) > KNOCKS_MAX:
            del self._left[next(iter(self._left))]

    def knock(self, service_id: int, now: float) -> bool | None:
        """The peer knocks: True for an answer now, False for one that it has to wait for, None to refuse it."""
        if service_id in self._listening:
            return self._answer(service_id, now)
        if service_id in self._left:
            return None
        self._knocks = {key: until for key, until in self._knocks.items() if until > now}
        if len(self._knocks) < KNOCKS_MAX:
            self._knocks[service_id] = now + self._keep_s
        return False

    def _answer(self, service_id: int, now: float) -> bool:
        self._expire(now)
        if len(self._next) >= KNOCKS_MAX:
            return False
        self._next.append((service_id, now + self._keep_s))
        return True

    def incoming(self, now: float) -> int | None:
        """The peer opened a stream: its number, None for one that was not announced."""
        self._expire(now)
        return self._next.popleft()[0] if self._next else None

    def _expire(self, now: float) -> None:
        while self._next and self._next[0][1] <= now:
            self._next.popleft()


def opened(joint: Joint, timeout_s: float, what: str) -> ByteStream:
    """The stream of a joint that both sides have accepted. Raises HandshakeError (TlsRefused), BrokerTimeout; the joint is closed then."""
    assert joint.socket is not None
    try:
        joint.ready.result(timeout_s)
    except BaseException as error:
        joint.close()
        if isinstance(error, TlsRefused):
            raise TlsRefused(f"{what}: {error}") from error
        if isinstance(error, FutureTimeoutError):
            raise HandshakeError(
                f"{what}: the peer said nothing for {timeout_s:g} s after the TLS handshake; it hangs, or refused it"
            ) from error
        if isinstance(error, Closed):
            raise HandshakeError(f"{what}: {error}") from error
        raise
    return SocketStream(joint.socket)


class MultiplexedStreams:
    """Carrier over the streams of a session, which `use` gives it.

    Args:
        send: posts one ConnInfo to the peer.
        keep_s: how long a knock waits for its listener, or an answered one for its stream.
        unannounced: gets a stream that came without a knock, on the thread that routes; None closes it.
    """

    tls_inside = True

    def __init__(
        self, send: Callable[[Any], None], *, keep_s: float, unannounced: Callable[[ByteStream, Joint], object] | None = None
    ) -> None:
        self._send = send
        self._unannounced = unannounced
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._doors = Doors(keep_s)
        self._listening: dict[int, _Door] = {}
        self._session: MuxSession | None = None
        self._dialling = threading.Lock()  # one knock at a time, or the peer could not tell whose the next stream is
        self._asked: int | None = None  # the number that was knocked at
        self._answer: Any = None
        self._closed = False

    # -- streams of the peer

    def route(self, session: MuxSession) -> None:
        """Uses ``session``, and gives each stream of the peer's to whom it is for, until the session ends."""
        with self._changed:
            self._session = session
            self._changed.notify_all()
        while (joint := session.accept()) is not None:
            try:
                self._take(joint)
            except Exception:  # noqa: BLE001  one connection that fails must not end the others
                _log.exception("a stream of the peer's could not be taken")
                joint.close()

    def _take(self, joint: Joint) -> None:
        assert joint.socket is not None
        with self._lock:
            service_id = self._doors.incoming(time.monotonic())
            door = None if service_id is None else self._listening.get(service_id)
        what = "an unannounced stream" if service_id is None else f"the brokered connection {service_id}"
        joint.ready.add_done_callback(lambda ready: self._tell(what, ready.exception()))
        if door is not None:
            door.put(joint)
        elif service_id is None and self._unannounced is not None:
            self._unannounced(SocketStream(joint.socket), joint)
        else:
            _log.warning("%s is closed: nobody listens for it", what)
            joint.close()

    @staticmethod
    def _tell(what: str, error: BaseException | None) -> None:
        if isinstance(error, TlsRefused):
            _log.error("%s: %s", what, error)

    # -- Carrier

    def listen(self, service_id: int) -> Listening:
        """Answers knocks at ``service_id`` from now on. Raises Closed."""
        door = _Door(self, service_id)
        with self._lock:
            if self._closed:
                raise Closed(_CLOSED)
            if service_id in self._listening:
                raise Closed(f"broker id {service_id} is accepted already; an id is good for one listener")
            self._listening[service_id] = door
            knocked = self._doors.listen(service_id, time.monotonic())
        if knocked:
            self._reply(service_id)
        return door

    def leave(self, service_id: int) -> None:
        """For the door that closes."""
        with self._lock:
            self._listening.pop(service_id, None)
            self._doors.leave(service_id)

    def received(self, info: Any) -> None:
        """A knock, or the answer to one."""
        if info.knock.knock and not info.knock.ack:
            with self._lock:
                answer = self._doors.knock(info.service_id, time.monotonic())
            if answer is not False:
                self._reply(info.service_id, "" if answer else f"no listener for id {info.service_id}")  # go-plugin's words
            return
        with self._changed:
            if info.service_id == self._asked:
                self._answer = info
                self._changed.notify_all()

    def _reply(self, service_id: int, error: str = "") -> None:
        self._send(ConnInfo(service_id=service_id, knock={"knock": True, "ack": True, "error": error}))

    def dial(self, service_id: int, timeout_s: float) -> ByteStream:
        """Knocks, and opens a stream. Raises BrokerTimeout, HandshakeError, Closed."""
        until = time.monotonic() + timeout_s
        if not self._dialling.acquire(timeout=timeout_s):
            raise BrokerTimeout(
                f"timeout waiting for multiplexing knock handshake on id {service_id}: another dial of this side took all of the"
                f" {timeout_s:g} s. Connections are made one after another.",
                service_id=service_id,
            )
        try:
            session = self._knock(service_id, until, timeout_s)
            joint = session.open()
        finally:
            self._dialling.release()
        return opened(joint, timeout_s, f"the brokered connection {service_id}")

    def _knock(self, service_id: int, until: float, timeout_s: float) -> MuxSession:
        with self._changed:
            self._asked, self._answer = service_id, None
        try:
            self._send(ConnInfo(service_id=service_id, knock={"knock": True}))
            with self._changed:
                self._changed.wait_for(lambda: self._answer is not None or self._closed, until - time.monotonic())
                answer, session = self._answer, self._session
                if self._closed:
                    raise Closed(_CLOSED)
        finally:
            with self._changed:
                self._asked = self._answer = None
        if answer is None or session is None:
            raise BrokerTimeout(
                f"timeout waiting for multiplexing knock handshake on id {service_id}: the peer did not answer within {timeout_s:g} s."
                f" It has to accept under {service_id} at about the time of the dial.",
                service_id=service_id,
            )
        if answer.knock.error:
            raise HandshakeError(f"failed to knock for id {service_id}: {answer.knock.error[:200]}. Accept under {service_id} there first.")
        if not (answer.knock.knock and answer.knock.ack):
            raise HandshakeError(
                f"handshake failed for multiplexing on id {service_id}; expected knock and ack, but got the address of a socket of its own."
                " Report this to the author of the peer: it does not multiplex its broker."
            )
        return session

    def close(self) -> None:
        """Nobody waits any more; the session is ended by whoever made it. Idempotent."""
        with self._changed:
            self._closed = True
            doors = list(self._listening.values())
            self._changed.notify_all()
        for door in doors:
            door.close()


class _Door:
    """One number as Listening."""

    def __init__(self, carrier: MultiplexedStreams, service_id: int) -> None:
        self._carrier = carrier
        self._service_id = service_id
        self._joints: queue.Queue[Joint | None] = queue.Queue(WAITING_MAX)
        self._lock = threading.Lock()
        self._closed = False

    def put(self, joint: Joint) -> None:
        with self._lock:
            closed = self._closed
            if not closed:
                try:
                    self._joints.put_nowait(joint)
                except queue.Full:
                    closed = True
        if closed:
            joint.close()

    def accept(self) -> ByteStream | None:
        joint = self._joints.get()  # ended by close()
        if joint is None:
            self._joints.put(None)
            return None
        assert joint.socket is not None
        return SocketStream(joint.socket)

    def close(self) -> None:
        self._carrier.leave(self._service_id)
        with self._lock:
            if self._closed:
                return
            self._closed = True
            while not self._joints.empty():
                joint = self._joints.get_nowait()
                if joint is not None:
                    joint.close()
            self._joints.put_nowait(None)
