"""The engine over grpcio, the only module that imports grpc.

grpcio wants addresses and fastplug has connected streams, so each stream is relayed through a private Unix socket in a directory that
only this user may enter.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import grpc

from fastplug.errors import Closed, LocalProtocolError, RpcError, TlsRefused
from fastplug.net.relay import Joint, RelayedFuture, relay
from fastplug.protocols.grpc.channel import ByteStream, Handler, HandlerKind, Limits, MethodTable, Tls
from fastplug.protocols.grpc.stream import Relay, SocketStream

__all__ = ["ENGINE"]

# sockaddr_un holds 107 characters on Linux and 103 on macOS; the name below the directory takes 2.
_DIRECTORY_CHARACTERS_MAX = 100
# grpcio connects within the first call; this many connections may wait for the relay, and it makes one.
_BACKLOG = 1


class _PrivatePath:
    """A path for a socket in a 0700 directory of its own, made in ``parent`` (the temporary directory by default)."""

    def __init__(self, parent: str | None = None) -> None:
        directory = tempfile.mkdtemp(prefix="fastplug-grpc-", dir=parent)
        if len(directory) > _DIRECTORY_CHARACTERS_MAX:
            Path(directory).rmdir()
            directory = tempfile.mkdtemp(prefix="fastplug-grpc-", dir="/tmp")
        self._directory = directory
        self._held: int | None = None
        self.path = f"{directory}/s"

    def hide(self) -> None:
        """Once somebody listens there: takes the name away, so that no other process of this user finds the way in, past TLS, and nothing
        is left of it when this process is killed."""
        if not hasattr(os, "O_PATH") or not Path("/proc/self/fd").is_dir():
            return  # then the directory has to do
        try:
            self._held = os.open(self.path, os.O_PATH | os.O_CLOEXEC)
        except OSError:  # no descriptor left
            return
        self.path = f"/proc/self/fd/{self._held}"
        shutil.rmtree(self._directory, ignore_errors=True)

    def remove(self) -> None:
        """Gives everything back. Idempotent."""
        held, self._held = self._held, None
        if held is not None:
            os.close(held)
        shutil.rmtree(self._directory, ignore_errors=True)


def _options(limits: Limits, *further: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Each name once, the last one wins: of two, grpcio takes the first."""
    made: dict[str, Any] = {
        "grpc.max_receive_message_length": limits.max_receive_bytes,
        "grpc.max_send_message_length": limits.max_send_bytes,
        "grpc.max_metadata_size": limits.max_metadata_bytes,
        "grpc.absolute_max_metadata_size": limits.max_metadata_bytes,
    }
    for options in further:
        made.update(options)
    return list(made.items())


