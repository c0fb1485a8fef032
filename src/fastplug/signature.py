"""Signatures that both sides can compare: a method as JSON, as canonical text, and what may differ between host and plugin.

The JSON forms and the rules are docs/wire.md, "Interface descriptions". A description names a struct by its class's name without
the module, because host and plugin may import one declaration from two places.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict

from fastplug import dtypes
from fastplug.annotation import DEPTH_LIMIT, MISSING, Kind, TypeNode
from fastplug.errors import InterfaceMismatch, RemoteProtocolError

if TYPE_CHECKING:
    from fastplug.interfaces import Interface, Method

__all__ = [
    "InterfaceDescription",
    "MethodDescription",
    "TypeDescription",
    "canonical",
    "check_offer",
    "checked_description",
    "compatible",
    "describe",
    "describe_interface",
    "describe_type",
    "is_interface_name",
    "method_text",
    "offered_index",
    "type_text",
]

TypeDescription = list[Any]


class MethodDescription(TypedDict):
    """One method: ``parameters`` are [name, type, has_default] and, of a keyword-only one, "keyword"."""

    name: str
    parameters: list[list[Any]]
    returns: TypeDescription


class InterfaceDescription(TypedDict):
    """One interface, with its methods in the order that a frame's method number counts in."""

    name: str
    methods: list[MethodDescription]


METHODS_LIMIT: Final = 0xFFFF  # a frame's method number has 16 bits
TYPES_LIMIT: Final = 100_000  # of one interface: far more than anybody writes, and checked in well under a second
NAME_LIMIT: Final = 256  # characters

_INTERFACE_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*/[1-9][0-9]*")

_PLAIN = {
    Kind.NONE: "None",
    Kind.BOOL: "bool",
    Kind.INT: "int",
    Kind.FLOAT: "float",
    Kind.COMPLEX: "complex",
    Kind.STR: "str",
    Kind.BYTES: "bytes",
    Kind.BUFFER: "buffer",
    Kind.DATETIME: "datetime",
    Kind.DATE: "date",
    Kind.TIMEDELTA: "timedelta",
    Kind.DECIMAL: "Decimal",
    Kind.UUID: "UUID",
}
_NESTED = {
    Kind.LIST: "list",
    Kind.TUPLE: "tuple",
    Kind.SEQUENCE: "sequence",
    Kind.DICT: "dict",
    Kind.OPTIONAL: "optional",
    Kind.STREAM: "stream",
}

# How many types each nested form holds; None: any number.
_ARITY = {"list": 1, "tuple": None, "sequence": 1, "dict": 2, "optional": 1, "stream": 1, "callback": None}
_PLAIN_TAGS = frozenset(_PLAIN.values())

# Where a type stands in a method, and what may stand only in some of these places.
Place = Literal["value", "parameter", "optional", "result"]
_PLACED = {"stream": ("parameter", "result"), "callback": ("parameter", "optional"), "interface": ("parameter", "optional")}


def is_interface_name(name: object) -> bool:
    """Whether ``name`` is ``name/major``, such as "acme.dsp/1"."""
    return isinstance(name, str) and len(name) <= NAME_LIMIT and _INTERFACE_NAME.fullmatch(name) is not None


# Describing: nodes to JSON


def describe_type(node: TypeNode, seen: set[type] | None = None) -> TypeDescription:
    """The JSON form of a type. ``seen``: classes that the same method has described already; of them only the name is told."""
    seen = set() if seen is None else seen
    if node.kind in _PLAIN:
        return [_PLAIN[node.kind]]
    if node.kind in _NESTED:
        return [_NESTED[node.kind], *(describe_type(arg, seen) for arg in node.args)]
    if node.kind is Kind.ARRAY:
        return ["array", node.dtype if node.dtype is None or node.dtype in dtypes.FAMILIES else dtypes.laid_out(dtypes.parsed(node.dtype))]
    if node.kind is Kind.CALLBACK:
        if node.interface is not None:
            return ["interface", node.interface.name, [describe(method) for method in node.interface.methods]]
        return ["callback", *(describe_type(arg, seen) for arg in node.args)]
    cls: Any = node.cls
    if node.kind is Kind.ARROW:
        return ["arrow", cls.__name__]
    if node.kind is Kind.ENUM:
        # The value of a Flag travels when it is no single member, so both sides must agree on the values.
        if issubclass(cls, enum.Flag):
            return ["flag", cls.__name__, [[name, member.value] for name, member in cls.__members__.items()]]
        return ["enum", cls.__name__, [member.name for member in cls]]
    if cls in seen:
        return ["ref", cls.__name__]
    seen.add(cls)
    fields = [[field.name, describe_type(field.node, seen), field.default is not MISSING] for field in node.fields]
    return ["struct", cls.__name__, fields]


