"""What a plugin announces and what a host makes of it: interfaces by index. Shared by the protocols that use the fast codec."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fastplug._wire import MethodCodec
from fastplug.errors import RemoteProtocolError
from fastplug.interfaces import check_implementation
from fastplug.protocols._call import Caller, Remote
from fastplug.protocols.handle import absent_method, make_handle
from fastplug.signature import InterfaceDescription, check_offer, checked_description, describe_interface, offered_index

if TYPE_CHECKING:
    from fastplug.interfaces import Interface

__all__ = ["announced", "dispensed", "handlers", "offered"]

# A frame counts interfaces in 16 bits; nobody reads a plugin with a thousand.
INTERFACES_MAX = 1024

Served = Sequence[tuple["Interface", Any]]


def announced(served: Served) -> list[InterfaceDescription]:
    """The ``interfaces`` of HELLO: each with the methods that its implementation has, in the order in which frames count them."""
    return [describe_interface(interface, check_implementation(implementation, interface)) for interface, implementation in served]


def handlers(served: Served) -> list[list[tuple[MethodCodec, Callable[..., Any]]]]:
    """Codec and bound method, in the same order."""
    return [
        [
            (MethodCodec(interface.name, method), getattr(implementation, method.name))
            for method in check_implementation(implementation, interface)
        ]
        for interface, implementation in served
    ]


def offered(value: object) -> list[InterfaceDescription]:
    """What a plugin announced, checked. Raises RemoteProtocolError."""
    if not isinstance(value, list) or len(value) > INTERFACES_MAX:
        raise RemoteProtocolError(
            f"the plugin announced its interfaces as {type(value).__name__}; wanted a list of at most {INTERFACES_MAX}"
        )
    return [checked_description(one) for one in value]


def dispensed(interface: Interface, offers: Sequence[InterfaceDescription], caller: Caller, about: str) -> Any:
    """A handle over ``caller``. Raises InterfaceMismatch."""
    index = offered_index(interface, offers)
    places = check_offer(interface, offers[index])
    methods: dict[str, Callable[..., Any]] = {}
    for method in interface.methods:
        place = places[method.name]
        if place is None:
            methods[method.name] = absent_method(interface, method)
        else:
            methods[method.name] = Remote(caller, MethodCodec(interface.name, method), index, place, method.doc, method.signature)
    return make_handle(interface, methods, about)
