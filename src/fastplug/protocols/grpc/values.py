"""Python values <-> what one proto scalar, or one of the fixed messages, holds. Pure.

The rules of acceptance are those of the compiled codec (docs/wire.md, "Annotations"): an int stands for a float, numpy scalars for their
Python kinds, and nothing else is converted. `to_proto` raises Unfit with the value in words; `from_proto` raises ValueError for what a
peer made up.
"""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import sys
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

from fastplug._wire_words import Unfit, buffer_bytes, decimal_of, got
from fastplug.annotation import Kind, TypeNode
from fastplug.protocols.grpc.names import enum_members

__all__ = ["Scalar", "complex_value", "scalar_codec"]

INT64_MIN, INT64_MAX = -(1 << 63), (1 << 63) - 1


class Scalar(NamedTuple):
    """Both directions of one type."""

    to_proto: Callable[[Any], Any]
    from_proto: Callable[[Any], Any]


def _numpy_kind(value: Any) -> str:
    """numpy's kind character of a numpy scalar, "" for everything else. numpy is not imported for it: no module, no scalar."""
    numpy = sys.modules.get("numpy")
    return value.dtype.kind if numpy is not None and isinstance(value, numpy.generic) else ""


def _bool(value: Any) -> bool:
    if value is True or value is False or _numpy_kind(value) == "b":
        return bool(value)
    raise Unfit(got(value))


def _int(value: Any) -> int:
    if not isinstance(value, int) and _numpy_kind(value) not in ("i", "u"):
        raise Unfit(got(value))
    number = int(value)
    if not INT64_MIN <= number <= INT64_MAX:
        raise Unfit("int beyond 64 bits, which gRPC cannot carry")
    return number


def _float(value: Any) -> float:
    if isinstance(value, (float, int)) or _numpy_kind(value) in ("f", "i", "u"):
        try:
            return float(value)
        except OverflowError:
            raise Unfit("an int that is too large for a float") from None
    raise Unfit(got(value))


def complex_value(value: Any) -> complex:
    """A complex number, or what stands for one. Raises Unfit."""
    if isinstance(value, complex) or _numpy_kind(value) == "c":
        return complex(value)
    return complex(_float(value))


def _str(value: Any) -> str:
    if not isinstance(value, str):
        raise Unfit(got(value))
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Unfit(f"str that UTF-8 cannot encode (a lone surrogate at {error.start})") from error
    return str.__str__(value)


def _bytes(value: Any) -> bytes:
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise Unfit(got(value))
    return bytes(value)


def _buffer(value: Any) -> bytes:
    buffer_bytes(value)  # or Unfit
    return memoryview(value).tobytes()


def _datetime(value: Any) -> str:
    if not isinstance(value, dt.datetime):
        raise Unfit(got(value))
    return value.isoformat()


def _date(value: Any) -> str:
    if not isinstance(value, dt.date) or isinstance(value, dt.datetime):
        raise Unfit(f"{got(value)} (pass its .date())" if isinstance(value, dt.datetime) else got(value))
    return value.isoformat()


_MICROSECOND = dt.timedelta(microseconds=1)


def _timedelta(value: Any) -> int:
    if not isinstance(value, dt.timedelta):
        raise Unfit(got(value))
    microseconds = value // _MICROSECOND
    if not INT64_MIN <= microseconds <= INT64_MAX:
        raise Unfit("timedelta beyond 64 bits of microseconds, which gRPC cannot carry")
    return microseconds


def _decimal(value: Any) -> str:
    if not isinstance(value, decimal.Decimal):
        raise Unfit(got(value))
    return decimal.Decimal.__str__(value)


def _decimal_from(text: str) -> decimal.Decimal:
    value: decimal.Decimal | None = decimal_of(decimal.Decimal, text)
    if value is None:
        raise ValueError(f"{text[:40]!r} is no decimal number")
    return value


def _uuid(value: Any) -> str:
    if not isinstance(value, uuid.UUID):
        raise Unfit(got(value))
    return uuid.UUID.__str__(value)


def _same(value: Any) -> Any:
    return value


_CODECS: dict[Kind, Scalar] = {
    Kind.BOOL: Scalar(_bool, _same),
    Kind.INT: Scalar(_int, _same),
    Kind.FLOAT: Scalar(_float, _same),
    Kind.STR: Scalar(_str, _same),
    Kind.BYTES: Scalar(_bytes, _same),
    Kind.BUFFER: Scalar(_buffer, memoryview),
    Kind.DATETIME: Scalar(_datetime, dt.datetime.fromisoformat),
    Kind.DATE: Scalar(_date, dt.date.fromisoformat),
    Kind.TIMEDELTA: Scalar(_timedelta, lambda n: dt.timedelta(microseconds=n)),
    Kind.DECIMAL: Scalar(_decimal, _decimal_from),
    Kind.UUID: Scalar(_uuid, uuid.UUID),
}


def scalar_codec(node: TypeNode) -> Scalar:
    """The codec of a type for which ``schema.is_scalar`` holds."""
    if node.kind != Kind.ENUM:
        return _CODECS[node.kind]
    assert node.cls is not None
    return _flag_codec(node.cls) if issubclass(node.cls, enum.Flag) else _enum_codec(node.cls)


def _enum_codec(cls: type[Any]) -> Scalar:
    members = enum_members(cls)
    # By identity: members live as long as their class, and need not be hashable.
    numbers = {id(member): number for number, member in enumerate(members, 1)}

    def to_proto(value: Any) -> int:
        if not isinstance(value, cls):
            raise Unfit(got(value))
        return numbers[id(value)]

    def from_proto(number: int) -> Any:
        if not 1 <= number <= len(members):
            raise ValueError(f"{number} is no member of {cls.__name__}")
        return members[number - 1]

    return Scalar(to_proto, from_proto)


def _flag_codec(cls: type[Any]) -> Scalar:
    def to_proto(value: Any) -> int:
        if not isinstance(value, cls):
            raise Unfit(got(value))
        return _int(value.value)

    def from_proto(number: int) -> Any:
        made = cls(number)
        if not isinstance(made, cls):  # a class may choose to give a plain int for unknown bits
            raise ValueError(f"{number} has bits that {cls.__name__} does not")
        return made

    return Scalar(to_proto, from_proto)