def describe(method: Method) -> MethodDescription:
    """The JSON form of a method."""
    seen: set[type] = set()
    parameters = [
        [p.name, describe_type(p.node, seen), p.default is not MISSING, *(["keyword"] if p.keyword_only else [])] for p in method.parameters
    ]
    return {"name": method.name, "parameters": parameters, "returns": describe_type(method.returns, seen)}


def describe_interface(interface: Interface, methods: Sequence[Method] | None = None) -> InterfaceDescription:
    """The JSON form of an interface. ``methods``: those that a plugin implements, when it leaves out optional ones."""
    chosen = interface.methods if methods is None else methods
    return {"name": interface.name, "methods": [describe(method) for method in chosen]}


# Canonical text: the same for every spelling and Python version


def type_text(described: TypeDescription) -> str:
    """A type as people read it: ``dict[str, list[int]]``, ``ndarray[float64]``, ``Model?``."""
    tag, *rest = described
    if tag in _PLAIN_TAGS:
        return str(tag)
    if tag == "array":
        return f"ndarray[{dtypes.shown(rest[0])}]" if rest[0] else "ndarray"
    if tag == "arrow":
        return f"arrow[{rest[0]}]"
    if tag == "optional":
        return f"{type_text(rest[0])}?"
    if tag == "sequence":
        return f"tuple[{type_text(rest[0])}, ...]"
    if tag == "stream":
        return f"Iterator[{type_text(rest[0])}]"
    if tag == "callback":
        return f"Callable[[{', '.join(map(type_text, rest[:-1]))}], {type_text(rest[-1])}]"
    if tag in _ARITY:
        return f"{tag}[{', '.join(map(type_text, rest)) or '()'}]"
    return str(rest[0])


def canonical(node: TypeNode) -> str:
    """The text of a resolved annotation."""
    return type_text(describe_type(node))


def method_text(method: MethodDescription) -> str:
    """A method as people read it: ``total(x: ndarray[float64]) -> float``."""
    parameters: list[str] = []
    for name, described, has_default, *keyword in method["parameters"]:
        if keyword and "*" not in parameters:
            parameters.append("*")
        parameters.append(f"{name}: {type_text(described)}{' = ...' if has_default else ''}")
    return f"{method['name']}({', '.join(parameters)}) -> {type_text(method['returns'])}"


# Parsing what a peer says of itself


def checked_description(obj: object) -> InterfaceDescription:
    """A private copy of a peer's description of one interface. Raises RemoteProtocolError if it is malformed or too large."""
    return _Parser().interface(obj)


