"""``@interface``: a Protocol or ABC becomes what host and plugin agree on, checked when it is declared."""

from __future__ import annotations

import abc
import dataclasses
import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from fastplug.annotation import INTERFACE_ATTRIBUTE, MISSING, Kind, Missing, TypeNode, has_references, resolve
from fastplug.errors import ConfigError, RemoteProtocolError
from fastplug.signature import checked_description, describe, describe_interface, is_interface_name, method_text

__all__ = [
    "Interface",
    "Method",
    "Parameter",
    "check_implementation",
    "interface",
    "interface_of",
    "interfaces_of",
    "is_asynchronous",
    "optional",
]

_C = TypeVar("_C", bound=type)
_F = TypeVar("_F", bound=Callable[..., Any])

_ATTRIBUTE = INTERFACE_ATTRIBUTE
_OPTIONAL = "__fastplug_optional__"
_NOT_OURS = frozenset({object, typing.Protocol, typing.Generic, abc.ABC})


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Parameter:
    """One parameter: ``name``, type ``node``, ``default`` (a value, or MISSING), and whether it is ``keyword_only``."""

    name: str
    node: TypeNode
    default: Any | Missing
    keyword_only: bool


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Method:
    """One method: ``index`` in the interface, ``parameters`` in order, ``returns``, and ``signature`` without self.

    ``asynchronous``: it is declared ``async def``, so that a handle's method gives something to await. It says nothing of the plugin.
    """

    name: str
    index: int
    parameters: tuple[Parameter, ...]
    returns: TypeNode
    optional: bool
    doc: str | None
    signature: inspect.Signature
    asynchronous: bool = False

    @property
    def has_references(self) -> bool:
        """Whether a stream or a callback is among its parameters and its result."""
        return any(has_references(node) for node in (self.returns, *(parameter.node for parameter in self.parameters)))


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Interface:
    """A declared interface: its ``name`` with the major number, the class, and its methods in order of definition."""

    name: str
    cls: type
    methods: tuple[Method, ...]

    def method(self, name: str) -> Method:
        """The method called ``name``. Raises ConfigError."""
        for method in self.methods:
            if method.name == name:
                return method
        known = ", ".join(method.name for method in self.methods) or "none"
        raise ConfigError(f"{self.name} has no method {name!r}; its methods: {known}")


def interface(name: str) -> Callable[[_C], _C]:
    """Declares a ``typing.Protocol`` (or an ABC) as the interface ``name``, such as "acme.dsp/1": a name and a major number.

    The class stays as it is; ``interface_of`` leads from it to its Interface. Raises ConfigError for a name of another form
    and for a method whose arguments or result cannot be carried, naming method and parameter.
    """
    if not is_interface_name(name):
        raise ConfigError(
            f'{name!r} is no interface name; write lower-case words joined by dots, a slash and the major number: "acme.dsp/1"'
        )

    def declare(cls: _C) -> _C:
        _check_class(name, cls)
        # Names that annotations in quotes may mean: those in reach where the interface is declared, also inside a function.
        frame = sys._getframe(1)
        methods = _Declaration(name, cls, frame.f_globals, dict(frame.f_locals)).methods()
        declared = Interface(name, cls, methods)
        try:
            checked_description(describe_interface(declared))  # what a peer would refuse is refused here
        except RemoteProtocolError as error:
            raise ConfigError(f"{name} cannot be described to a peer; make it smaller or flatter") from error
        setattr(cls, _ATTRIBUTE, declared)
        return cls

    return declare


def optional(method: _F) -> _F:
    """Marks a method of an interface that a plugin may lack. Calling it on such a plugin raises InterfaceMismatch.

    Type checkers take a Protocol's method with an empty body for abstract: give this one a body, such as a ``return``, if
    implementations without it should pass them. The body never runs.
    """
    setattr(method, _OPTIONAL, True)
    return method


def _check_class(name: str, cls: Any) -> None:
    if not isinstance(cls, type):
        raise ConfigError(f"{name}: @interface stands above a class, not {cls!r}")
    if _ATTRIBUTE in vars(cls):
        raise ConfigError(f"{name}: {cls.__qualname__} is the interface {vars(cls)[_ATTRIBUTE].name} already; declare one class for each")
    if getattr(cls, "_is_protocol", False):
        return
    if any(getattr(base, "_is_protocol", False) for base in cls.__mro__[1:] if base not in _NOT_OURS):
        raise ConfigError(f"{name}: {cls.__qualname__} only implements a Protocol; list typing.Protocol among its bases")
    if not isinstance(cls, abc.ABCMeta):
        raise ConfigError(f"{name}: {cls.__qualname__} must be a typing.Protocol or an abc.ABC; give it that base")