def _is_this_process(connected: socket.socket) -> bool:
    """Whether the other end was made here. What comes in at this door speaks for the host."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True  # then the 0700 directory has to do
    pid: int = struct.unpack("3i", connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))[0]
    return pid == os.getpid()


def _join(outer: ByteStream, inner: socket.socket, tls: Tls | None, *, server: bool) -> Relay | Joint:
    """Couples the peer's stream with grpcio's socket: here, or with TLS in the relay process, where no GIL of ours can stop it."""
    if tls is None:
        return Relay(outer, SocketStream(inner))
    if not isinstance(outer, SocketStream):
        raise LocalProtocolError("the grpcio engine needs a socket for TLS, and was given another kind of stream")
    return relay().tls(outer.take(), tls, server=server, inner=inner)


class _Channel(grpc.Channel):
    """A grpc.Channel over one stream. When the stream ends, it ends: a plugin that is gone does not come back."""

    def __init__(
        self,
        stream: ByteStream,
        tls: Tls | None,
        authority: str,
        limits: Limits,
        options: Sequence[tuple[str, Any]],
        directory: str | None,
    ) -> None:
        self.ready: Future[None] = Future()
        self.closed: Future[str] = Future() if tls is None else RelayedFuture()
        self._stream = stream
        self._tls = tls
        self._private = _PrivatePath(directory)
        self._relay: Relay | Joint | None = None
        self._lock = threading.Lock()
        self._ended = False
        self._door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._door.bind(self._private.path)
        self._door.listen(_BACKLOG)
        self._private.hide()
        self._doorman = threading.Thread(target=self._admit, name="fastplug-grpc-admit", daemon=True)
        self._doorman.start()
        # Without a subchannel pool of its own, a channel could be handed the connection of another.
        own = [("grpc.default_authority", authority), ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        path = f"unix:{self._private.path}"
        self._channel: grpc.Channel | None = grpc.insecure_channel(path, options=_options(limits, options, own))

    def _open(self) -> grpc.Channel:
        channel = self._channel
        if channel is None:
            raise ValueError("Cannot invoke RPC on closed channel!")  # grpcio's own words
        return channel

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._open().unary_unary(*args, **kwargs)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._open().unary_stream(*args, **kwargs)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._open().stream_unary(*args, **kwargs)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._open().stream_stream(*args, **kwargs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def subscribe(self, callback: Callable[[Any], None], try_to_connect: bool | None = None) -> None:
        self._open().subscribe(callback, bool(try_to_connect))

    def unsubscribe(self, callback: Callable[[Any], None]) -> None:
        self._open().unsubscribe(callback)

    def connect(self) -> None:
        """Raises ValueError: it is closed."""
        # grpcio's public way is subscribe(): its thread, which looks up five times a second, raises when the channel is closed under it.
        self._open()._channel.check_connectivity_state(True)  # type: ignore[attr-defined]

    def _admit(self) -> None:
        """Waits for grpcio's one connection, or for close(). After it nobody else can come in."""
        try:
            inner = self._door.accept()[0]
            while not _is_this_process(inner):
                inner.close()
                inner = self._door.accept()[0]
        except OSError:  # close() came first
            return
        finally:
            self._door.close()
            self._private.remove()
        with self._lock:
            if self._ended:
                inner.close()
                return
            try:
                self._relay = _join(self._stream, inner, self._tls, server=False)
            except Exception as error:  # noqa: BLE001  no relay process to be had
                inner.close()
                self._set_ready(error)
                self._set_closed(str(error))
                return
        if isinstance(self._relay, Joint):
            self._relay.ready.add_done_callback(lambda done: self._set_ready(done.exception()))
        else:
            self._set_ready(None)
        self._relay.closed.add_done_callback(lambda ended: self._set_closed(ended.result()))

    def _set_ready(self, error: BaseException | None) -> None:
        with contextlib.suppress(InvalidStateError):  # close() came first
            if error is None:
                self.ready.set_result(None)
            else:
                self.ready.set_exception(error)

    def _set_closed(self, reason: str) -> None:
        with contextlib.suppress(InvalidStateError):  # close() and the peer at once
            self.closed.set_result(reason)
        self._set_ready(TlsRefused(reason) if reason.startswith("TLS") else Closed(reason))  # unless it was ready

    def close(self) -> None:
        """Ends every call, the connection and what was made for it. Idempotent."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
        self._set_closed("the channel was closed")
        # Let go of, too: grpcio keeps two descriptors as long as any object of its own lives.
        channel, self._channel = self._open(), None
        channel.close()
        del channel
        with contextlib.suppress(OSError):  # already closed by the doorman
            self._door.shutdown(socket.SHUT_RDWR)
        self._doorman.join()
        if self._relay is not None:
            self._relay.close()
        self._stream.close()


def _answering(handle: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """The handler with its RpcError as a gRPC status."""

    def behave(request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return handle(request, context)
        except RpcError as error:
            _abort(context, error)

    return behave


def _answering_stream(handle: Callable[[Any, Any], Iterator[Any]]) -> Callable[[Any, Any], Iterator[Any]]:
    def behave(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        try:
            yield from handle(request, context)
        except RpcError as error:
            _abort(context, error)

    return behave


_STATUS = {code.value[0]: code for code in grpc.StatusCode}


def _abort(context: grpc.ServicerContext, error: RpcError) -> None:
    context.set_trailing_metadata(error.trailers)
    context.abort(_STATUS.get(error.code, grpc.StatusCode.UNKNOWN), error.message)


_KINDS: dict[HandlerKind, tuple[Callable[..., Any], Callable[[Any], Any]]] = {
    HandlerKind.UNARY: (grpc.unary_unary_rpc_method_handler, _answering),
    HandlerKind.SERVER_STREAM: (grpc.unary_stream_rpc_method_handler, _answering_stream),
    HandlerKind.CLIENT_STREAM: (grpc.stream_unary_rpc_method_handler, _answering),
    HandlerKind.BIDI: (grpc.stream_stream_rpc_method_handler, _answering_stream),
}


class _Methods(grpc.GenericRpcHandler):
    """A method table as grpcio wants it."""

    def __init__(self, methods: MethodTable) -> None:
        self._handlers = {path: self._rpc(handler) for path, handler in methods.items()}

    @staticmethod
    def _rpc(handler: Handler) -> Any:
        make, wrap = _KINDS[handler.kind]
        return make(wrap(handler.handle), handler.decode, handler.encode)

    def service(self, handler_call_details: Any) -> Any:
        return self._handlers.get(handler_call_details.method)


class _Server:
    """A grpc.Server on a private socket, to which each attached stream is relayed."""

    def __init__(
        self, workers: int, limits: Limits, interceptors: Sequence[Any], options: Sequence[tuple[str, Any]], directory: str | None
    ) -> None:
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="fastplug-grpc")
        self._server: grpc.Server | None = grpc.server(self._pool, interceptors=list(interceptors), options=_options(limits, options))
        self._services: list[str] = []
        self._pools: list[Any] = []
        self._directory = directory
        self._private: _PrivatePath | None = None
        self._lock = threading.Lock()
        self._stopped: threading.Event | None = None
        self._relays: set[Relay | Joint] = set()

    def _open(self) -> grpc.Server:
        server = self._server
        if server is None or self._stopped is not None:
            raise LocalProtocolError("the gRPC server was stopped; make a new one")
        return server

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Any) -> None:
        handlers = tuple(generic_rpc_handlers)
        self._open().add_generic_rpc_handlers(handlers)
        self._add_names(handler.service_name() for handler in handlers if isinstance(handler, grpc.ServiceRpcHandler))

    def add_registered_method_handlers(self, service_name: str, method_handlers: Any) -> None:
        self._open().add_registered_method_handlers(  # pyright: ignore[reportAttributeAccessIssue]  newer than its stubs
            service_name, method_handlers
        )
        self._add_names((service_name,))

    def add_methods(self, methods: MethodTable) -> None:
        self._open().add_generic_rpc_handlers((_Methods(methods),))
        self._add_names(path.split("/")[1] for path in methods)

    def _add_names(self, names: Iterable[str]) -> None:
        self._services += [name for name in dict.fromkeys(names) if name not in self._services]

    def service_names(self) -> Sequence[str]:
        return tuple(self._services)

    def describe(self, pool: Any) -> None:
        self._pools.append(pool)

    def pools(self) -> Sequence[Any]:
        return tuple(self._pools)

    def attach(self, stream: ByteStream, tls: Tls | None = None) -> Relay | Joint:
        with self._lock:
            path = self._started(self._open())
            inner = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            inner.connect(path)
            try:
                joined = _join(stream, inner, tls, server=True)
            except BaseException:
                inner.close()
                raise
            self._relays.add(joined)
        joined.closed.add_done_callback(lambda _: self._relays.discard(joined))
        return joined

    def _started(self, server: grpc.Server) -> str:
        """The path where it listens, from now on. No earlier: the path has a name until it listens, which a killed process would leave."""
        if self._private is None:
            self._private = _PrivatePath(self._directory)
            server.add_insecure_port(f"unix:{self._private.path}")
            server.start()
            self._private.hide()
        return self._private.path

    def stop(self, grace_s: float | None) -> threading.Event:
        with self._lock:
            if self._stopped is None:
                server, self._server = self._open(), None  # as in _Channel.close()
                self._stopped = threading.Event()
                self._started(server)  # grpcio frees the port only of a server that was started
                calls_ended = server.stop(grace_s)
                free = threading.Thread(target=self._free, args=(server, calls_ended, self._stopped), name="fastplug-grpc-stop")
                free.start()
        return self._stopped

    def _free(self, server: grpc.Server, calls_ended: threading.Event, stopped: threading.Event) -> None:
        calls_ended.wait()  # bounded by stop's grace
        del server  # not before: grpcio ends the thread that sets the event with its server
        for joined in list(self._relays):
            joined.close()
        if self._private is not None:
            self._private.remove()
        self._pool.shutdown(wait=False)
        stopped.set()


class _Grpcio:
    """engine name: grpcio."""

    name = "grpcio"

    def connect(
        self,
        stream: ByteStream,
        tls: Tls | None,
        *,
        authority: str,
        limits: Limits,
        options: Sequence[tuple[str, Any]] = (),
        directory: str | None = None,
    ) -> _Channel:
        return _Channel(stream, tls, authority, limits, options, directory)

    def server(
        self,
        *,
        workers: int,
        limits: Limits,
        interceptors: Sequence[Any] = (),
        options: Sequence[tuple[str, Any]] = (),
        directory: str | None = None,
    ) -> _Server:
        return _Server(workers, limits, interceptors, options, directory)


ENGINE = _Grpcio()
