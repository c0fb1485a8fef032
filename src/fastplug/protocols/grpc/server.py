"""The plugin's end over gRPC: listens, serves the interfaces' methods on its workers, and everything else beside them."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from typing import Any

from google.protobuf import descriptor_pool

from fastplug.interfaces import Interface, check_implementation
from fastplug.net.listener import Listener, TcpListener, listen
from fastplug.net.relay import relay
from fastplug.plugin import GRPCPlugin
from fastplug.protocol import PluginContext
from fastplug.protocols.grpc.arrays import ArrayCopies
from fastplug.protocols.grpc.broker import Broker, Carrier
from fastplug.protocols.grpc.carrier import AnnouncedSockets
from fastplug.protocols.grpc.channel import ByteStream, Handler, HandlerKind, Limits, Tls, select
from fastplug.protocols.grpc.codec import MethodCodec
from fastplug.protocols.grpc.connection import PluginMux
from fastplug.protocols.grpc.messages import POOL, START_STREAM, ConnInfo
from fastplug.protocols.grpc.reflection import reflection_methods
from fastplug.protocols.grpc.schema import schema_of
from fastplug.protocols.grpc.services import Services
from fastplug.protocols.grpc.serving import PENDING_CALLS_MAX, Serving
from fastplug.protocols.grpc.stream import SocketStream
from fastplug.protocols.grpc.targets import Targets
from fastplug.protocols.grpc.workers import Workers
from fastplug.signature import describe_interface

__all__ = ["GrpcServer"]

# What must be answered while that many calls wait: health, shutdown, a few streams that are held open.
INTERNAL_WORKERS = 16
# For the answer to Shutdown to leave; the host takes a broken connection for success, too.
STOP_GRACE_S = 0.05
# The host's socket is there before it is announced: a connect that takes longer means a host that hangs.
BROKER_CONNECT_TIMEOUT_S = 10.0
# When the system has no descriptor left, every accept fails at once: do not fill the log with that.
ACCEPT_PAUSE_S = 0.1
# How long the accepting thread may take to notice that its listener is closed.
JOIN_TIMEOUT_S = 2.0

_log = logging.getLogger(__name__)


class GrpcServer:
    """ServerProtocol over gRPC. Handlers run on the thread that calls ``run``, and ``workers`` - 1 others."""

    network: str
    address: str

    def __init__(self, context: PluginContext) -> None:
        self._workers = Workers(context.config.workers)
        self._stopping = threading.Event()
        self._closed = False
        self._context, config = context, context.config
        self._hold = relay().hold() if context.tls is not None else None  # it starts while grpc is imported
        engine = select(config.grpc_engine)
        self._server = engine.server(
            workers=PENDING_CALLS_MAX + INTERNAL_WORKERS,
            limits=Limits(),
            interceptors=config.grpc_interceptors,
            options=config.grpc_options,
            directory=context.socket_dir,
        )
        self._mux = PluginMux(context.tls, config.broker_timeout_s, self._attach) if context.multiplex else None
        self._broker = Broker(engine, self._make_carrier, context.tls, timeout_s=config.broker_timeout_s, directory=context.socket_dir)
        self._copies = ArrayCopies()
        self._targets = Targets(self._broker, self._workers, self._copies)
        self._serving = Serving(self._workers, self._targets, self._log_failed_close)
        descriptions = []
        for interface, implementation in context.interfaces:
            implemented = check_implementation(implementation, interface)
            descriptions.append(describe_interface(interface, implemented))
            self._add_interface(interface, implementation, {method.name for method in implemented})
        services = [plugin for plugin in context.plugins.values() if isinstance(plugin, GRPCPlugin)]
        for plugin in services:
            plugin.grpc_server(self._broker, self._server)
        described = json.dumps({"interfaces": descriptions})
        self._services = Services(lambda: described, self._stats, self.stop, self._serving.stack, context.stdio)
        talk = Handler(HandlerKind.BIDI, self._broker.handle, ConnInfo.FromString, ConnInfo.SerializeToString)
        pools = [POOL, descriptor_pool.Default(), *(plugin.descriptor_pool for plugin in services if plugin.descriptor_pool)]
        pools += [schema_of(interface).pool for interface, _ in context.interfaces]
        reflection = reflection_methods(self._server.service_names, lambda: pools)
        self._server.add_methods({**self._services.methods(), START_STREAM: talk, **reflection})
        self._listener = self._listen()
        self.network, self.address = self._listener.network, self._listener.address
        self._acceptor = threading.Thread(target=self._accept, name="fastplug-grpc-accept", daemon=True)
        self._acceptor.start()

    def _listen(self) -> Listener | TcpListener:
        context = self._context
        return listen(context.config.network, socket_dir=context.socket_dir, socket_group=context.socket_group, ports=context.ports)

    def _make_carrier(self, send: Callable[[Any], None]) -> Carrier:
        """How brokered connections come about."""
        if self._mux is not None:
            return self._mux.make_carrier(send)
        return AnnouncedSockets(
            send, self._listen, keep_s=self._context.config.broker_timeout_s, connect_timeout_s=BROKER_CONNECT_TIMEOUT_S
        )

    def _add_interface(self, interface: Interface, implementation: Any, implemented: set[str]) -> None:
        rpcs = [rpc for rpc in schema_of(interface).rpcs if rpc.method.name in implemented]
        codecs = [MethodCodec(rpc, interface.name, self._copies) for rpc in rpcs]
        functions = [getattr(implementation, rpc.method.name) for rpc in rpcs]
        served = zip(codecs, functions, strict=True)
        self._server.add_methods({codec.path: self._serving.handler(codec, function) for codec, function in served})

    @staticmethod
    def _log_failed_close(method: str, error: BaseException) -> None:
        _log.error("the generator of %s() raised while it was closed", method, exc_info=error)

    def _stats(self) -> str:
        return json.dumps({"calls": self._workers.calls, "copies": self._copies.copies, "copied_bytes": self._copies.copied_bytes})

    def _accept(self) -> None:
        while True:
            try:
                connected = self._listener.accept()
                if connected is None:
                    return
                if self._mux is not None:
                    self._listener.close()  # this one carries everything
                    self._mux.run(connected)
                    self.stop()  # nobody can come any more
                    return
                self._attach(SocketStream(connected), self._context.tls)
            except Exception:  # noqa: BLE001  one connection that fails must not end the plugin
                if self._stopping.is_set():
                    return
                _log.exception("the plugin could not take a connection")
                self._stopping.wait(ACCEPT_PAUSE_S)

    def _attach(self, stream: ByteStream, tls: Tls | None) -> None:
        self._server.attach(stream, tls).closed.add_done_callback(lambda ended: self._tell(ended.result()))

    @staticmethod
    def _tell(reason: str) -> None:
        if reason.startswith("TLS"):
            _log.error("a connection to this plugin was refused. %s", reason)

    def stop(self) -> None:
        """Lets ``run`` return once the call in hand is done. From any thread; idempotent."""
        self._stopping.set()
        self._workers.stop()

    def run(self) -> None:
        """Serves until Shutdown or ``stop``."""
        self._workers.run()
        self.close()

    def close(self) -> None:
        """Ends all connections and frees what was made. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self.stop()
        self._listener.close()
        self._workers.cancel_waiting()
        self._serving.close()
        self._services.end()
        self._broker.close()
        self._targets.close()
        self._server.stop(STOP_GRACE_S).wait()  # bounded by the grace
        if self._hold is not None:
            self._hold.release()
        if self._mux is not None:
            self._mux.close()
        self._acceptor.join(JOIN_TIMEOUT_S)
