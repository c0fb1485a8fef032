"""Configuration: plain records, one for the host (``ClientConfig``), one for the plugin (``ServeConfig``).

Configuration belongs to the instance, never to the process. Every bound that a user may want to move stands here with its reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, Protocol

from fastplug.errors import ConfigError

if TYPE_CHECKING:
    import logging
    import threading

    from fastplug.plugin import PluginSet
    from fastplug.reattach_config import ReattachConfig
    from fastplug.secure import SecureConfig

__all__ = [
    "DEFAULT_HANDSHAKE",
    "ByteSink",
    "ClientConfig",
    "Curve",
    "HandshakeConfig",
    "Network",
    "OnHostExit",
    "ServeConfig",
    "ServeTestConfig",
    "Target",
    "Tls",
    "Transport",
    "UnixSocketConfig",
]

Transport = Literal["auto", "shm", "socket", "grpc", "inproc"]
OnHostExit = Literal["stop", "stay"]
Network = Literal["unix", "tcp"]
Target = str | PathLike[str] | Sequence[str]

Curve = Literal["P-256", "P-384", "P-521"]

CURVES = ("P-256", "P-384", "P-521")
TRANSPORTS = ("auto", "shm", "socket", "grpc", "inproc")

# go-plugin's StartTimeout: covers the start of the process and the wait for its line.
START_TIMEOUT_S = 60.0
# Two messages each way on a Unix socket; a plugin that cannot do that in 10 s hangs.
CONNECT_TIMEOUT_S = 10.0
# go-plugin waits 2 s after Shutdown before it kills.
STOP_TIMEOUT_S = 2.0
# One lane each (fast-transport measurements: a connection has 16 at most); handlers that compute share one GIL anyway.
WORKERS_MAX = 16
# A health check crosses a socket and one thread switch; 10 s is go-plugin's order of magnitude for giving up on a peer.
PING_TIMEOUT_S = 10.0
# go-plugin waits 5 s in its broker, for either side to come.
BROKER_TIMEOUT_S = 5.0
# go-plugin's MinPort and MaxPort, for plugins that listen on TCP.
MIN_PORT = 10000
MAX_PORT = 25000
# go-plugin's PluginLogBufferSize, and hclog's longest line: what is longer is no JSON any more.
LOG_BUFFER_BYTES = 64 * 1024
# A line in pieces of a few bytes is no log; a buffer of more than this is a mistake of units.
LOG_BUFFER_BYTES_MIN = 256
LOG_BUFFER_BYTES_MAX = 64 << 20
# blocks() without any progress for this long: the reader holds on to them, and an error that names it helps more than waiting.
BLOCKS_TIMEOUT_S = 10.0


class ByteSink(Protocol):
    """What takes a plugin's output as bytes: a binary file, ``sys.stderr.buffer``."""

    def write(self, data: bytes, /) -> object: ...


@dataclasses.dataclass(frozen=True, slots=True)
class HandshakeConfig:
    """go-plugin's HandshakeConfig: what tells host and plugin that they belong together. It is no security measure.

    Args:
        protocol_version: application protocol version (>= 0).
        magic_cookie_key: name of the environment variable that the host sets.
        magic_cookie_value: its value.
    """

    protocol_version: int
    magic_cookie_key: str
    magic_cookie_value: str

    def __post_init__(self) -> None:
        if not self.magic_cookie_key or not self.magic_cookie_value:
            raise ConfigError("HandshakeConfig needs a magic_cookie_key and a magic_cookie_value; both are empty or one is")
        if "=" in self.magic_cookie_key or "\0" in self.magic_cookie_key + self.magic_cookie_value:
            raise ConfigError("magic_cookie_key must be the name of an environment variable: no '=' and no NUL in it")
        if self.protocol_version < 0:
            raise ConfigError(f"protocol_version must not be negative, got {self.protocol_version}")


