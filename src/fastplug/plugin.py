"""What can be dispensed: a Plugin, and a set of them by name (go-plugin: Plugin, PluginSet)."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import FunctionType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from fastplug.errors import ConfigError

if TYPE_CHECKING:
    from fastplug.broker import GRPCBroker
    from fastplug.interfaces import Interface

__all__ = ["GRPCPlugin", "InterfacePlugin", "Plugin", "PluginSet", "grpc_plugin", "made_servicer", "served_interfaces", "set_up"]

T = TypeVar("T")


class Plugin:
    """Base of everything that stands in a PluginSet.

    Attributes: ``protocols``: the names of those that can carry it, preferred first; its subclass decides.
    """

    __slots__ = ()
    protocols: ClassVar[tuple[str, ...]] = ()


@dataclasses.dataclass(frozen=True)
class InterfacePlugin(Plugin, Generic[T]):
    """A fastplug interface and, on the plugin's side, its implementation. Every protocol carries it.

    Args:
        iface: the class decorated with ``@fastplug.interface``.
        implementation: an instance that implements it; None on the host's side.
    """

    protocols = ("fast", "grpc")

    iface: Callable[..., T]
    implementation: object = None  # not T: mypy would then take T from here, and refuse the interface

    @property
    def interface(self) -> Interface:
        from fastplug.interfaces import interface_of

        return interface_of(self.iface)


class GRPCPlugin(Plugin):
    """A service with a .proto of its own, for hosts and plugins in any language (go-plugin: GRPCPlugin).

    Derive from it, or use ``grpc_plugin``. Only gRPC carries it: a plugin whose set has one does not take the offer of the fast protocol.
    """

    protocols = ("grpc",)
    descriptor_pool: Any = None
    """Where the plugin's reflection finds what its services are, if that is not protobuf's default pool."""

    def grpc_server(self, broker: GRPCBroker, server: Any) -> None:
        """The plugin's side: adds its servicers to ``server``, which generated ``add_*_to_server`` functions take for a grpc.Server.
        Their methods are called on threads of the engine, several at a time."""
        raise ConfigError(f"{type(self).__qualname__} has no grpc_server(): it can be dispensed, and not served")

    def grpc_client(self, broker: GRPCBroker, channel: Any) -> Any:
        """The host's side: what ``client.dispense(name)`` gives, made over ``channel``, a grpc.Channel."""
        raise ConfigError(f"{type(self).__qualname__} has no grpc_client(): it can be served, and not dispensed")


class _Servicer(GRPCPlugin):
    """What grpc_plugin() makes."""

    __slots__ = ("_add", "_servicer", "_stub")

    def __init__(self, add: Callable[[Any, Any], object] | None, servicer: object, stub: Callable[[Any], Any] | None) -> None:
        self._add, self._servicer, self._stub = add, servicer, stub

    def grpc_server(self, broker: GRPCBroker, server: Any) -> None:
        if self._add is None:
            raise ConfigError("grpc_plugin(stub=...) alone can be dispensed, and not served: give it add_*_to_server and a servicer, too")
        self._add(made_servicer(self._servicer, broker), server)

    def grpc_client(self, broker: GRPCBroker, channel: Any) -> Any:
        if self._stub is None:
            raise ConfigError("grpc_plugin() without stub= can be served, and not dispensed: give it the generated ...Stub class")
        return self._stub(channel)


def made_servicer(servicer: object, broker: GRPCBroker) -> object:
    """The servicer; a class or a function is what makes it."""
    return servicer(broker) if isinstance(servicer, type | FunctionType | partial) else servicer


def grpc_plugin(
    add_to_server: Callable[[Any, Any], object] | None = None, servicer: object = None, *, stub: Callable[[Any], Any] | None = None
) -> GRPCPlugin:
    """A generated gRPC service as an entry of a plugin set.

    Args:
        add_to_server: the generated ``add_KVServicer_to_server``.
        servicer: ``KV()``; or its class, or a function, which is then called with the ``GRPCBroker`` and returns it.
        stub: for the host, the generated ``KVStub``: ``client.dispense(name)`` gives ``stub(client.channel)``.

    Raises:
        ConfigError: neither a side to serve nor one to dispense.
    """
    if (add_to_server is None) != (servicer is None) or (add_to_server is None and stub is None):
        raise ConfigError("grpc_plugin() takes add_*_to_server with its servicer, or stub=, or all three")
    return _Servicer(add_to_server, servicer, stub)


PluginSet = Mapping[str, Plugin]


def served_interfaces(plugins: PluginSet) -> list[tuple[Interface, Any]]:
    """Interface and implementation of each InterfacePlugin in the set, checked; the order is that of the set.

    Raises:
        ConfigError: no implementation, one that lacks a method, or one interface twice.
    """
    from fastplug.interfaces import check_implementation

    found: dict[str, tuple[Interface, Any]] = {}
    for name, plugin in plugins.items():
        if not isinstance(plugin, InterfacePlugin):
            continue
        interface = plugin.interface
        if plugin.implementation is None:
            raise ConfigError(
                f"plugin {name!r} is served without an implementation of {interface.name}; pass InterfacePlugin(iface, implementation)"
            )
        if interface.name in found:
            raise ConfigError(f"interface {interface.name} is served twice; one plugin process serves each interface once")
        check_implementation(plugin.implementation, interface)
        found[interface.name] = (interface, plugin.implementation)
    return list(found.values())


@contextlib.contextmanager
def set_up(served: Sequence[tuple[Interface, Any]]) -> Iterator[None]:
    """Enters each implementation that is a context manager, once, and leaves them in the end: the hooks for set-up and tear-down."""
    with contextlib.ExitStack() as stack:
        for implementation in {id(one): one for _, one in served}.values():
            if hasattr(type(implementation), "__enter__") and hasattr(type(implementation), "__exit__"):
                stack.enter_context(implementation)
        yield
