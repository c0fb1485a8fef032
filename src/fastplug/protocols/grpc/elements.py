"""Values <-> protobuf messages, driven by the types of the interface. Pure: values in, bytes out, and back.

Where a type stands decides its form: a *field* can be repeated, a map or absent; an *element* (of a list, of a map) is one scalar or one
message, so that a container inside a container has a wrapper message around it. schema.py makes the messages by the same rule.

What was not sent: a field with a default takes the default. Proto cannot tell a list that is absent from an empty one, nor an absent
Optional from None, so a message says of such fields which ones are empty on purpose (schema.py, CLEARED).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from fastplug import _wire_words as words
from fastplug._wire_words import Unbuilt, Unfit, got, shown
from fastplug.annotation import MISSING, Kind, TypeNode, has_references
from fastplug.protocols.grpc.arrays import ArrayCodec, ArrayCopies, arrow_codec
from fastplug.protocols.grpc.names import field_names
from fastplug.protocols.grpc.schema import CLEARED, is_clearable, is_map_key
from fastplug.protocols.grpc.values import Scalar, complex_value, scalar_codec

__all__ = ["Compiler", "Field", "sent"]

# docs/wire.md, "Values": the same limit on every transport.
DEPTH_MAX = 64

_Write = Callable[[Any, Any, int], None]
_Read = Callable[[Any, int], Any]


class Field(NamedTuple):
    """write(parent, value, depth); read(parent, depth) -> the value, or MISSING where the sender left it out."""

    write: _Write
    read: _Read


class _Message(NamedTuple):
    """write(message, value, depth); read(message, depth) -> the value."""

    write: _Write
    read: _Read


_Element = Scalar | _Message

# A callback is the broker's number for it, 0 for None.
_NUMBER = Scalar(int, int)


class Compiler:
    """Types to codecs. A class is compiled once, so that a recursive dataclass ends."""

    def __init__(self, copies: ArrayCopies) -> None:
        self.copies = copies
        self.structs: dict[type | None, _Message] = {}

    def fields(self, names: list[str], nodes: list[tuple[TypeNode, bool]]) -> list[Field]:
        """Of one message; each type with whether the field has a default."""
        *plain, cleared = field_names([*names, CLEARED])
        found = []
        for number, (name, (node, defaulted)) in enumerate(zip(plain, nodes, strict=True), 1):
            field = self.field(name, node, presence=defaulted)
            found.append(_clearable_field(field, number, cleared) if defaulted and is_clearable(node) else field)
        return found

    def field(self, name: str, node: TypeNode, *, presence: bool = False) -> Field:
        if node.kind in (Kind.LIST, Kind.SEQUENCE):
            return _repeated_field(name, node, self.element(node.args[0]))
        if node.kind == Kind.DICT and is_map_key(node.args[0]):
            return _map_field(name, self.element(node.args[0]), self.element(node.args[1]))
        if node.kind == Kind.DICT:
            return _entries_field(name, self.field("key", node.args[0]), self.field("value", node.args[1]))
        if node.kind == Kind.STREAM:  # one item of it
            return _single_field(name, self.element(node.args[0]), presence=True)
        if has_references(node):
            return _single_field(name, _NUMBER, presence=presence or node.kind == Kind.OPTIONAL)
        if node.kind == Kind.OPTIONAL:
            return _optional_field(_single_field(name, self.element(node.args[0]), presence=True))
        if node.kind == Kind.NONE:
            return Field(_write_none, lambda parent, depth: None)
        return _single_field(name, self.element(node), presence=presence)

    def element(self, node: TypeNode) -> _Element:
        match node.kind:
            case Kind.NONE:
                return _Message(_write_none, lambda message, depth: None)
            case Kind.COMPLEX:
                return _Message(_write_complex, lambda message, depth: complex(message.real, message.imag))
            case Kind.ARRAY:
                array = ArrayCodec(node.dtype, self.copies)
                return _Message(lambda message, value, depth: array.write(message, value), lambda message, depth: array.read(message))
            case Kind.ARROW:
                return arrow_codec(node.cls.__name__ if node.cls else "", self.copies)
            case Kind.TUPLE:
                names = [f"item{i}" for i in range(len(node.args))]
                return _tuple([self.field(name, part) for name, part in zip(names, node.args, strict=True)])
            case Kind.STRUCT:
                return self._struct(node)
            case Kind.LIST | Kind.SEQUENCE | Kind.DICT:
                return _Message(*self.field("items", node))
            case Kind.OPTIONAL:
                return _Message(*self.field("value", node))
            case _:
                return scalar_codec(node)

    def _struct(self, node: TypeNode) -> _Message:
        if node.cls not in self.structs:
            fields: list[tuple[str, Field, Any]] = []
            # In the table before its fields are compiled: they may lead back here.
            self.structs[node.cls] = _struct(node.cls, fields)
            made = self.fields([f.name for f in node.fields], [(f.node, f.default is not MISSING) for f in node.fields])
            fields.extend((f.name, field, f.default) for f, field in zip(node.fields, made, strict=True))
        return self.structs[node.cls]


def _deeper(depth: int) -> int:
    """One container further in. The sender's Unfit and the receiver's ValueError are told apart by who asked."""
    if depth >= DEPTH_MAX:
        raise Unfit(f"a value nested deeper than {DEPTH_MAX} levels (does it contain itself?)", final=True)
    return depth + 1


def _write_none(message: Any, value: Any, depth: int) -> None:
    if value is not None:
        raise Unfit(got(value))


def _write_complex(message: Any, value: Any, depth: int) -> None:
    number = complex_value(value)
    message.real, message.imag = number.real, number.imag


def _single_field(name: str, element: _Element, *, presence: bool) -> Field:
    if isinstance(element, Scalar):
        to_proto, from_proto = element

        def write_scalar(parent: Any, value: Any, depth: int) -> None:
            setattr(parent, name, to_proto(value))

        def read_scalar(parent: Any, depth: int) -> Any:
            return from_proto(getattr(parent, name)) if not presence or parent.HasField(name) else MISSING

        return Field(write_scalar, read_scalar)
    write_message, read_message = element

    def write(parent: Any, value: Any, depth: int) -> None:
        message = getattr(parent, name)
        message.SetInParent()
        write_message(message, value, depth)

    def read(parent: Any, depth: int) -> Any:
        return read_message(getattr(parent, name), depth) if parent.HasField(name) else MISSING

    return Field(write, read)


def _optional_field(field: Field) -> Field:
    def write(parent: Any, value: Any, depth: int) -> None:
        if value is not None:
            field.write(parent, value, depth)

    def read(parent: Any, depth: int) -> Any:
        value = field.read(parent, depth)
        return None if value is MISSING else value

    return Field(write, read)


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, (list, tuple, dict)) and not value)


def _clearable_field(field: Field, number: int, cleared: str) -> Field:
    def write(parent: Any, value: Any, depth: int) -> None:
        field.write(parent, value, depth)
        if _is_empty(value):
            getattr(parent, cleared).append(number)

    def read(parent: Any, depth: int) -> Any:
        value = field.read(parent, depth)
        return MISSING if _is_empty(value) and number not in getattr(parent, cleared) else value

    return Field(write, read)


def _repeated_field(name: str, node: TypeNode, element: _Element) -> Field:
    wanted, word = (list, "list") if node.kind == Kind.LIST else (tuple, "tuple")

    def write(parent: Any, value: Any, depth: int) -> None:
        if not isinstance(value, wanted):
            raise Unfit(words.got_sequence(value, word))
        inner, items, done = _deeper(depth), getattr(parent, name), 0
        try:
            if isinstance(element, Scalar):
                raw: list[Any] = []
                for item in value:
                    raw.append(element.to_proto(item))
                    done += 1
                items.extend(raw)
            else:
                for item in value:
                    element.write(items.add(), item, inner)
                    done += 1
        except Unfit as unfit:
            unfit.inside(f"{word} whose item {done} is")
            raise

    def read(parent: Any, depth: int) -> Any:
        inner, items = _deeper(depth), getattr(parent, name)
        if isinstance(element, Scalar):
            return wanted(map(element.from_proto, items))
        return wanted(element.read(item, inner) for item in items)

    return Field(write, read)


def _map_field(name: str, key: _Element, value: _Element) -> Field:
    assert isinstance(key, Scalar)

    def write(parent: Any, mapping: Any, depth: int) -> None:
        if not isinstance(mapping, dict):
            raise Unfit(got(mapping))
        inner, entries = _deeper(depth), getattr(parent, name)
        for k, v in mapping.items():
            raw = _within("dict with a key that is", key.to_proto, k)
            if isinstance(value, Scalar):
                entries[raw] = _within(f"dict whose value at {shown(k)} is", value.to_proto, v)
            else:
                _within(f"dict whose value at {shown(k)} is", value.write, entries[raw], v, inner)

    def read(parent: Any, depth: int) -> dict[Any, Any]:
        inner, entries = _deeper(depth), getattr(parent, name)
        if isinstance(value, Scalar):
            return {key.from_proto(k): value.from_proto(v) for k, v in entries.items()}
        return {key.from_proto(k): value.read(v, inner) for k, v in entries.items()}

    return Field(write, read)


def _entries_field(name: str, key: Field, value: Field) -> Field:
    """A dict whose keys a proto map cannot have."""

    def write(parent: Any, mapping: Any, depth: int) -> None:
        if not isinstance(mapping, dict):
            raise Unfit(got(mapping))
        inner, entries = _deeper(depth), getattr(parent, name)
        for k, v in mapping.items():
            entry = entries.add()
            _within("dict with a key that is", key.write, entry, k, inner)
            _within(f"dict whose value at {shown(k)} is", value.write, entry, v, inner)

    def read(parent: Any, depth: int) -> dict[Any, Any]:
        inner = _deeper(depth)
        return {sent(key, entry, "key", inner): sent(value, entry, "value", inner) for entry in getattr(parent, name)}

    return Field(write, read)


def _tuple(fields: list[Field]) -> _Message:
    def write(message: Any, value: Any, depth: int) -> None:
        if not isinstance(value, tuple):
            raise Unfit(words.got_sequence(value, "tuple"))
        if len(value) != len(fields):
            raise Unfit(f"tuple of length {len(value)}")
        inner = _deeper(depth)
        for i, (field, item) in enumerate(zip(fields, value, strict=True)):
            _within(f"tuple whose item {i} is", field.write, message, item, inner)

    def read(message: Any, depth: int) -> tuple[Any, ...]:
        inner = _deeper(depth)
        return tuple(sent(field, message, f"item{i}", inner) for i, field in enumerate(fields))

    return _Message(write, read)


def _struct(cls: Any, fields: list[tuple[str, Field, Any]]) -> _Message:
    def write(message: Any, value: Any, depth: int) -> None:
        if not isinstance(value, cls):
            raise Unfit(got(value))
        inner = _deeper(depth)
        for name, field, _ in fields:
            _within(f"{cls.__name__} whose field {name!r} is", field.write, message, getattr(value, name), inner)

    def read(message: Any, depth: int) -> Any:
        inner = _deeper(depth)
        values = {name: sent(field, message, name, inner, default) for name, field, default in fields}
        # Absent means default: the constructor fills it in.
        given = {name: value for name, value in values.items() if value is not MISSING}
        try:
            return cls(**given)
        except Exception as error:
            text = f"the peer sent a {cls.__name__} that its constructor here refuses ({type(error).__name__}: {error})"
            raise Unbuilt(text) from error

    return _Message(write, read)


def _within(where: str, write: Callable[..., Any], *args: Any) -> Any:
    try:
        return write(*args)
    except Unfit as unfit:
        unfit.inside(where)
        raise


def sent(field: Field, message: Any, name: str, depth: int, default: Any = MISSING) -> Any:
    """The field's value. What must be there and is not: None for a None, else the peer's fault."""
    value = field.read(message, depth)
    if value is MISSING and default is MISSING:
        raise ValueError(f"field {name!r} is missing")
    return value
