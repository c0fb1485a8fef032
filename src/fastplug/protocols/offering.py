"""What a plugin announces and what a host makes of it: interfaces by index. Shared by the protocols that use the fast codec."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fastplug._wire import MethodCodec
from fastplug.annotation import Kind, has_references
from fastplug.errors import RemoteProtocolError
from fastplug.interfaces import check_implementation
from fastplug.protocols._call import Caller
from fastplug.protocols._callbacks import serve_callbacks
from fastplug.protocols._inline import DeferredPort
from fastplug.protocols._pool import Pool
from fastplug.protocols._remote import Remote
from fastplug.protocols.handle import absent_method, make_handle
from fastplug.signature import InterfaceDescription, check_offer, checked_description, describe_interface, offered_index

if TYPE_CHECKING:
    from fastplug._wire import Link
    from fastplug.interfaces import Interface, Method
    from fastplug.protocols._callbacks import Registry

__all__ = ["announced", "callback_thread", "dispensed", "end_callbacks", "handlers", "offered", "passes_callbacks"]

# A frame counts interfaces in 16 bits; nobody reads a plugin with a thousand.
INTERFACES_MAX = 1024
# A callback in hand when the connection is closed may take this long.
CALLBACK_TIMEOUT_S = 1.0

Served = Sequence[tuple["Interface", Any]]


def _methods(interface: Interface, implementation: Any, references: bool) -> list[Method]:
    return [method for method in check_implementation(implementation, interface) if references or not method.has_references]


def announced(served: Served, *, references: bool = True) -> list[InterfaceDescription]:
    """The ``interfaces`` of HELLO: each with the methods that its implementation has, in the order in which frames count them.

    ``references``: with those that have streams and callbacks.
    """
    return [describe_interface(interface, _methods(interface, implementation, references)) for interface, implementation in served]


def handlers(served: Served, *, references: bool = True) -> list[list[tuple[MethodCodec, Callable[..., Any]]]]:
    """Codec and bound method, in the same order."""
    return [
        [
            (MethodCodec(interface.name, method), getattr(implementation, method.name))
            for method in _methods(interface, implementation, references)
        ]
        for interface, implementation in served
    ]


def passes_callbacks(interface: Interface) -> bool:
    """Whether a host that uses this interface can be called back."""
    nodes = [parameter.node for method in interface.methods for parameter in method.parameters]
    return any(has_references(node) and node.kind is not Kind.STREAM for node in nodes)


def callback_thread(link: Link, registry: Registry, name: str) -> threading.Thread:
    """The host's thread that serves the callback link."""
    thread = threading.Thread(target=serve_callbacks, args=(link, DeferredPort(), registry), name=f"fastplug callbacks {name}", daemon=True)
    thread.start()
    return thread


def end_callbacks(thread: threading.Thread | None) -> bool:
    """After the end of its link: whether the thread has ended. One in a callback that does not return is left behind as a daemon."""
    if thread is not None and thread is not threading.current_thread():
        thread.join(CALLBACK_TIMEOUT_S)
        return not thread.is_alive()
    return thread is None


def offered(value: object) -> list[InterfaceDescription]:
    """What a plugin announced, checked. Raises RemoteProtocolError."""
    if not isinstance(value, list) or len(value) > INTERFACES_MAX:
        raise RemoteProtocolError(
            f"the plugin announced its interfaces as {type(value).__name__}; wanted a list of at most {INTERFACES_MAX}"
        )
    return [checked_description(one) for one in value]


class AwaitedRemote(Remote):
    """A method that is declared ``async def``: calling it gives a coroutine, and awaiting that makes the call."""

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return await self.submit(args, kwargs)


def dispensed(interface: Interface, offers: Sequence[InterfaceDescription], caller: Caller | Pool, about: str) -> Any:
    """A handle over ``caller``, or over the lanes of a connection. Raises InterfaceMismatch."""
    index = offered_index(interface, offers)
    places = check_offer(interface, offers[index])
    methods: dict[str, Callable[..., Any]] = {}
    for method in interface.methods:
        place = places[method.name]
        if place is None:
            methods[method.name] = absent_method(interface, method)
        else:
            kind = AwaitedRemote if method.asynchronous else Remote
            methods[method.name] = kind(caller, MethodCodec(interface.name, method), index, place, method.doc, method.signature)
    return make_handle(interface, methods, about)