class _Parser:
    """Copies one description and checks it on the way; every list is new, and every name a str of bounded length."""

    def __init__(self) -> None:
        self.types = 0
        self.structs: set[str] = set()  # of the method in hand

    def fail(self, where: str, why: str) -> RemoteProtocolError:
        return RemoteProtocolError(
            f"the peer's description of its interface is wrong: {where}: {why}. Its fastplug is broken, or newer than this one understands"
        )

    def record(self, obj: object, where: str, *keys: str) -> list[Any]:
        if not isinstance(obj, dict) or not set(keys) <= obj.keys():
            raise self.fail(where, f"expected an object with {', '.join(keys)}")
        return [obj[key] for key in keys]

    def items(self, obj: object, where: str, most: int) -> list[Any]:
        if not isinstance(obj, list) or len(obj) > most:
            raise self.fail(where, f"expected a list of at most {most} items")
        return obj

    def name(self, obj: object, where: str, taken: set[str] | None = None, accept: Callable[[str], bool] = str.isidentifier) -> str:
        if not isinstance(obj, str) or not 0 < len(obj) <= NAME_LIMIT or not accept(obj):
            raise self.fail(where, "expected a name")
        if taken is not None:
            if obj in taken:
                raise self.fail(where, f"the name {obj!r} occurs twice")
            taken.add(obj)
        return obj

    def interface(self, obj: object) -> InterfaceDescription:
        name, methods = self.record(obj, "interface", "name", "methods")
        self.name(name, "interface name", accept=is_interface_name)
        taken: set[str] = set()
        return {"name": name, "methods": [self.method(method, taken) for method in self.items(methods, name, METHODS_LIMIT)]}

    def method(self, obj: object, taken: set[str], *, called_back: bool = False) -> MethodDescription:
        name, parameters, returns = self.record(obj, "method", "name", "parameters", "returns")
        name = self.name(name, "method name", taken)
        self.structs = set()
        names: set[str] = set()
        role: Place = "value" if called_back else "parameter"
        return {
            "name": name,
            "parameters": [self.member(p, name, names, ("keyword",), role=role) for p in self.items(parameters, name, TYPES_LIMIT)],
            "returns": self.type(returns, f"{name}, result", 0, "value" if called_back else "result"),
        }

    def member(
        self, obj: object, where: str, taken: set[str], marks: tuple[str, ...] = (), *, depth: int = 0, role: Place = "value"
    ) -> list[Any]:
        """One parameter or field: [name, type, has_default, mark?]."""
        parts = self.items(obj, where, 3 + len(marks))
        if len(parts) < 3 or not isinstance(parts[2], bool) or any(mark not in marks for mark in parts[3:]):
            raise self.fail(where, "expected [name, type, has_default]")
        name = self.name(parts[0], where, taken)
        return [name, self.type(parts[1], f"{where}, {name}", depth, role), parts[2], *parts[3:]]

    def type(self, obj: object, where: str, depth: int, role: Place = "value") -> TypeDescription:
        self.types += 1
        if depth > DEPTH_LIMIT or self.types > TYPES_LIMIT:
            raise self.fail(where, f"types nested more than {DEPTH_LIMIT} deep, or more than {TYPES_LIMIT} of them")
        parts = self.items(obj, where, TYPES_LIMIT)
        tag, rest = (parts[0], parts[1:]) if parts else (None, [])
        if not isinstance(tag, str):
            raise self.fail(where, "expected a type")
        if tag in _PLAIN_TAGS and not rest:
            return [tag]
        if tag in _PLACED and role not in _PLACED[tag]:
            raise self.fail(where, f"a {tag} where none can be")
        if tag == "interface" and len(rest) == 2:
            return self.called_back(*rest, where=where)
        if tag in _ARITY and _ARITY[tag] in (None, len(rest)) and (rest or tag != "callback"):
            inner: Place = "optional" if tag == "optional" and role == "parameter" else "value"
            return [tag, *(self.type(arg, where, depth + 1, inner) for arg in rest)]
        if tag == "array" and len(rest) == 1:
            return [tag, self.dtype(rest[0], where)]
        if tag == "arrow" and len(rest) == 1:
            return [tag, self.name(rest[0], where)]
        if tag == "ref" and len(rest) == 1 and isinstance(rest[0], str) and rest[0] in self.structs:
            return [tag, rest[0]]
        if tag in ("enum", "flag", "struct") and len(rest) == 2:
            return self.named(tag, *rest, where=where, depth=depth)
        raise self.fail(where, f"unknown or malformed type {tag[:NAME_LIMIT]!r}")

    def dtype(self, obj: object, where: str) -> dtypes.Description | None:
        """None, a family, a description; or a name that only a newer fastplug understands."""
        if obj is None or (isinstance(obj, str) and obj.isidentifier()):
            return None if obj is None else self.name(obj, where)
        try:
            return dtypes.checked(obj)
        except ValueError as error:
            raise self.fail(where, str(error)) from error

    def called_back(self, name: object, methods: object, *, where: str) -> TypeDescription:
        """An interface whose methods the plugin calls: its structs are its own."""
        name = self.name(name, where, accept=is_interface_name)
        outer, taken = self.structs, set[str]()
        found = [self.method(method, taken, called_back=True) for method in self.items(methods, where, METHODS_LIMIT)]
        self.structs = outer
        return ["interface", name, found]

    def named(self, tag: str, name: object, content: object, *, where: str, depth: int) -> TypeDescription:
        name = self.name(name, where, self.structs if tag == "struct" else None)
        inside = f"{where}, {name}"
        members = self.items(content, inside, TYPES_LIMIT)
        self.types += len(members)
        taken: set[str] = set()
        if tag == "struct":
            return [tag, name, [self.member(field, inside, taken, depth=depth + 1) for field in members]]
        if tag == "enum":  # a name given to Enum() as a function need not be an identifier
            return [tag, name, [self.name(member, inside, taken, accept=bool) for member in members]]
        return [tag, name, [self.flag(member, inside, taken) for member in members]]

    def flag(self, obj: object, where: str, taken: set[str]) -> list[Any]:
        pair = self.items(obj, where, 2)
        if len(pair) != 2 or type(pair[1]) is not int:
            raise self.fail(where, "expected [member, value]")
        return [self.name(pair[0], where, taken, accept=bool), pair[1]]


