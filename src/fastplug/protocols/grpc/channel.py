"""The seam between fastplug and whatever speaks HTTP/2: what an engine is given, and what it gives. Imports no grpc.

An engine gets connected byte streams, never an address: the core listens, dials and accepts. It gets a neutral description of TLS, never
credentials of its own kind. Internal services reach it as method tables, not as generated servicers. So grpcio can be exchanged for a
compiled engine without a change outside ``engines/``.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from fastplug.config import Tls
from fastplug.errors import ConfigError, RpcError

__all__ = [
    "UNLIMITED_BYTES",
    "ByteStream",
    "CallContext",
    "Channel",
    "Code",
    "Connection",
    "Engine",
    "Handler",
    "HandlerKind",
    "Limits",
    "MethodTable",
    "Server",
    "Tls",
    "code_of",
    "rpc_error",
    "select",
]

# go-plugin's host sets the largest signed 32-bit number for both directions.
UNLIMITED_BYTES = 2**31 - 1
# The error of a handler travels in trailing metadata: at most four texts of 64 KiB, a third more in base64.
METADATA_BYTES_MAX = 512 * 1024


class Code(enum.IntEnum):
    """The gRPC status codes that fastplug itself asks for or gives."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


class ByteStream(Protocol):
    """A connected, two-way stream of bytes: a socket, later a yamux stream."""

    def fileno(self) -> int:
        """-1 if there is none."""
        ...

    def recv_into(self, buffer: memoryview, /) -> int:
        """Waits for bytes; 0 at the end, and at once after close()."""
        ...

    def sendall(self, data: memoryview, /) -> None:
        """Waits until all is taken. Raises OSError at the end."""

    def close(self) -> None:
        """Ends both directions, also for a thread that waits in them. Idempotent."""


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """What a connection may carry."""

    max_receive_bytes: int = UNLIMITED_BYTES
    max_send_bytes: int = UNLIMITED_BYTES
    max_metadata_bytes: int = METADATA_BYTES_MAX


class CallContext(Protocol):
    """What a handler is told of its call: the part of grpc.ServicerContext that internal services use."""

    def is_active(self) -> bool: ...
    def add_callback(self, callback: Callable[[], object]) -> bool: ...
    def time_remaining(self) -> float | None: ...
    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]]: ...
    def send_initial_metadata(self, initial_metadata: Sequence[tuple[str, str]], /) -> None:
        """Sends the headers of the response. Raises ValueError: they were sent already, with a response or without."""


class HandlerKind(enum.Enum):
    """The four kinds of call."""

    UNARY = "unary"
    SERVER_STREAM = "server stream"
    CLIENT_STREAM = "client stream"
    BIDI = "bidirectional stream"


@dataclasses.dataclass(frozen=True, slots=True)
class Handler:
    """One method. ``handle(request, context)`` returns the response, or an iterator of them; it may raise RpcError.

    Of a stream of requests it gets an iterator, which ends with the stream and raises when the call ends before.
    Without ``decode`` and ``encode`` requests and responses are bytes.
    """

    kind: HandlerKind
    handle: Callable[[Any, CallContext], Any]
    decode: Callable[[bytes], Any] | None = None
    encode: Callable[[Any], bytes] | None = None


# Path ("/package.Service/Method") to handler.
MethodTable = Mapping[str, Handler]


