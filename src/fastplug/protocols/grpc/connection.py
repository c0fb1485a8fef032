"""How host and plugin are connected: a connection of its own and further ones beside it, or one socket that carries them all."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastplug.net.dial import dial
from fastplug.net.listener import Listener
from fastplug.protocol import HostContext
from fastplug.protocols.grpc.broker import Carrier
from fastplug.protocols.grpc.carrier import AnnouncedSockets
from fastplug.protocols.grpc.channel import ByteStream, Tls
from fastplug.protocols.grpc.stream import SocketStream

if TYPE_CHECKING:
    import socket

    from fastplug.net.relay import MuxSession
    from fastplug.protocols.grpc.muxing import MultiplexedStreams

__all__ = ["HostConnection", "PluginMux"]

# The thread that routes streams ends with the session, which the relay ends at once.
JOIN_TIMEOUT_S = 2.0


class HostConnection:
    """The connection to one plugin. Raises what ``dial`` raises, and TlsRefused.

    Attributes:
        stream: the main connection; whoever takes it closes it.
        tls: how to secure it; None when that is done already.
    """

    def __init__(self, context: HostContext) -> None:
        self._context = context
        self._session: MuxSession | None = None
        self._router: threading.Thread | None = None
        connected = dial(context.network, context.address, timeout_s=context.config.connect_timeout_s)
        self.stream: ByteStream
        self.tls: Tls | None
        if context.config.grpc_broker_multiplex:
            self._session, self.stream = self._multiplexed(connected)
            self.tls = None
        else:
            self.stream, self.tls = SocketStream(connected), context.tls

    def _multiplexed(self, connected: socket.socket) -> tuple[MuxSession, ByteStream]:
        # Loads subprocess and more, which a host without multiplexing does not need.
        from fastplug.net.relay import relay
        from fastplug.protocols.grpc.muxing import opened

        session = relay().mux(connected, client=True, tls=self._context.tls)
        try:
            return session, opened(
                session.open(), self._context.config.connect_timeout_s, f"the connection to plugin {self._context.name!r}"
            )
        except BaseException:
            session.close()
            raise

    def make_carrier(self, send: Callable[[Any], None]) -> Carrier:
        """How brokered connections come about."""
        context, config = self._context, self._context.config
        if self._session is None:
            return AnnouncedSockets(
                send,
                lambda: Listener(context.socket_dir),
                keep_s=config.broker_timeout_s,
                connect_timeout_s=config.connect_timeout_s,
                translator=context,
            )
        from fastplug.protocols.grpc.muxing import MultiplexedStreams

        carrier = MultiplexedStreams(send, keep_s=config.broker_timeout_s)
        self._router = threading.Thread(target=carrier.route, args=(self._session,), name="fastplug-grpc-mux", daemon=True)
        self._router.start()
        return carrier

    def close(self) -> None:
        """Ends what carries the streams; they themselves are closed by their owners. Idempotent."""
        if self._session is not None:
            self._session.close()
        if self._router is not None and self._router is not threading.current_thread():
            self._router.join(JOIN_TIMEOUT_S)


class PluginMux:
    """The one socket of a plugin whose host multiplexes.

    Args:
        tls: for inside each stream.
        keep_s: how long a knock waits (see `MultiplexedStreams`).
        attach: serves a stream that was not announced: the host's main connection, and what it opens when that is lost.
    """

    def __init__(self, tls: Tls | None, keep_s: float, attach: Callable[[ByteStream, Tls | None], None]) -> None:
        from fastplug.net.relay import relay

        self._tls, self._keep_s, self._attach = tls, keep_s, attach
        self._relay = relay()
        self._hold = self._relay.hold()  # it starts while the plugin does
        self._session: MuxSession | None = None
        self._carrier: MultiplexedStreams | None = None
        self._closed = False

    def make_carrier(self, send: Callable[[Any], None]) -> Carrier:
        """How brokered connections come about, once."""
        from fastplug.protocols.grpc.muxing import MultiplexedStreams

        self._carrier = MultiplexedStreams(send, keep_s=self._keep_s, unannounced=lambda stream, joint: self._attach(stream, None))
        return self._carrier

    def run(self, connected: socket.socket) -> None:
        """Serves the host's connection until it ends."""
        assert self._carrier is not None
        self._session = session = self._relay.mux(connected, client=False, tls=self._tls)
        self._hold.release()
        if self._closed:  # meanwhile
            session.close()
        self._carrier.route(session)

    def close(self) -> None:
        """Ends the session. Idempotent."""
        self._closed = True
        if self._session is not None:
            self._session.close()
        self._hold.release()
