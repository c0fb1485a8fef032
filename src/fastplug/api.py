"""What most programs need: open, start, serve, submit, map, Spec, client_of, empty, proto_of."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, Generic, Literal, ParamSpec, Protocol, Self, TypeAlias, TypedDict, TypeVar, Unpack, overload

from fastplug.config import (
    DEFAULT_HANDSHAKE,
    ByteSink,
    ClientConfig,
    Curve,
    HandshakeConfig,
    Network,
    OnHostExit,
    ServeConfig,
    ServeTestConfig,
    Target,
    Tls,
    Transport,
    UnixSocketConfig,
)
from fastplug.errors import ConfigError

if TYPE_CHECKING:
    import logging

    import numpy.typing as npt

    from fastplug.client import Client
    from fastplug.plugin import GRPCPlugin, PluginSet
    from fastplug.process.runner import AttachedRunner, RunnerFactory
    from fastplug.protocols._remote import Call
    from fastplug.protocols.grpc.descriptors import Descriptors
    from fastplug.protocols.handle import RemoteMethod
    from fastplug.reattach_config import ReattachConfig
    from fastplug.secure import SecureConfig
    from fastplug.shm.arena import Arena

__all__ = [
    "OnError",
    "Options",
    "Results",
    "ServeOptions",
    "Spec",
    "client_of",
    "empty",
    "empty_like",
    "grpc_service",
    "map",
    "open",
    "private",
    "proto_of",
    "reattach",
    "serve",
    "serve_mux",
    "start",
    "submit",
    "writable",
]

T = TypeVar("T")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
P = ParamSpec("P")

# What the failure of one item of ``map`` means for those behind it.
OnError: TypeAlias = Literal["cancel", "continue"]


class Options(TypedDict, total=False):
    """What ``start``, ``open`` and ``Spec`` take beside the target: the fields of ClientConfig, where each is described."""

    handshake: HandshakeConfig
    plugins: PluginSet | None
    versioned_plugins: Mapping[int, PluginSet] | None
    transport: Transport
    allowed_protocols: Sequence[str]
    python: str | os.PathLike[str] | None
    env: Mapping[str, str] | None
    inherit_env: bool
    cwd: str | os.PathLike[str] | None
    name: str | None
    start_timeout_s: float
    connect_timeout_s: float
    stop_timeout_s: float
    arena_limit_bytes: int | None
    arena: Arena | None
    strict_zero_copy: bool
    workers: int
    logger: logging.Logger | None
    stdin: IO[Any] | int | None
    stderr: ByteSink | None
    log_buffer_bytes: int
    min_port: int
    max_port: int
    unix_socket: UnixSocketConfig | None
    secure: SecureConfig | None
    managed: bool
    runner: RunnerFactory | None
    sync_stdout: ByteSink | None
    sync_stderr: ByteSink | None
    auto_mtls: bool
    mtls_curve: Curve
    tls: Tls | None
    grpc_engine: str
    grpc_dial_options: Sequence[tuple[str, Any]]
    grpc_broker_multiplex: bool
    broker_timeout_s: float
    reattach_runner: Callable[[ReattachConfig], AttachedRunner] | None


class ServeOptions(TypedDict, total=False):
    """What ``serve`` takes beside the sets: the further fields of ServeConfig, where each is described."""

    tls_provider: Callable[[], Tls] | None
    mtls_curve: Curve
    grpc_engine: str
    sync_fds: bool
    grpc_interceptors: Sequence[Any]
    grpc_options: Sequence[tuple[str, Any]]
    broker_timeout_s: float
    network: Network
    test: ServeTestConfig | None


def start(target: Target, **options: Unpack[Options]) -> Client:
    """Starts a plugin and connects to it; use it with ``with``, or call ``kill()``.

    Args:
        target: a script, an argv, an entry point, a program on PATH, or ``module:Class`` for in-process.
        options: fields of ClientConfig by name, such as transport="socket", python=".venv", strict_zero_copy=True.

    Raises:
        ConfigError: nothing was started. StartError, HandshakeError and its kin: it was, and has been ended.
    """
    from fastplug.client import Client

    return Client(ClientConfig(target=target, **options)).start()


def reattach(config: ReattachConfig, **options: Unpack[Options]) -> Client:
    """Connects to a plugin that runs already; use it with ``with``, or call ``kill()`` or ``detach()``.

    Args:
        config: from ``client.reattach_config()``, ``client.detach()``, a plugin in test mode, or ``parse_reattach``.
        options: fields of ClientConfig by name. Those that say how to start a process have no effect.

    Raises:
        ProcessNotFound: it has ended. HandshakeError and its kin: it is not a plugin that this host can talk to.
    """
    from fastplug.client import Client

    return Client(ClientConfig(reattach=config, **options)).start()


@contextlib.contextmanager
def open(target: Target, iface: Callable[..., T], **options: Unpack[Options]) -> Iterator[T]:  # noqa: A001  the word of the field
    """One process, one interface: starts the plugin, gives a handle, ends the plugin with the block.

    Args:
        target: as for ``start``.
        iface: the class with ``@fastplug.interface``.
        options: fields of ClientConfig by name.

    Raises:
        What ``start`` raises, and InterfaceMismatch.
    """
    with start(target, **options) as client:
        yield client.dispense(iface)


def serve(
    implementation: object = None,
    /,
    *interfaces: type[Any],
    plugins: PluginSet | None = None,
    versioned_plugins: Mapping[int, PluginSet] | None = None,
    handshake: HandshakeConfig = DEFAULT_HANDSHAKE,
    workers: int = 1,
    on_host_exit: OnHostExit = "stop",
    arena_limit_bytes: int | None = None,
    **options: Unpack[ServeOptions],
) -> None:
    """Serves this process as a plugin, until the host ends it. Call it last, on the main thread.

    Args:
        implementation: what implements the interfaces; a context manager is entered before serving and left afterwards.
        interfaces: which ones; by default those among its bases.
        plugins, versioned_plugins: go-plugin's sets, instead of or beside ``implementation``.
        handshake: cookie and application version.
        workers: handlers at a time, 1 to 16: up to ``workers`` - 1 slow calls do not hold up a fast one. With 1 all run on the main thread.
        on_host_exit: "stop" or "stay", when the host is gone.
        arena_limit_bytes: most shared memory for results.
        options: further fields of ServeConfig by name, such as network, test, grpc_interceptors, tls_provider.

    Raises:
        ConfigError: an interface is not implemented; which method.
        SystemExit: 1, when no host started this process.
    """
    from fastplug.server import serve_config, served_plugins

    own = served_plugins((implementation,), interfaces) if implementation is not None else {}
    if implementation is None and interfaces:
        raise ConfigError("serve() got interfaces without an implementation")
    both: dict[str, Any] | None = {**own, **(plugins or {})} if own or plugins is not None else None
    serve_config(
        ServeConfig(
            plugins=both,
            versioned_plugins=versioned_plugins,
            handshake=handshake,
            workers=workers,
            on_host_exit=on_host_exit,
            arena_limit_bytes=arena_limit_bytes,
            **options,
        )
    )


def serve_mux(plugins: Mapping[str, ServeConfig | Callable[[], object]]) -> None:
    """Several plugins in one program: the first argument on the command line says which one is served (go-plugin: ServeMux).

    Args:
        plugins: name -> what to serve: a ServeConfig, or a function that calls ``serve``.

    Raises:
        SystemExit: 1, when there is not exactly one argument, or it names none of them.
    """
    if len(sys.argv) != 2:
        sys.stderr.write("Invoked improperly. This is an internal command that shouldn't\nbe manually invoked.\n")
        raise SystemExit(1)
    chosen = plugins.get(sys.argv[1])
    if chosen is None:
        sys.stderr.write(f"Unknown plugin: {sys.argv[1]}\n")
        raise SystemExit(1)
    if isinstance(chosen, ServeConfig):
        from fastplug.server import serve_config

        serve_config(chosen)
    else:
        chosen()


@overload
def submit(method: Callable[P, Coroutine[Any, Any, R]], *args: P.args, **kwargs: P.kwargs) -> Call[R]: ...
@overload
def submit(method: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Call[R]: ...
def submit(method: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> Call[Any]:
    """Starts a call and does not wait for it: many may be under way on one handle.

    Args:
        method: a method of a handle, such as ``dsp.total``; one that returns a stream is called instead.
        args, kwargs: its arguments. Arrays that live in shared memory are lent until the call is answered.

    At most 1024 calls (over gRPC 128) are under way on a connection; one more first waits for answers. The deadline in force counts.

    Raises:
        ConfigError: ``method`` is something else. ArgumentError, DeadlineExceeded, Closed, PluginDied: nothing was sent.
    """
    made: Call[Any] = _remote(method, "submit").submit(args, kwargs)
    return made


class Results(Protocol[R_co]):
    """What ``map`` gives: an iterator for one thread at a time, which any thread may close."""

    def __iter__(self) -> Self: ...

    def __next__(self) -> R_co: ...

    def close(self) -> None:
        """Cancels what is under way; there are no further results. Idempotent."""


@overload
def map(  # noqa: A001  as below
    method: Callable[..., Coroutine[Any, Any, R]],
    *iterables: Iterable[Any],
    in_flight: int = 64,
    ordered: bool = True,
    on_error: OnError = "cancel",
) -> Results[R]: ...
@overload
def map(  # noqa: A001  as below
    method: Callable[..., R], *iterables: Iterable[Any], in_flight: int = 64, ordered: bool = True, on_error: OnError = "cancel"
) -> Results[R]: ...
def map(  # noqa: A001  the word of the field
    method: Callable[..., Any], *iterables: Iterable[Any], in_flight: int = 64, ordered: bool = True, on_error: OnError = "cancel"
) -> Results[Any]:
    """As the builtin ``map``, with up to ``in_flight`` calls under way.

    Args:
        method: a method of a handle.
        iterables: one for each of its arguments; the shortest ends it. They are read as results are taken, on the same thread.
        in_flight: how many calls may be under way.
        ordered: results in the order of the items; False: those that are there first.
        on_error: a failing item raises at its place. "cancel" ends the map there and cancels what is under way; with "continue" the
            iterator goes on behind it.

    Raises:
        ConfigError: ``method`` is something else or returns a stream, ``in_flight`` is no number or less than 1.

    The iterator raises what calls raise. It is for one thread at a time: next() raises LocalProtocolError while another one waits for a
    result. ``close()`` cancels what is under way, from any thread; whoever waits for a result then gets StopIteration.
    """
    if not hasattr(in_flight, "__index__") or in_flight < 1 or on_error not in ("cancel", "continue"):
        raise ConfigError(f'map() takes an in_flight of at least 1 and on_error "cancel" or "continue", got {in_flight!r} and {on_error!r}')
    made: Results[Any] = _remote(method, "map").mapped(iterables, in_flight, ordered, on_error == "continue")
    return made


def _remote(method: object, what: str) -> RemoteMethod:
    from fastplug.protocols.handle import RemoteMethod

    if not isinstance(method, RemoteMethod):
        raise ConfigError(f"{what}() takes a method of a handle, such as dsp.total, got {type(method).__qualname__}")
    return method


def client_of(handle: object) -> Client:
    """The Client that a handle came from. Raises ConfigError for anything else."""
    from fastplug.protocols.handle import Handle

    client = handle._fastplug_client if isinstance(handle, Handle) else None
    if client is None:
        raise ConfigError(f"client_of() takes a handle from open() or dispense(), got {type(handle).__qualname__}")
    found: Client = client
    return found


def empty(shape: int | tuple[int, ...], dtype: npt.DTypeLike = "float64") -> npt.NDArray[Any]:
    """An uninitialised array for a result: inside a handler it is born in the call's shared memory, and returning it copies nothing.

    Elsewhere, and over other transports, an ordinary array. On the host use ``client.empty``.

    Raises:
        ArenaExhausted: over the plugin's arena limit.
    """
    found: npt.NDArray[Any] = _born()(shape, dtype)
    return found


@functools.cache
def _born() -> Callable[..., Any]:
    """Loaded with the first array: an import statement takes half a microsecond each time."""
    from fastplug.shm._ndarray import born

    return born


def grpc_service(name: str, implementation: object, *, descriptors: Descriptors) -> GRPCPlugin:
    """A gRPC service of a .proto that is not at hand, as an entry of a plugin set: nothing is generated.

    Args:
        name: full name, ``package.Service``.
        implementation: has methods named as those of the service, each called as ``method(request, context)``, on threads of the engine,
            several at a time; ``request`` is a message, or an iterator of messages. It returns a message or a mapping of fields
            (as ``client.service`` takes them), or an iterable of them where the method streams. Methods that it lacks are
            UNIMPLEMENTED; it raises RpcError for a status. Its class, or a function, is called with the ``GRPCBroker`` and returns it.
        descriptors: what the messages are: a FileDescriptorSet, such as ``client.descriptors(name)`` of another plugin gives, its bytes,
            or modules that protoc generated.

    Raises:
        ConfigError: ``descriptors`` cannot be used; when it is served, also: they have no such service, or ``implementation`` has none of
            its methods.
    """
    from fastplug.protocols.grpc.servicer import DescribedService

    return DescribedService(name, implementation, descriptors)


def empty_like(array: npt.NDArray[Any], dtype: npt.DTypeLike | None = None) -> npt.NDArray[Any]:
    """As ``empty``, with the shape of an array; Fortran-ordered if that is. ``dtype``: another one than its own. Raises ArenaExhausted."""
    wanted = array.dtype if dtype is None else dtype
    if array.flags.f_contiguous and not array.flags.c_contiguous:
        return empty(array.shape[::-1], wanted).T
    return empty(array.shape, wanted)


def writable(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same values in an array that may be written to; whoever sent it, and ``array`` itself, see nothing of that.

    What came through shared memory is not copied as a whole: a page is, when it is first written to. It keeps the sender's memory lent as
    long as it lives. Everything else is copied at once: small arrays, ordinary ones, those of other transports.
    """
    from fastplug.shm import _ndarray_memory

    return _ndarray_memory.writable(array)


def private(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A copy that is this process's alone: it may be written to, keeps nothing lent, and cannot change after it was checked."""
    import numpy as np

    return np.array(array, copy=True, order="K", subok=False)


def proto_of(iface: Callable[..., Any]) -> str:
    """The .proto of an interface's gRPC form, to write a Go host or plugin against. Raises ConfigError."""
    from fastplug.interfaces import interface_of
    from fastplug.protocols.grpc.prototext import proto_text

    return proto_text(interface_of(iface))


@dataclasses.dataclass(frozen=True)
class Spec(Generic[T]):
    """How to open a plugin: picklable where everything in it is, so that it can go to another process and be opened there.

    Args:
        target, iface: as for ``open``.
        options: further arguments of ``open``.
    """

    target: Target
    iface: Callable[..., T]
    options: Options = dataclasses.field(default_factory=Options)

    def open(self) -> contextlib.AbstractContextManager[T]:
        """``fastplug.open`` with what this says."""
        return open(self.target, self.iface, **self.options)

    def start(self) -> Client:
        """``fastplug.start`` with what this says."""
        return start(self.target, **self.options)
