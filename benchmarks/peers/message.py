"""The messages of the peers that carry bytes: one byte that names the operation, then its body. Arrays are float64, one-dimensional."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Buffer", "Touched", "answer", "decode_touched", "elements", "touch_head"]

Buffer = bytes | memoryview

_HEAD = struct.Struct("<4q")  # the three indices, and how many elements follow
_TOUCHED = struct.Struct("<q3d")


# The answer to touch(): the shape, and the values at the three indices that the caller drew. Plain, since what is timed is the array.
Touched = tuple[tuple[int, ...], float, float, float]


def touch_head(x: npt.NDArray[np.float64], i: int = 0, j: int = 0, k: int = 0) -> bytes:
    return _HEAD.pack(i, j, k, x.size)


def elements(x: npt.NDArray[np.float64]) -> memoryview:
    """The array's own memory: the peers that can send it without a copy of their own do."""
    return x.data.cast("B")


def decode_touched(body: Buffer) -> Touched:
    count, first, second, third = _TOUCHED.unpack(body)
    return (count,), first, second, third


def answer(operation: bytes, body: Buffer, data: Buffer | None = None) -> Buffer:
    """What the serving side answers; the array lies in `data`, or in `body` behind the head."""
    if operation == b"E":
        return body
    if operation == b"D":
        return json.dumps(json.loads(bytes(body))).encode()
    i, j, k, count = _HEAD.unpack_from(body)
    x: npt.NDArray[Any] = np.frombuffer(body if data is None else data, np.float64, count, _HEAD.size if data is None else 0)
    if operation == b"T":
        return _TOUCHED.pack(count, x[i], x[j], x[k])
    if operation == b"S":
        return struct.pack("<d", x.sum())
    raise ValueError(f"no operation {operation!r}")