# docs/wire.md, "The line".
DEFAULT_HANDSHAKE = HandshakeConfig(1, "FASTPLUG_PLUGIN", "8b0b7a2c-5f0e-4a3e-9d51-6c0f6c3a7e11")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """One side of a TLS connection, as certificates and a name (go-plugin: ``tls.Config``). A neutral record: it can be sent to the
    process that does the work, and belongs to no TLS library.

    Args:
        certificate_pem: the own certificate, with what signed it behind it. Only a host may have none.
        key_pem: its private key, without a passphrase.
        trusted_pem: the certificates that the peer's must be, or be signed by. System roots are never asked.
        peer_certificate_der: where it is given, the peer's certificate must be this one.
        server_name: what a connecting side asks for; the listening side's certificate must be for it.
        client_certificate_required: a listening side without it talks to everybody who can reach its socket.

    Raises:
        ConfigError: a part is missing without which the connection would not be authenticated.
    """

    certificate_pem: bytes = b""
    key_pem: bytes = dataclasses.field(default=b"", repr=False)
    trusted_pem: bytes = b""
    peer_certificate_der: bytes = b""
    server_name: str = "localhost"
    client_certificate_required: bool = True

    def __post_init__(self) -> None:
        if bool(self.certificate_pem) != bool(self.key_pem):
            raise ConfigError("Tls needs certificate_pem and key_pem together, or neither")
        if not self.server_name:
            raise ConfigError("Tls needs a server_name: a connecting side checks the certificate of its peer against it")


def _known_curve(curve: str) -> None:
    if curve not in CURVES:
        raise ConfigError(f"there is no curve {curve!r} for certificates; choose one of {', '.join(CURVES)}")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class UnixSocketConfig:
    """Where plugins make their Unix sockets, and who else may connect (go-plugin: UnixSocketConfig).

    Args:
        group: name or number of the group that the plugin gives its socket to, mode 0660; the plugin's user has to be in it. The directory
            gets it, too, mode 0770. None leaves both to the user alone (0600, 0700).
        temp_dir: where the directory for the sockets is made; by default where Python makes temporary files. A socket's path may have 107
            bytes, so it has to be a short one.
    """

    group: str | None = None
    temp_dir: str | PathLike[str] | None = None

    def __post_init__(self) -> None:
        if self.group is not None and (not self.group or "\0" in self.group):
            raise ConfigError(f"UnixSocketConfig(group=) is the name or number of a group, got {self.group!r}")


