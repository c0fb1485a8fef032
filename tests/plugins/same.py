"""Equality as a conformance test means it: the same types all the way down, NaN equal to NaN, arrays by dtype, shape and bits."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import math
from typing import Any

import msgspec
import numpy as np

__all__ = ["difference"]


def difference(a: Any, b: Any, where: str = "value") -> str | None:
    """Where and how ``b`` differs from ``a``; None if it does not."""
    if type(a) is not type(b):
        return f"{where}: {type(a)} became {type(b)}"
    parts = _parts(a, b)
    if parts is None:
        return None if _equal(a, b) else f"{where}: {a!r} became {b!r}"
    if len(parts[0]) != len(parts[1]):
        return f"{where}: {len(parts[0])} items became {len(parts[1])}"
    found = (difference(one, other, f"{where}[{i}]") for i, (one, other) in enumerate(zip(*parts, strict=True)))
    return next((text for text in found if text), None)


def _parts(a: Any, b: Any) -> tuple[list[Any], list[Any]] | None:
    if isinstance(a, (list, tuple)):
        return list(a), list(b)
    if isinstance(a, dict):  # dicts of another order are equal: a map of protobuf has none
        keys = sorted(b, key=list(a).index) if a.keys() == b.keys() else list(b)
        return [*a, *a.values()], [*keys, *map(b.get, a)]
    if dataclasses.is_dataclass(a):
        names = [field.name for field in dataclasses.fields(a)]
        return [getattr(a, name) for name in names], [getattr(b, name) for name in names]
    if isinstance(a, msgspec.Struct):
        return list(msgspec.structs.astuple(a)), list(msgspec.structs.astuple(b))
    if isinstance(a, complex):
        return [a.real, a.imag], [b.real, b.imag]
    return None


def _equal(a: Any, b: Any) -> bool:
    same: bool
    if isinstance(a, float):
        same = (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    elif isinstance(a, dt.datetime):
        same = (a.replace(tzinfo=None), a.utcoffset(), a.fold) == (b.replace(tzinfo=None), b.utcoffset(), b.fold)
    elif isinstance(a, np.ndarray):
        items = np.array_equal(a, b) if a.dtype.kind == "T" else a.tobytes() == b.tobytes()  # the bytes of the former are pointers
        same = a.dtype == b.dtype and a.shape == b.shape and bool(items)
    elif isinstance(a, decimal.Decimal):
        same = str(a) == str(b)  # a signalling NaN cannot be compared
    else:
        same = a == b
    return same