# Comparing


def compatible(expected: MethodDescription, got: MethodDescription) -> str | None:
    """Why the plugin's method ``got`` cannot stand for the host's ``expected``; None if it can."""
    return _Comparison(expected, got).methods(expected, got)


class _Comparison:
    """One comparison of two methods. A struct is compared once, by name, which also ends recursion."""

    def __init__(self, expected: MethodDescription, got: MethodDescription) -> None:
        self.expected_structs = _structs(expected)
        self.got_structs = _structs(got)
        self.compared: set[str] = set()

    def methods(self, expected: MethodDescription, got: MethodDescription) -> str | None:
        wanted, given = expected["parameters"], got["parameters"]
        for number, parameter in enumerate(wanted):
            if number == len(given):
                return f"the plugin has no parameter {parameter[0]}"
            reason = self.parameters(parameter, given[number], number + 1)
            if reason:
                return reason
        for name, _, has_default, *_ in given[len(wanted) :]:
            if not has_default:
                return f"the plugin wants a further parameter {name}, which has no default"
        return self.types(expected["returns"], got["returns"], "result")

    def parameters(self, expected: list[Any], got: list[Any], number: int) -> str | None:
        name = expected[0]
        if name != got[0]:
            return f"parameter {number}: expected the name {name}, got {got[0]}"
        if expected[3:] != got[3:]:
            return f"parameter {name} is keyword-only on one side"
        if expected[2] and not got[2]:
            return f"parameter {name} has no default in the plugin"
        return self.types(expected[1], got[1], f"parameter {name}")

    def types(self, expected: TypeDescription, got: TypeDescription, where: str) -> str | None:
        expected = self.expected_structs[expected[1]] if expected[0] == "ref" else expected
        got = self.got_structs[got[1]] if got[0] == "ref" else got
        tag = expected[0]
        if tag != got[0] or len(expected) != len(got) or (tag in _NAMED and expected[1] != got[1]):
            return f"{where}: expected {_kind_text(expected)}, got {_kind_text(got)}"
        if tag == "struct":
            return self.structs(expected, got)
        if tag == "interface":
            return self.called_back(expected, got, where)
        if tag in _ARITY:
            inside = f"{where}, in {type_text(expected)}"
            return next(filter(None, (self.types(*pair, inside) for pair in zip(expected[1:], got[1:], strict=True))), None)
        return None if expected == got else f"{where}: expected {_kind_text(expected)}, got {_kind_text(got)}"

    def called_back(self, expected: TypeDescription, got: TypeDescription, where: str) -> str | None:
        """The roles are turned round: here the plugin calls, so what it knows the host must have."""
        offered = {method["name"]: method for method in expected[2]}
        for method in got[2]:
            name = method["name"]
            reason = compatible(method, offered[name]) if name in offered else "the host does not have it"
            if reason:
                return f"{where}, {got[1]}.{name}: {reason}"
        return None

    def structs(self, expected: TypeDescription, got: TypeDescription) -> str | None:
        name, wanted, given = *expected[1:], got[2]
        if name in self.compared:
            return None
        self.compared.add(name)
        for (field, described, _), (other, other_described, _) in zip(wanted, given, strict=False):
            if field != other:
                return f"{name}: expected the field {field}, got {other}"
            reason = self.types(described, other_described, f"field {name}.{field}")
            if reason:
                return reason
        # What only one side has is passed over by the other, and made from its default when the other sends none.
        shared = min(len(wanted), len(given))
        for field, _, has_default in wanted[shared:] + given[shared:]:
            if not has_default:
                return f"{name}: only {'the host' if len(wanted) > shared else 'the plugin'} has the field {field}, and without a default"
        return None


