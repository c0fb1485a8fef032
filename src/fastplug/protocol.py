"""The seam between the roles and the protocols (go-plugin: protocol.go).

Every plugin takes the same road: Runner.start -> handshake line -> negotiation -> Protocol.connect -> ClientProtocol. A protocol is one
module or folder under ``protocols/`` that exports one record ``PROTOCOL``; it is imported when it is first needed, and knows no other.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from typing import Protocol as Structural

from fastplug.errors import UnsupportedProtocol

if TYPE_CHECKING:
    import socket

    import numpy.typing as npt

    from fastplug.config import ClientConfig, ServeConfig, Tls
    from fastplug.interfaces import Interface
    from fastplug.plugin import PluginSet

__all__ = ["ClientProtocol", "HostContext", "PluginContext", "Protocol", "ServerProtocol", "protocol_named"]


Translate = Callable[[str, str], tuple[str, str]]


def same_address(network: str, address: str) -> tuple[str, str]:
    """Host and plugin see the same addresses."""
    return network, address


@dataclasses.dataclass(slots=True, kw_only=True)
class HostContext:
    """What the client hands to ``Protocol.connect``.

    Attributes:
        config: the client's configuration.
        name: the plugin's name, for errors.
        network, address: fields 3 and 4 of the handshake line (empty for in-process).
        control: the host's end of the control socket when an offer was made; the protocol owns it from here on.
        tls: how to connect; None for no TLS.
        socket_dir: where the host may make sockets for the plugin; goes with the plugin. None: the temporary directory.
        plugin_to_host, host_to_plugin: network and address as the other side sees them; for the addresses of the broker. They differ
            only with a runner that is an AddressTranslator.
        pid: of the plugin; None when it is not known or there is none.
        lost: builds the error for a connection that ended: called with the method in flight or None, returns PluginDied,
            ConnectionLost or Closed.
            It may wait (bounded) for the process to be reaped, so that the exit code is in the text.
        implementations: in-process only: what the target named.
    """

    config: ClientConfig
    name: str
    network: str = ""
    address: str = ""
    control: socket.socket | None = None
    tls: Tls | None = None
    socket_dir: str | None = None
    pid: int | None = None
    plugin_to_host: Translate = same_address
    host_to_plugin: Translate = same_address
    lost: Callable[[str | None], Exception]
    implementations: Sequence[tuple[Interface, Any]] = ()


@dataclasses.dataclass(slots=True, kw_only=True)
class PluginContext:
    """What ``serve`` hands to ``Protocol.serve``.

    Attributes:
        config: the plugin's configuration.
        interfaces: interface and implementation, in the order they are announced.
        tls: how to meet hosts; None for no TLS.
        stdio: what is printed, for gRPC's stream of it; None when the host gets it by the log.
        multiplex: one socket is to carry all gRPC connections, brokered ones too (PLUGIN_MULTIPLEX_GRPC).
        plugins: the whole set that is served; what has no interface is for gRPC.
        socket_dir, socket_group: where to make Unix sockets, and for which group (PLUGIN_UNIX_SOCKET_DIR, _GROUP).
        ports: where to listen with ``config.network="tcp"`` (PLUGIN_MIN_PORT, _MAX_PORT); (0, 0) for any port.
        control: the plugin's end of the control socket when the offer was honoured; the protocol owns it from here on.
        transport, version: of the fast protocol, as chosen.
    """

    config: ServeConfig
    interfaces: Sequence[tuple[Interface, Any]]
    tls: Tls | None = None
    stdio: Any = None
    multiplex: bool = False
    plugins: PluginSet = dataclasses.field(default_factory=dict)
    socket_dir: str | None = None
    socket_group: str | None = None
    ports: tuple[int, int] = (0, 0)
    control: socket.socket | None = None
    transport: str = ""
    version: int = 0


class ClientProtocol(Structural):
    """The host's end of a connection. Methods may be called from any thread unless they say otherwise."""

    transport: str

    def dispense(self, interface: Interface) -> Any:
        """An object with the interface's methods. Raises InterfaceMismatch."""

    def ping(self, timeout_s: float) -> None:
        """Returns when the plugin answered. Raises DeadlineExceeded, PluginDied, Closed."""

    def request_stop(self, failed: Callable[[], None]) -> None:
        """Asks the plugin to finish and exit (go-plugin: Quit, Controller.Shutdown). Does not wait.

        ``failed`` is called, once, from any thread and at any time, when the plugin cannot be asked: the connection is gone, or the plugin
        does not know the request.
        """

    def peer_exited(self) -> None:
        """Told by the client that the process is gone: every waiting call ends with ``context.lost``."""

    def close(self) -> None:
        """Ends the connection and frees its resources. Idempotent."""

    def stats(self) -> dict[str, Any]:
        """Counters since the connection was made."""
        ...

    def empty(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """An uninitialised C-ordered array that this transport sends without a copy, where it can. Raises what a call would."""
        ...

    def blocks(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike, count: int, timeout_s: float) -> Any:
        """An endless iterator over ``count`` such arrays, each given out again when no reader has it."""


class ServerProtocol(Structural):
    """The plugin's end."""

    network: str
    address: str

    def run(self) -> None:
        """Serves until the host asks for the end, or is gone. Called on the main thread."""

    def stop(self) -> None:
        """Any thread: the call in hand is finished, then run() returns."""

    def close(self) -> None:
        """Frees what ``serve`` made. Idempotent."""


@dataclasses.dataclass(frozen=True, slots=True)
class Protocol:
    """One protocol: how a host connects with it and how a plugin serves it."""

    name: str
    connect: Callable[[HostContext], ClientProtocol]
    serve: Callable[[PluginContext], ServerProtocol]


# Imported when first needed: grpcio alone costs 70 ms. netrpc has its name in go-plugin's line, and no module yet.
_MODULES = {
    "fast": "fastplug.protocols.fast",
    "grpc": "fastplug.protocols.grpc",
    "inproc": "fastplug.protocols.inproc",
}


def protocol_named(name: str) -> Protocol:
    """The record of a protocol. Raises UnsupportedProtocol for a name without one."""
    module = _MODULES.get(name)
    if module is None:
        raise UnsupportedProtocol(f"the plugin speaks {name!r}; this fastplug speaks {', '.join(_MODULES)}. Use a plugin that serves gRPC.")
    record: Protocol = importlib.import_module(module).PROTOCOL
    return record