class _Declaration:
    """One run of ``@interface`` over one class."""

    def __init__(self, name: str, cls: type, globalns: dict[str, Any], localns: Mapping[str, Any]) -> None:
        self.name = name
        self.cls = cls
        self.globalns = globalns
        self.localns = localns
        self.memo: dict[type, TypeNode] = {}

    def methods(self) -> tuple[Method, ...]:
        found: dict[str, tuple[types.FunctionType, type]] = {}
        for owner in reversed([base for base in self.cls.__mro__ if base not in _NOT_OURS]):
            for name, member in _members(owner).items():
                self.check_member(name, member)
                if isinstance(member, types.FunctionType):
                    found[name] = (member, owner)
        methods = tuple(self.method(name, index, *found[name]) for index, name in enumerate(found))
        self.check_class_names()
        return methods

    def check_member(self, name: str, member: Any) -> None:
        where = f"{self.name}.{name}"
        if not isinstance(member, types.FunctionType | type):
            what = f"a {type(member).__name__}" if isinstance(member, property | classmethod | staticmethod) else "an attribute"
            raise ConfigError(f"{where} is {what}; an interface has plain methods only: make it a method, or start its name with _")

    def method(self, name: str, index: int, function: types.FunctionType, owner: type) -> Method:
        where = f"{self.name}.{name}"
        whole = inspect.signature(function)
        own, others = list(whole.parameters.values())[:1], list(whole.parameters.values())[1:]
        if not own or own[0].kind not in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD):
            raise ConfigError(f"{where} has no self; give it one")
        names = self.names_in(function, owner)
        parameters = tuple(self.parameter(p, f"{where}, parameter {p.name}", *names) for p in others)
        if whole.return_annotation is whole.empty:
            raise ConfigError(f"{where} does not say what it returns; annotate it, with None if it returns nothing")
        returns = resolve(
            whole.return_annotation, where=f"{where}, result", globalns=names[0], localns=names[1], memo=self.memo, role="result"
        )
        streams = [parameter.name for parameter in parameters if parameter.node.kind is Kind.STREAM]
        if len(streams) > 1:
            raise ConfigError(f"{where} takes the streams {' and '.join(streams)}; a method takes one at most: make it a stream of tuples")
        asynchronous = inspect.iscoroutinefunction(function)
        if asynchronous and returns.kind is Kind.STREAM:
            raise ConfigError(f"{where} is async and returns a stream, which is there at once; declare it with plain def")
        doc = inspect.cleandoc(function.__doc__) if function.__doc__ else None
        optional = bool(getattr(function, _OPTIONAL, False))
        return Method(name, index, parameters, returns, optional, doc, whole.replace(parameters=others), asynchronous)

    def parameter(self, p: inspect.Parameter, where: str, globalns: dict[str, Any], localns: Mapping[str, Any]) -> Parameter:
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            instead = "list[...]" if p.kind is p.VAR_POSITIONAL else "dict[str, ...] or a dataclass"
            raise ConfigError(f"{where}: {p} takes any number of arguments; declare one parameter of type {instead}")
        if p.annotation is p.empty:
            raise ConfigError(f"{where} has no annotation; say what type it has")
        node = resolve(p.annotation, where=where, globalns=globalns, localns=localns, memo=self.memo, role="parameter")
        if node.kind is Kind.STREAM and p.default is not p.empty:
            raise ConfigError(f"{where}: a stream has no default; let callers pass an empty one")
        return Parameter(p.name, node, MISSING if p.default is p.empty else p.default, p.kind is p.KEYWORD_ONLY)

    def names_in(self, function: types.FunctionType, owner: type) -> tuple[dict[str, Any], Mapping[str, Any]]:
        """What quotes in the annotations of ``function`` may mean. Methods do not count: one called ``list`` must not hide the type."""
        own = {name: value for name, value in vars(owner).items() if not isinstance(value, types.FunctionType)}
        globalns = inspect.unwrap(function).__globals__
        return globalns, {**(self.localns if globalns is self.globalns else {}), **own}

    def check_class_names(self) -> None:
        """Two classes of one name could not be told apart in a description or a .proto."""
        named: dict[str, type] = {}
        for cls in self.memo:
            other = named.setdefault(cls.__name__, cls)
            if other is not cls:
                raise ConfigError(
                    f"{self.name} uses two classes called {cls.__name__}, of {other.__module__} and {cls.__module__}; rename one of them"
                )


