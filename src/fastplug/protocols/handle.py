"""Handles: what ``dispense`` gives. An object with the interface's methods, each bound to one connection.

The methods are instance attributes, so that a call goes straight to its callable; the class carries plain functions of the same
names, so that help() and isinstance() tell the truth.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from fastplug.errors import ConfigError, InterfaceMismatch, LocalProtocolError
from fastplug.signature import describe, method_text

if TYPE_CHECKING:
    from fastplug.interfaces import Interface, Method

__all__ = ["Handle", "RemoteMethod", "absent_method", "iterated_already", "make_handle", "returns_a_stream"]


class Handle:
    """Base of all handles. Usable from any thread; not picklable (a ``fastplug.Spec`` is)."""

    _fastplug_interface: Interface
    _fastplug_client: Any = None
    _fastplug_about: str = ""

    def __repr__(self) -> str:
        return f"<fastplug handle {self._fastplug_interface.name} of {self._fastplug_client or self._fastplug_about}>"

    def __reduce__(self) -> Any:
        raise TypeError("a live handle cannot be pickled; pickle a fastplug.Spec and open it where it is needed")

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._fastplug_client is not None:
            self._fastplug_client.kill()


class RemoteMethod(abc.ABC):
    """What the methods of handles have in common, whatever carries their calls. Each protocol registers its own class."""

    @abc.abstractmethod
    def submit(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A Call of this method, for ``fastplug.submit``."""

    @abc.abstractmethod
    def mapped(self, iterables: tuple[Iterable[Any], ...], in_flight: int, ordered: bool, goes_on: bool) -> Any:
        """The Results of many calls, for ``fastplug.map``: one iterable for each argument. ``goes_on``: behind a failure."""


def returns_a_stream(qualified: str) -> ConfigError:
    """For whoever submits or maps such a method."""
    return ConfigError(f"{qualified} returns a stream: call it and iterate; it does not wait for the plugin either")


def iterated_already(what: str) -> LocalProtocolError:
    """For whoever asks a map or a stream for its next item while somebody waits for that."""
    return LocalProtocolError(
        f"this {what} is already being iterated, by another thread or task, or further up on this one (from a signal handler); "
        "one at a time takes its items, and any may close it"
    )


def absent_method(interface: Interface, method: Method) -> Callable[..., Any]:
    """Stands for an ``@optional`` method that the plugin lacks."""
    expected = method_text(describe(method))

    def absent(*args: object, **kwargs: object) -> Any:
        raise InterfaceMismatch(
            f"this plugin does not have the optional method {interface.name}.{method.name}; expected {expected}, got nothing. "
            "Catch InterfaceMismatch, or use a plugin that has it.",
            interface=interface.name,
            method=method.name,
            expected=expected,
            got=None,
        )

    return absent


@functools.lru_cache(maxsize=256)
def _handle_class(interface: Interface) -> type[Handle]:
    """One class per interface; a subclass of the interface's class, so that isinstance works."""
    namespace: dict[str, Any] = {
        "__module__": interface.cls.__module__,
        "__doc__": interface.cls.__doc__,
        "__init__": object.__init__,
        "_fastplug_interface": interface,
    }
    for method in interface.methods:
        namespace[method.name] = _face(method)
    cls = type(interface.cls)(interface.cls.__name__, (Handle, interface.cls), namespace)
    assert issubclass(cls, Handle)
    return cls


def _face(method: Method) -> Callable[..., Any]:
    def face(self: Handle, *args: object, **kwargs: object) -> Any:
        return vars(self)[method.name](*args, **kwargs)

    face.__name__ = face.__qualname__ = method.name
    face.__doc__ = method.doc
    setattr(face, "__signature__", _with_self(method))  # noqa: B010  no static attribute of a function
    return face


def _with_self(method: Method) -> Any:
    import inspect

    rest = list(method.signature.parameters.values())
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    own = inspect.Parameter("self", min([kind, *(parameter.kind for parameter in rest)]))  # nothing positional-only may follow
    return method.signature.replace(parameters=[own, *rest])


def make_handle(interface: Interface, methods: Mapping[str, Callable[..., Any]], about: str) -> Any:
    """A handle whose methods are ``methods``. ``about`` is for repr() until a client adopts it."""
    handle = _handle_class(interface)()
    handle._fastplug_about = about
    vars(handle).update(methods)
    return handle
