"""The slow twin of the value codec: docs/wire.md, section 3, in the plainest Python. The oracle of the compiled one.

Arrays are left out (their memory is not the codec's business), except that passing over an unknown value passes over inline ones.
Values must have the types that are declared; acceptance rules (numpy scalars, bytearray, ...) are tested by hand.
"""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import math
import re
import struct
import uuid
from typing import Any

from fastplug.annotation import MISSING, Kind, TypeNode

DEPTH = 64
INT_BYTES = 1 << 20
EPOCH = dt.datetime(1970, 1, 1)
MICROSECOND = dt.timedelta(microseconds=1)
DAY = dt.timedelta(days=1)


class MalformedError(Exception):
    """The bytes are no value of the declared type."""


# --- encode -----------------------------------------------------------------------------------------------------------------


def encode(node: TypeNode, value: Any) -> bytes:
    return _ENCODE[node.kind](node, value)


def _sized(tag: int, data: bytes) -> bytes:
    return struct.pack("<BI", tag, len(data)) + data


def _encode_int(node: TypeNode, value: int) -> bytes:
    value = int(value)
    if -(2**63) <= value < 2**63:
        return struct.pack("<Bq", 3, value)
    length = 9
    while not -(2 ** (8 * length - 1)) <= value < 2 ** (8 * length - 1):
        length += 1
    return _sized(4, value.to_bytes(length, "little", signed=True))


