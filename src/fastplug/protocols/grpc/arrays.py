"""Arrays <-> NDArray messages. Pure.

The bytes are in this machine's order: a plugin runs on its host's machine. Raises as ``values`` does.
"""

from __future__ import annotations

import math
from typing import Any

from fastplug import dtypes
from fastplug._wire_words import Unfit, got
from fastplug.errors import CopyRequired
from fastplug.protocols.grpc.values import Scalar

__all__ = ["ArrayCodec", "ArrayCopies", "arrow_codec"]

# numpy's own limit; a peer's shape is checked against it before numpy sees it.
NDIM_MAX = 64
# docs/wire.md, "Arrays": smaller ones travel inline on every transport.
STRICT_BYTES = 1024


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


class ArrayCodec:
    """Both directions of one declared array. Args: ``dtype`` as in a TypeNode; ``copies`` counts."""

    def __init__(self, dtype: str | None, copies: ArrayCopies) -> None:
        import numpy as np  # there is an array: whoever declared it has imported numpy

        self._np = np
        self._copies = copies
        self._words = (dtype or "any dtype that travels")[:40]
        self._family = dtypes.FAMILIES.get(dtype or "")
        self._declared = None if dtype is None or self._family else dtypes.built(dtypes.parsed(dtype))

    def _fits(self, dtype: Any) -> bool:
        declared = self._declared is None or dtype == self._declared
        return declared and dtype.itemsize > 0 and self._family in (None, dtype.kind)

    def write(self, message: Any, value: Any) -> None:
        """Raises Unfit, CopyRequired."""
        if not isinstance(value, self._np.ndarray):
            raise Unfit(got(value))
        if isinstance(value, self._np.ma.MaskedArray):
            raise Unfit("a masked array; send its data and its mask as two arrays")
        try:
            described = dtypes.describe(value.dtype)
        except dtypes.UndescribedError as error:
            raise Unfit(f"an array of {error}") from None
        if not self._fits(value.dtype):
            raise Unfit(f"numpy.ndarray[{dtypes.shown(described)[:500]}]")
        self._copies.check(value.nbytes)
        message.dtype = dtypes.text_of(described)
        message.shape.extend(value.shape)
        if value.dtype.kind == "T":
            message.data = dtypes.packed_strings(value)
        else:
            message.fortran = value.flags.f_contiguous and not value.flags.c_contiguous
            message.data = value.tobytes("F" if message.fortran else "C")
        self._copies.add(value.nbytes)

    def read(self, message: Any) -> Any:
        """Raises ValueError."""
        shape, data = tuple(message.shape), message.data
        found = dtypes.built(dtypes.parsed(message.dtype))
        if not self._fits(found):
            raise ValueError(f"the array has dtype {message.dtype[:40]!r} where {self._words} is declared")
        if len(shape) > NDIM_MAX or any(extent < 0 for extent in shape):
            raise ValueError(f"an array has shape {shape[:NDIM_MAX]}")
        self._copies.add(len(data))
        if found.kind == "T":
            return dtypes.unpacked_strings(data, shape, found)
        if found.itemsize * math.prod(shape) != len(data):
            raise ValueError(f"an array of shape {shape} and dtype {message.dtype[:40]!r} does not have {len(data)} bytes")
        # bytes are immutable, so the array is read-only; its memory lives as long as it is referenced.
        return self._np.frombuffer(data, self._declared or found).reshape(shape, order="F" if message.fortran else "C")


def arrow_codec(name: str, copies: ArrayCopies) -> Scalar:
    """A table of Arrow, or a part of one, <-> the bytes of an Arrow IPC stream, which any Arrow library reads."""
    from fastplug import _wire_arrow

    def to_proto(value: Any) -> bytes:
        data = _wire_arrow.stream_of(_wire_arrow.accepted(value, name))
        copies.check(len(data))
        copies.add(len(data))
        return data

    def from_proto(data: bytes) -> Any:
        made = _wire_arrow.of_stream(data, name)
        copies.add(len(data))
        return made

    return Scalar(to_proto, from_proto)