def _members(owner: type) -> dict[str, Any]:
    """The public names that a class body defines or only annotates, in order of definition."""
    annotated = dict.fromkeys(inspect.get_annotations(owner))
    return {name: member for name, member in {**annotated, **vars(owner)}.items() if not name.startswith("_")}


def interface_of(cls: object) -> Interface:
    """The interface that ``cls`` was declared as. Raises ConfigError if it was not."""
    known = interfaces_of(cls)
    if known and known[0].cls is cls:
        return known[0]
    shown = getattr(cls, "__qualname__", repr(cls))
    if known:
        raise ConfigError(f"{shown} implements {known[0].name}; name {known[0].cls.__qualname__} instead")
    raise ConfigError(f'{shown} is no interface; declare it with @fastplug.interface("name/1")')


def interfaces_of(implementation: object) -> list[Interface]:
    """The interfaces that an object, or a class, has among its bases, nearest first; [] if there are none."""
    cls = implementation if isinstance(implementation, type) else type(implementation)
    return [vars(base)[_ATTRIBUTE] for base in cls.__mro__ if _ATTRIBUTE in vars(base)]


def is_asynchronous(function: object) -> bool:
    """Whether a handler runs on an event loop: it is made by ``async def``."""
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def check_implementation(implementation: object, interface: Interface) -> tuple[Method, ...]:
    """The methods of ``interface`` that an object, or a class, implements: all of them but optional ones it lacks.

    A method that is only inherited from an interface counts as missing. Raises ConfigError, naming each method that is missing
    or does not take the interface's parameters.
    """
    implemented: list[Method] = []
    faults: list[str] = []
    for method in interface.methods:
        if not _has(implementation, interface, method.name):
            if not method.optional:
                faults.append(f"{method_text(describe(method))} is missing")
            continue
        implemented.append(method)
        fault = _fault(implementation, method)
        if fault:
            faults.append(fault)
    if faults:
        cls = implementation if isinstance(implementation, type) else type(implementation)
        advice = "Define it in the class (what it inherits from the interface does not count)"
        raise ConfigError(f"{cls.__qualname__} does not implement {interface.name}: {'; '.join(faults)}. {advice}")
    return tuple(implemented)


def _has(implementation: object, interface: Interface, name: str) -> bool:
    if not isinstance(implementation, type) and name in getattr(implementation, "__dict__", {}):
        return True
    cls = implementation if isinstance(implementation, type) else type(implementation)
    owner = next((base for base in cls.__mro__ if name in vars(base)), None)
    if owner is None:
        return hasattr(implementation, name)  # made by __getattr__
    return owner not in interface.cls.__mro__ and _ATTRIBUTE not in vars(owner)


def _fault(implementation: object, method: Method) -> str | None:
    """Why the implementation of ``method`` cannot be called as the interface says; None if it can."""
    function = getattr(implementation, method.name)
    if not callable(function):
        return f"{method.name} is no method but {type(function).__name__}"
    stream = method.returns.kind is Kind.STREAM
    if (inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)) and not stream:
        return f"{method.name} is a generator; it must return its result"
    if inspect.iscoroutinefunction(function) and stream:
        return f"{method.name} is a coroutine; a stream comes from a generator, `async def` with yield"
    try:
        signature = inspect.signature(function)
    except ValueError:  # a builtin that does not tell: the first call will
        return None
    unbound = isinstance(implementation, type) and isinstance(inspect.getattr_static(implementation, method.name), types.FunctionType)
    # As a call that gives everything, and as one that leaves to the defaults what it may.
    for parameters in (method.parameters, [p for p in method.parameters if p.default is MISSING]):
        positional = [None] * (unbound + sum(not p.keyword_only for p in parameters))
        try:
            signature.bind(*positional, **{p.name: None for p in parameters if p.keyword_only})
        except TypeError as error:
            return f"{method.name}{signature} does not take the interface's parameters {method.signature}: {error}"
    return None