def _check_workers(count: object) -> None:
    if not isinstance(count, int) or not 1 <= count <= WORKERS_MAX:
        raise ConfigError(f"workers must be a number from 1 to {WORKERS_MAX}, got {count!r}")


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ConfigError(f"{name} must be positive, got {value!r}")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """How to start one plugin and talk to it (go-plugin: ClientConfig). ``fastplug.start`` takes the same names.

    Args:
        target: a script, an argv, an entry point, a program on PATH, or ``module:Class`` for in-process.
        handshake: cookie and application version.
        plugins: what may be dispensed by name; interfaces need no entry.
        versioned_plugins: application version -> plugin set. The handshake's version is offered beside them only if ``plugins`` is given.
        transport: "auto" negotiates; the others force one, and the handshake fails when the plugin cannot.
        allowed_protocols: protocols a plugin may answer with.
        python: interpreter, or virtual environment directory, that runs a ``.py`` target.
        env: added to the inherited environment, and wins over it (in go-plugin the host's own wins).
        inherit_env: False starts from an empty environment (go-plugin: SkipHostEnv).
        stdin: an open file or descriptor for the plugin's stdin; by default the host's own, as in go-plugin.
        cwd: working directory of the plugin.
        name: for logs and errors; by default the file or program name.
        start_timeout_s, connect_timeout_s, stop_timeout_s: bounds in seconds.
        arena_limit_bytes: most shared memory that this handle may use; by default half of what the machine or cgroup allows.
        arena: a ``fastplug.Arena`` to lend from, shared with the other clients that it is given to; instead of ``arena_limit_bytes``.
        workers: in-process targets only: what ``serve(workers=...)`` is for a process.
        strict_zero_copy: raise CopyRequired instead of copying an array of 1 KiB or more.
        logger: where the plugin's output goes; by default ``fastplug.plugin.<name>``.
        sync_stdout, sync_stderr: get what a plugin over gRPC prints, byte by byte, on a thread of their own (go-plugin: SyncStdout,
            SyncStderr). Without them it is logged.
        auto_mtls: host and plugin make one-time certificates and let nobody else in (go-plugin: AutoMTLS). Over the fast protocol the
            connection is private as it is.
        mtls_curve: of the one-time certificate: "P-256", "P-384" or "P-521", which go-plugin itself uses.
        tls: own certificates instead, for a plugin that has them (go-plugin: TLSConfig); gRPC is then the only protocol.
        grpc_engine: what carries gRPC: "auto" or an engine's name ("grpcio").
        grpc_dial_options: as for ``grpc.insecure_channel``, for ``client.channel``; they win over fastplug's own.
        grpc_broker_multiplex: one socket carries the main connection and all brokered ones (go-plugin: GRPCBrokerMultiplex); gRPC is then
            the only protocol, and a plugin that cannot do it is refused.
        broker_timeout_s: how long ``client.broker`` waits for the plugin, in seconds (go-plugin: 5).
        stderr: gets a copy of all that the plugin writes to stderr, byte by byte (go-plugin: Stderr). It is called on the thread that
            drains the plugin: one that blocks holds up this plugin's log, and one that raises is not called again.
        log_buffer_bytes: longest line of a plugin's log; a longer one comes in pieces (go-plugin: PluginLogBufferSize).
        min_port, max_port: where a plugin that listens on TCP may listen; 0 and 0 for any port.
        unix_socket: directory and group of the plugin's Unix sockets.
        secure: what the plugin's file must be. See SecureConfig.
        managed: ended by ``cleanup_clients()``, at the exit of the interpreter, and when this process is killed. False leaves it running
            then, as go-plugin does by default; a fastplug plugin has to be served with ``on_host_exit="stay"`` for that.
        runner: makes what starts the process. See Runner.
        reattach: the plugin runs already; ``target`` is then None. See ReattachConfig.
        reattach_runner: finds a running plugin that has no process on this machine (go-plugin: ReattachFunc).
    """

    target: Target | None = None
    handshake: HandshakeConfig = DEFAULT_HANDSHAKE
    plugins: PluginSet | None = None
    versioned_plugins: Mapping[int, PluginSet] | None = None
    transport: Transport = "auto"
    allowed_protocols: Sequence[str] = ("fast", "grpc")
    python: str | PathLike[str] | None = None
    env: Mapping[str, str] | None = None
    inherit_env: bool = True
    cwd: str | PathLike[str] | None = None
    name: str | None = None
    start_timeout_s: float = START_TIMEOUT_S
    connect_timeout_s: float = CONNECT_TIMEOUT_S
    stop_timeout_s: float = STOP_TIMEOUT_S
    arena_limit_bytes: int | None = None
    arena: Any = None  # typed in fastplug.Options; what configures imports nothing of what it configures
    strict_zero_copy: bool = False
    workers: int = 1
    logger: logging.Logger | None = None
    stdin: Any = None
    stderr: ByteSink | None = None
    log_buffer_bytes: int = LOG_BUFFER_BYTES
    min_port: int = MIN_PORT
    max_port: int = MAX_PORT
    unix_socket: UnixSocketConfig | None = None
    secure: SecureConfig | None = None
    managed: bool = True
    runner: Callable[..., Any] | None = None
    sync_stdout: ByteSink | None = None
    sync_stderr: ByteSink | None = None
    auto_mtls: bool = False
    mtls_curve: Curve = "P-256"
    tls: Tls | None = None
    grpc_engine: str = "auto"
    grpc_dial_options: Sequence[tuple[str, Any]] = ()
    grpc_broker_multiplex: bool = False
    broker_timeout_s: float = BROKER_TIMEOUT_S
    reattach: ReattachConfig | None = None
    reattach_runner: Callable[[ReattachConfig], Any] | None = None

    def __post_init__(self) -> None:
        self._check_how()
        _check_workers(self.workers)
        if not 0 <= self.min_port <= self.max_port <= 65535:
            raise ConfigError(f"min_port and max_port are a range of ports from 0 to 65535, got {self.min_port!r} and {self.max_port!r}")
        if not LOG_BUFFER_BYTES_MIN <= self.log_buffer_bytes <= LOG_BUFFER_BYTES_MAX:
            raise ConfigError(
                f"log_buffer_bytes must be from {LOG_BUFFER_BYTES_MIN} to {LOG_BUFFER_BYTES_MAX}, got {self.log_buffer_bytes!r}"
            )
        if self.transport not in TRANSPORTS:
            raise ConfigError(f"transport must be one of {', '.join(TRANSPORTS)}; got {self.transport!r}")
        for name in ("start_timeout_s", "connect_timeout_s", "stop_timeout_s", "broker_timeout_s"):
            _positive(name, getattr(self, name))
        self._check_memory()
        self._check_grpc()
        unknown = sorted(set(self.allowed_protocols) - {"fast", "grpc", "netrpc"})
        if unknown or not self.allowed_protocols:
            raise ConfigError(f"allowed_protocols takes fast, grpc and netrpc; got {list(self.allowed_protocols)}")
        # The environment of a process cannot hold a NUL, and a name cannot hold '='.
        for key, value in (self.env or {}).items():
            if not key or "=" in key or "\0" in key + value:
                raise ConfigError(f"env maps names to values, without NUL or '=' in names; got {key!r}: {value!r}")

    def _check_grpc(self) -> None:
        over_grpc = self.transport in ("auto", "grpc") and "grpc" in self.allowed_protocols
        if self.tls is not None and self.auto_mtls:
            raise ConfigError("auto_mtls makes certificates, tls= gives them: use one of the two")
        if self.tls is not None and not over_grpc:
            raise ConfigError("tls= is for plugins over gRPC: allow it (transport=, allowed_protocols=)")
        if self.grpc_broker_multiplex and not over_grpc:
            raise ConfigError("grpc_broker_multiplex is for plugins over gRPC: allow it (transport=, allowed_protocols=)")
        _known_curve(self.mtls_curve)

    def _check_memory(self) -> None:
        if self.arena is not None and not hasattr(self.arena, "memory"):
            raise ConfigError(f"arena takes a fastplug.Arena, got {type(self.arena).__qualname__}")
        if self.arena_limit_bytes is not None:
            _positive("arena_limit_bytes", self.arena_limit_bytes)
            if self.arena is not None:
                raise ConfigError("arena and arena_limit_bytes were both given; an Arena has a limit of its own: Arena(limit_bytes=...)")

    def _check_how(self) -> None:
        """To start or to attach. The texts are go-plugin's where it has some."""
        if (self.target is None) == (self.reattach is None):
            raise ConfigError("exactly one of target, or reattach must be set: what to start, or what runs already")
        if self.reattach is None:
            if self.reattach_runner is not None:
                raise ConfigError("reattach_runner= finds a plugin that reattach= describes; there is no reattach=")
            return
        if self.auto_mtls:
            raise ConfigError(
                "auto_mtls cannot be used with reattach=: its certificates are made for one start. Give certificates with tls="
            )
        if self.grpc_broker_multiplex:
            raise ConfigError(
                "gRPC broker multiplexing is not supported with Reattach config: a plugin takes one connection, of its first host"
            )
        if self.secure is not None:
            raise ConfigError("only one of Reattach or SecureConfig can be set: the file of a running plugin cannot be checked any more")
        if self.runner is not None:
            raise ConfigError("runner= starts a plugin, reattach= names one that runs: give one of them (or reattach_runner=)")
        if self.transport not in ("auto", "grpc"):
            raise ConfigError(f"a running plugin is attached to over its listener, not with transport={self.transport!r}")

    def offered_versions(self) -> dict[int, PluginSet]:
        """Application version -> plugin set, as go-plugin makes it: ``plugins`` is the handshake's version, unless that is versioned."""
        versions = dict(self.versioned_plugins or {})
        if self.plugins is not None or not versions:
            versions.setdefault(self.handshake.protocol_version, self.plugins or {})
        return versions


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServeTestConfig:
    """Serves without a host, for tests and debuggers (go-plugin: ServeTestConfig). No cookie is asked for, no line is printed, stdout,
    logging and signals stay as they are; gRPC is spoken.

    Args:
        ready: called once with the ReattachConfig under which the plugin is reached.
        cancel: ends ``serve()`` when it is set; None serves until the process ends or, in the main thread, Ctrl-C.
    """

    ready: Callable[[ReattachConfig], object]
    cancel: threading.Event | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """What a plugin serves (go-plugin: ServeConfig). ``fastplug.serve`` takes the same names.

    Args:
        plugins: name -> Plugin; ``serve(implementation)`` makes one entry per interface.
        versioned_plugins: application version -> plugin set.
        handshake: cookie and application version.
        workers: handlers at a time, 1 to 16. With 1 they run one after another on the main thread; with more, also on threads of their own.
        on_host_exit: "stop" ends the plugin when its host is gone; "stay" keeps it running.
        arena_limit_bytes: most shared memory for results.
        tls_provider: returns own certificates, with which hosts are met instead of one-time ones (go-plugin: TLSProvider); gRPC is then the
            only protocol, and AutoMTLS is not answered.
        mtls_curve: of the one-time certificate that answers a host's AutoMTLS: "P-256", "P-384" or "P-521".
        grpc_engine: what carries gRPC: "auto" or an engine's name ("grpcio").
        sync_fds: a host that streams stdout and stderr (all of go-plugin do) gets what is printed in Python; True: also what C code and
            children write to descriptors 1 and 2.
        grpc_interceptors, grpc_options: as for ``grpc.server``; they see the calls of fastplug's own services, too.
        broker_timeout_s: how long a ``GRPCBroker`` waits for the host, in seconds (go-plugin: 5).
        network: where a plugin that speaks gRPC listens: "unix", or "tcp" on 127.0.0.1 in the host's port range, which any user of the
            machine can reach.
        test: serve without a host. See ServeTestConfig.
    """

    plugins: PluginSet | None = None
    versioned_plugins: Mapping[int, PluginSet] | None = None
    handshake: HandshakeConfig = DEFAULT_HANDSHAKE
    workers: int = 1
    on_host_exit: OnHostExit = "stop"
    arena_limit_bytes: int | None = None
    tls_provider: Callable[[], Tls] | None = None
    mtls_curve: Curve = "P-256"
    grpc_engine: str = "auto"
    sync_fds: bool = False
    grpc_interceptors: Sequence[Any] = ()
    grpc_options: Sequence[tuple[str, Any]] = ()
    broker_timeout_s: float = BROKER_TIMEOUT_S
    network: Network = "unix"
    test: ServeTestConfig | None = None

    def __post_init__(self) -> None:
        _positive("broker_timeout_s", self.broker_timeout_s)
        _known_curve(self.mtls_curve)
        if self.network not in ("unix", "tcp"):
            raise ConfigError(f"network must be 'unix' or 'tcp', got {self.network!r}")
        _check_workers(self.workers)
        if self.on_host_exit not in ("stop", "stay"):
            raise ConfigError(f"on_host_exit must be 'stop' or 'stay', got {self.on_host_exit!r}")
        if self.arena_limit_bytes is not None:
            _positive("arena_limit_bytes", self.arena_limit_bytes)

    def served_versions(self) -> dict[int, PluginSet]:
        """Application version -> plugin set."""
        versions = dict(self.versioned_plugins or {})
        if self.plugins is not None or not versions:
            versions.setdefault(self.handshake.protocol_version, self.plugins or {})
        return versions
