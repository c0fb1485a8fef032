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

from fastplug._wire_words import Unfit, decimal_of, got
from fastplug.annotation import Kind, TypeNode
from fastplug.errors import CopyRequired
from fastplug.protocols.grpc.names import enum_members

__all__ = ["ArrayCopies", "Scalar", "array_codec", "complex_value", "scalar_codec"]

INT64_MIN, INT64_MAX = -(1 << 63), (1 << 63) - 1
# numpy's own limit; a peer's shape is checked against it before numpy sees it.
NDIM_MAX = 64
# docs/wire.md, "Arrays": smaller ones travel inline on every transport.
STRICT_BYTES = 1024


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


class ArrayCopies:
    """Counts the copies of array data, for stats(). Two threads may lose a count to each other; it is a statistic.

    Args: ``strict`` refuses to copy an array of STRICT_BYTES or more.
    """

    def __init__(self, *, strict: bool = False) -> None:
        self.copies = 0
        self.copied_bytes = 0
        self._strict = strict

    def check(self, size_bytes: int) -> None:
        """Before a copy is made. Raises CopyRequired."""
        if self._strict and size_bytes >= STRICT_BYTES:
            raise CopyRequired(
                f"strict_zero_copy is set, and gRPC copies every array (this one has {size_bytes} bytes). "
                "Use the fast transport, or unset it."
            )

    def add(self, size_bytes: int) -> None:
        self.copies += 1
        self.copied_bytes += size_bytes


def array_codec(dtype: str | None, copies: ArrayCopies) -> tuple[Callable[[Any, Any], None], Callable[[Any], Any]]:
    """Writer and reader of NDArray messages. The bytes are in this machine's order: a plugin runs on its host's machine."""
    import numpy as np

    declared = np.dtype(dtype) if dtype is not None else None

    def write(message: Any, value: Any) -> None:
        if not isinstance(value, np.ndarray):
            raise Unfit(got(value))
        if isinstance(value, np.ma.MaskedArray):
            raise Unfit("a masked array; send its data and its mask as two arrays")
        if value.dtype.kind not in "biufc" or not value.dtype.isnative or (declared is not None and value.dtype != declared):
            raise Unfit(got(value))
        copies.check(value.nbytes)
        fortran = value.flags.f_contiguous and not value.flags.c_contiguous
        message.dtype = value.dtype.name
        message.shape.extend(value.shape)
        message.fortran = fortran
        message.data = value.tobytes("F" if fortran else "C")
        copies.add(value.nbytes)

    def read(message: Any) -> Any:
        name, shape, data = message.dtype, tuple(message.shape), message.data
        found = _known_dtype(name)
        if declared is not None and found != declared:
            raise ValueError(f"the array has dtype {name[:40]!r} where {dtype} is declared")
        size = found.itemsize
        for extent in shape:
            size *= extent
        if len(shape) > NDIM_MAX or any(extent < 0 for extent in shape) or size != len(data):
            raise ValueError(f"an array of shape {shape[:NDIM_MAX]} and dtype {name} does not have {len(data)} bytes")
        copies.add(size)
        # bytes are immutable, so the array is read-only; its memory lives as long as it is referenced.
        return np.frombuffer(data, found).reshape(shape, order="F" if message.fortran else "C")

    return write, read


def _known_dtype(name: str) -> Any:
    import numpy as np

    found = np.sctypeDict.get(name)
    dtype = np.dtype(found) if found is not None else None
    if dtype is None or dtype.kind not in "biufc":
        raise ValueError(f"{name[:40]!r} is no dtype of numbers")
    return dtype