_NAMED = frozenset({"struct", "enum", "flag", "interface"})


def _kind_text(described: TypeDescription) -> str:
    """A type with what its name alone does not tell."""
    if described[0] == "enum":
        return f"enum {described[1]} ({', '.join(described[2])})"
    if described[0] == "flag":
        return f"flag {described[1]} ({', '.join(f'{name} = {value:#x}' for name, value in described[2])})"
    return f"struct {described[1]}" if described[0] == "struct" else type_text(described)


def _structs(method: MethodDescription) -> dict[str, TypeDescription]:
    """Every struct that the method describes, by name: what a "ref" means."""
    found: dict[str, TypeDescription] = {}
    todo = [method["returns"], *(parameter[1] for parameter in method["parameters"])]
    while todo:
        described = todo.pop()
        if described[0] == "struct":
            found[described[1]] = described
            todo.extend(field[1] for field in described[2])
        elif described[0] in _ARITY:
            todo.extend(described[1:])
    return found


def check_offer(interface: Interface, offered: InterfaceDescription) -> dict[str, int | None]:
    """Where the plugin lists each of the host's methods: name -> index; None for an ``@optional`` one that it lacks.

    Raises InterfaceMismatch, whose text names every missing or different method with both signatures and whose attributes
    tell the first. Thread-safe.
    """
    places = {method["name"]: index for index, method in enumerate(offered["methods"])}
    found: dict[str, int | None] = {}
    differences: list[tuple[str, str, str | None, str]] = []
    for method in interface.methods:
        expected = describe(method)
        index = found[method.name] = places.get(method.name)
        got = None if index is None else offered["methods"][index]
        reason = compatible(expected, got) if got else None if method.optional else "the plugin does not have it"
        if reason:
            differences.append((method.name, method_text(expected), method_text(got) if got else None, reason))
    if differences:
        raise _mismatch(interface.name, differences)
    return found


def _mismatch(interface: str, differences: list[tuple[str, str, str | None, str]]) -> InterfaceMismatch:
    told = "".join(
        f"\n  {name}: {reason}\n    expected  {expected}\n    got       {got or 'nothing'}" for name, expected, got, reason in differences
    )
    name, expected, got, _ = differences[0]
    advice = "Use a plugin built for this interface, or give the changed one a new major number."
    text = f"the plugin's {interface} differs from the host's:{told}\n{advice}"
    return InterfaceMismatch(text, interface=interface, method=name, expected=expected, got=got)


def offered_index(interface: Interface, offered: Sequence[InterfaceDescription]) -> int:
    """Which of the plugin's interfaces is ``interface``. Raises InterfaceMismatch when it has none of that name and major."""
    for index, description in enumerate(offered):
        if description["name"] == interface.name:
            return index
    names = ", ".join(description["name"] for description in offered) or "no interface"
    text = f"the plugin does not have the interface {interface.name}; it has {names}. Dispense one of those, or start another plugin."
    raise InterfaceMismatch(text, interface=interface.name, expected=interface.name, got=None)