def _encode_datetime(node: TypeNode, value: dt.datetime) -> bytes:
    offset = value.utcoffset()
    wall = (value.replace(tzinfo=None, fold=0) - EPOCH) // MICROSECOND
    flags = (offset is not None) | value.fold << 1
    return struct.pack("<BqqB", 0x0C, wall, (offset or dt.timedelta(0)) // MICROSECOND, flags)


def _encode_enum(node: TypeNode, value: enum.Enum) -> bytes:
    for name, member in type(value).__members__.items():
        if member is value:
            return _sized(0x11, name.encode())
    return _sized(0x11, f"={int(value.value)}".encode())


def _encode_dict(node: TypeNode, value: dict[Any, Any]) -> bytes:
    key, item = node.args
    return struct.pack("<BI", 0x0B, len(value)) + b"".join(encode(key, k) + encode(item, v) for k, v in value.items())


def _encode_items(tag: int, nodes: Any, values: Any) -> bytes:
    return struct.pack("<BI", tag, len(values)) + b"".join(map(encode, nodes, values))


_ENCODE: dict[Kind, Any] = {
    Kind.NONE: lambda node, value: b"\x00",
    Kind.BOOL: lambda node, value: b"\x02" if value else b"\x01",
    Kind.INT: _encode_int,
    Kind.FLOAT: lambda node, value: struct.pack("<Bd", 5, value),
    Kind.COMPLEX: lambda node, value: struct.pack("<Bdd", 6, complex(value).real, complex(value).imag),
    Kind.STR: lambda node, value: _sized(7, value.encode()),
    Kind.BYTES: lambda node, value: _sized(8, bytes(value)),
    Kind.LIST: lambda node, value: _encode_items(9, node.args * len(value), value),
    Kind.TUPLE: lambda node, value: _encode_items(10, node.args, value),
    Kind.SEQUENCE: lambda node, value: _encode_items(10, node.args * len(value), value),
    Kind.DICT: _encode_dict,
    Kind.DATETIME: _encode_datetime,
    Kind.DATE: lambda node, value: struct.pack("<Bi", 0x0D, value.toordinal()),
    Kind.TIMEDELTA: lambda node, value: struct.pack("<Biii", 0x0E, value.days, value.seconds, value.microseconds),
    Kind.DECIMAL: lambda node, value: _sized(0x0F, str(value).encode("ascii")),
    Kind.UUID: lambda node, value: b"\x10" + value.int.to_bytes(16, "big"),
    Kind.ENUM: _encode_enum,
    Kind.OPTIONAL: lambda node, value: b"\x00" if value is None else encode(node.args[0], value),
    Kind.STRUCT: lambda node, value: _encode_items(0x12, [f.node for f in node.fields], [getattr(value, f.name) for f in node.fields]),
}


# --- decode -----------------------------------------------------------------------------------------------------------------


def decode(node: TypeNode, data: bytes) -> Any:
    reader = _Reader(data)
    value = reader.value(node, 0)
    _check(reader.pos == len(data))
    return value


def _check(holds: bool) -> None:
    if not holds:
        raise MalformedError


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.pos = 0

    def take(self, n: int) -> bytes:
        _check(self.pos + n <= len(self.data))
        self.pos += n
        return self.data[self.pos - n : self.pos]

    def unpack(self, form: str) -> tuple[Any, ...]:
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))

    def count(self) -> int:
        (n,) = self.unpack("I")
        _check(n <= len(self.data) - self.pos)
        return int(n)

    def sized(self) -> bytes:
        return self.take(self.count())

    def text(self) -> str:
        try:
            return self.sized().decode()
        except UnicodeDecodeError:
            raise MalformedError from None

    def value(self, node: TypeNode, depth: int) -> Any:
        if node.kind is Kind.OPTIONAL:
            if self.data[self.pos : self.pos + 1] == b"\x00":
                self.pos += 1
                return None
            return self.value(node.args[0], depth)
        (tag,) = self.take(1)
        _check(tag in _TAGS[node.kind])
        if tag in (9, 10, 11, 0x12):
            _check(depth < DEPTH)
            return self.nested(node, tag, depth + 1)
        return self.scalar(node, tag)

    def nested(self, node: TypeNode, tag: int, depth: int) -> Any:
        n = self.count()
        if node.kind is Kind.DICT:
            key, item = node.args
            return {self.value(key, depth): self.value(item, depth) for _ in range(n)}
        if node.kind is Kind.STRUCT:
            return self.struct(node, n, depth)
        if node.kind is Kind.TUPLE:
            _check(n == len(node.args))
            return tuple(self.value(arg, depth) for arg in node.args)
        items = [self.value(node.args[0], depth) for _ in range(n)]
        return items if node.kind is Kind.LIST else tuple(items)

    def struct(self, node: TypeNode, n: int, depth: int) -> Any:
        values: dict[str, Any] = {}
        for field in node.fields[:n]:
            values[field.name] = self.value(field.node, depth)
        for field in node.fields[n:]:
            if field.default is MISSING:
                raise MalformedError
            values[field.name] = field.default()
        for _ in range(n - len(node.fields)):
            self.skip()
        assert node.cls is not None
        return node.cls(**values)

    def scalar(self, node: TypeNode, tag: int) -> Any:
        match tag:
            case 0:
                return None
            case 1 | 2:
                return tag == 2
            case 3 | 4:
                number = self.unpack("q")[0] if tag == 3 else self.long()
                try:
                    return number if node.kind is Kind.INT else float(number)
                except OverflowError:
                    raise MalformedError from None
            case 5:
                return self.unpack("d")[0]
            case 6:
                return complex(*self.unpack("dd"))
            case 7:
                return self.text()
            case 8:
                return self.sized()
            case 0x10:
                return uuid.UUID(int=int.from_bytes(self.take(16), "big"))
            case 0x11:
                return _member(node.cls, self.sized())
            case 0x0F:
                return _decimal(self.text())
            case _:
                return self.time(tag)

    def long(self) -> int:
        data = self.sized()
        value = int.from_bytes(data, "little", signed=True)
        _check(9 <= len(data) <= INT_BYTES)
        half = 2 ** (8 * (len(data) - 1) - 1)
        _check(not -half <= value < half)
        return value

    def time(self, tag: int) -> Any:
        try:
            if tag == 0x0D:
                return dt.date.fromordinal(self.unpack("i")[0])
            if tag == 0x0E:
                days, seconds, microseconds = self.unpack("iii")
                made = dt.timedelta(days, seconds, microseconds)
                _check((made.days, made.seconds, made.microseconds) == (days, seconds, microseconds))
                return made
            wall, offset, flags = self.unpack("qqB")
            _check(flags < 4 and abs(offset) < DAY // MICROSECOND and (offset == 0 or flags & 1 == 1))
            zone = dt.timezone(dt.timedelta(microseconds=offset)) if flags & 1 else None
            return (EPOCH + wall * MICROSECOND).replace(tzinfo=zone, fold=flags >> 1)
        except (ValueError, OverflowError):
            raise MalformedError from None

    def skip(self) -> None:
        """Over one value of any type. What is passed over is measured, not judged."""
        waiting = 1
        while waiting:
            waiting -= 1
            (tag,) = self.take(1)
            _check(tag <= 0x13)
            if tag in _FIXED:
                self.take(_FIXED[tag])
            elif tag in (9, 10, 0x12):
                waiting += self.count()
            elif tag == 11:
                waiting += 2 * self.count()
            elif tag == 0x13:
                form, kind, _, ndim, order, _ = self.unpack("BBBBBH")
                if kind == ord("*"):
                    self.sized()
                self.take(ndim * (16 if order == 2 else 8))
                _check(form == 0)
                self.take(self.unpack("Q")[0])
            else:
                self.sized()


_FIXED = {0: 0, 1: 0, 2: 0, 3: 8, 5: 8, 6: 16, 0x0C: 17, 0x0D: 4, 0x0E: 12, 0x10: 16}
_TAGS = {
    Kind.NONE: (0,),
    Kind.BOOL: (1, 2),
    Kind.INT: (3, 4),
    Kind.FLOAT: (3, 4, 5),
    Kind.COMPLEX: (6,),
    Kind.STR: (7,),
    Kind.BYTES: (8,),
    Kind.LIST: (9,),
    Kind.TUPLE: (10,),
    Kind.SEQUENCE: (10,),
    Kind.DICT: (11,),
    Kind.DATETIME: (0x0C,),
    Kind.DATE: (0x0D,),
    Kind.TIMEDELTA: (0x0E,),
    Kind.DECIMAL: (0x0F,),
    Kind.UUID: (0x10,),
    Kind.ENUM: (0x11,),
    Kind.STRUCT: (0x12,),
}


def _decimal(text: str) -> decimal.Decimal:
    _check(text.isascii() and not re.search(r"[_\s]", text) and not text.startswith("+"))
    with decimal.localcontext(decimal.Context(prec=28, traps=[decimal.InvalidOperation])):
        try:
            made = decimal.Decimal(text)
        except (ValueError, ArithmeticError):
            raise MalformedError from None
    # The constructor also takes ".5" and other spellings of Infinity; str() never gives them.
    _check(made.is_finite() or text.lstrip("-").startswith(("Infinity", "NaN", "sNaN")))
    _check(not made.is_finite() or text.lstrip("-")[:1].isdigit())
    _check(made.is_nan() or not made.is_infinite() or text.lstrip("-") == "Infinity")
    return made


def _member(cls: Any, name: bytes) -> Any:
    try:
        text = name.decode()
    except UnicodeDecodeError:
        raise MalformedError from None
    if text in cls.__members__:
        return cls.__members__[text]
    _check(issubclass(cls, enum.Flag) and text[:1] == "=")
    try:
        number = int(text[1:])
        _check(str(number) == text[1:] and len(text) < 100)
        return cls(number)
    except ValueError:
        raise MalformedError from None


def same(one: Any, other: Any) -> bool:
    """Equal, with NaN equal to itself, 0.0 different from -0.0, and types compared too: what a codec must keep."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return (math.isnan(one) and math.isnan(other)) or struct.pack("<d", one) == struct.pack("<d", other)
    if isinstance(one, complex):
        return same(one.real, other.real) and same(one.imag, other.imag)
    if isinstance(one, decimal.Decimal):
        return str(one) == str(other)
    if isinstance(one, dt.datetime):
        return one.replace(tzinfo=None) == other.replace(tzinfo=None) and one.fold == other.fold and one.utcoffset() == other.utcoffset()
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return same(list(one.items()), list(other.items()))
    if hasattr(type(one), "__dataclass_fields__"):
        return all(same(getattr(one, name), getattr(other, name)) for name in type(one).__dataclass_fields__)
    return bool(one == other)