class Channel(Protocol):
    """The part of grpc.Channel that generated stubs and interceptors call.

    ``ready`` is done when the engine has taken the connection up, which may wait for the first call, and with TLS when the peer has let it
    in. It gets TlsRefused when one side refused the other, or Closed. ``closed`` gets the reason when the connection has ended, before any
    call fails for it.
    """

    ready: Future[None]
    closed: Future[str]

    def unary_unary(
        self, method: str, request_serializer: Any = None, response_deserializer: Any = None, _registered_method: bool | None = False
    ) -> Any: ...
    def unary_stream(
        self, method: str, request_serializer: Any = None, response_deserializer: Any = None, _registered_method: bool | None = False
    ) -> Any: ...
    def stream_unary(
        self, method: str, request_serializer: Any = None, response_deserializer: Any = None, _registered_method: bool | None = False
    ) -> Any: ...
    def stream_stream(
        self, method: str, request_serializer: Any = None, response_deserializer: Any = None, _registered_method: bool | None = False
    ) -> Any: ...
    def subscribe(self, callback: Callable[[Any], None], try_to_connect: bool | None = None) -> None: ...
    def unsubscribe(self, callback: Callable[[Any], None]) -> None: ...
    def connect(self) -> None:
        """Takes the connection up now and not at the first call; waits for nothing."""
        ...

    def close(self) -> None: ...


class Connection(Protocol):
    """One peer of a server."""

    closed: Future[str]

    def close(self) -> None: ...


class Server(Protocol):
    """The part of grpc.Server that generated add_*_to_server functions call, and what fastplug needs beside it."""

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Any) -> None: ...
    def add_registered_method_handlers(self, service_name: str, method_handlers: Any) -> None: ...
    def add_methods(self, methods: MethodTable) -> None:
        """Internal services. Before the first attach()."""

    def service_names(self) -> Sequence[str]:
        """What can be called here, "package.Service", as far as it was added by name; for reflection."""
        ...

    def describe(self, pool: Any) -> None:
        """A descriptor pool with services that are added here, for reflection; protobuf's default one needs not be told."""

    def pools(self) -> Sequence[Any]:
        """What ``describe`` was told."""
        ...

    def attach(self, stream: ByteStream, tls: Tls | None = None) -> Connection:
        """Serves one connected peer until either side ends it. The server owns the stream from here on."""
        ...

    def stop(self, grace_s: float | None) -> threading.Event:
        """Takes no more calls, lets those in hand run for ``grace_s`` seconds, then cancels them. The event: all is freed."""
        ...


class Engine(Protocol):
    """What carries gRPC over byte streams."""

    name: str

    def connect(
        self,
        stream: ByteStream,
        tls: Tls | None,
        *,
        authority: str,
        limits: Limits,
        options: Sequence[tuple[str, Any]] = (),
        directory: str | None = None,
    ) -> Channel:
        """``options``: the user's, as grpcio names them; they win over ``limits``, and an engine ignores those that it does not know.

        ``directory``: as for a server.
        """
        ...

    def server(
        self,
        *,
        workers: int,
        limits: Limits,
        interceptors: Sequence[Any] = (),
        options: Sequence[tuple[str, Any]] = (),
        directory: str | None = None,
    ) -> Server:
        """``directory``: where files may be made that the host removes if this process is killed."""
        ...


_ENGINES = {"grpcio": "fastplug.protocols.grpc.engines.grpcio"}


def select(name: str = "auto") -> Engine:
    """The engine of that name. Raises ConfigError for a name without one."""
    module = _ENGINES.get("grpcio" if name == "auto" else name)
    if module is None:
        raise ConfigError(f"there is no gRPC engine {name!r}; choose one of auto, {', '.join(_ENGINES)}")
    engine: Engine = importlib.import_module(module).ENGINE
    return engine


def code_of(failed: Any) -> int:
    """The status code of what an engine's call failed with; UNKNOWN if it does not say."""
    code = failed.code() if hasattr(failed, "code") else None
    value = getattr(code, "value", code)  # grpc.StatusCode has (number, text)
    number = value[0] if isinstance(value, tuple) else value
    return number if isinstance(number, int) else Code.UNKNOWN


def rpc_error(failed: Any) -> RpcError:
    """An engine's failed call as RpcError."""
    trailers = [(str(key), value) for key, value in (failed.trailing_metadata() or ())] if hasattr(failed, "trailing_metadata") else []
    details = next((value for key, value in trailers if key == "grpc-status-details-bin"), b"")
    text = failed.details() if hasattr(failed, "details") else str(failed)
    return RpcError(code_of(failed), text or "", details, trailers)
