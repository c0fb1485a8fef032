"""What can be dispensed: a Plugin, and a set of them by name (go-plugin: Plugin, PluginSet)."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from fastplug.errors import ConfigError

if TYPE_CHECKING:
    from fastplug.interfaces import Interface

__all__ = ["InterfacePlugin", "Plugin", "PluginSet", "served_interfaces", "set_up"]

T = TypeVar("T")


class Plugin:
    """Base of everything that stands in a PluginSet. Which protocols can carry it is decided by its subclass."""

    __slots__ = ()


@dataclasses.dataclass(frozen=True)
class InterfacePlugin(Plugin, Generic[T]):
    """A fastplug interface and, on the plugin's side, its implementation. Every protocol carries it.

    Args:
        iface: the class decorated with ``@fastplug.interface``.
        implementation: an instance that implements it; None on the host's side.
    """

    iface: Callable[..., T]
    implementation: object = None  # not T: mypy would then take T from here, and refuse the interface

    @property
    def interface(self) -> Interface:
        from fastplug.interfaces import interface_of

        return interface_of(self.iface)


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
