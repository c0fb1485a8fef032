"""Arrays, in every way a handler can come to one."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt
from tests.plugins.arrays_api import Array, Arrays, Seen
from tests.plugins.gate import pass_gate
from tests.plugins.memory import address, memfd_inode

import fastplug
from fastplug.dtypes import describe, text_of

__all__ = ["NumpyArrays"]

Floats = npt.NDArray[np.float64]


class NumpyArrays(Arrays):
    def __init__(self) -> None:
        self._kept: Floats | None = None

    def seen(self, x: Array) -> Seen:
        flags = x.flags
        where = address(x), memfd_inode(x), os.getpid()
        return Seen(x.dtype.str, x.shape, x.strides, flags.writeable, flags.c_contiguous, flags.f_contiguous, *where)

    def items(self, x: Array) -> bytes:
        return x.tobytes()

    def echo(self, x: Array) -> Array:
        return x

    def echo_all(self, xs: list[Array]) -> list[Array]:
        return xs

    def dtypes(self, xs: list[Array]) -> list[str]:
        return [text_of(describe(x.dtype)) for x in xs]

    def view(self, x: Floats, start: int, stop: int, step: int) -> Floats:
        return x[start:stop:step]

    def transposed(self, x: Array) -> Array:
        return x.T

    def flipped(self, x: Array) -> Array:
        reverse: Any = (..., *[slice(None, None, -1)] * x.ndim)
        flipped: Array = x[reverse]
        return flipped

    def twice(self, x: Floats) -> tuple[Floats, Floats]:
        return x, x[1:]

    def made(self, n: int, value: float) -> Floats:
        return np.full(n, value)

    def born(self, n: int, value: float) -> Floats:
        result = fastplug.empty(n, np.float64)
        result[:] = value
        return result

    def born_part(self, n: int) -> Floats:
        whole = fastplug.empty((2, n))
        whole[:] = [[1.0], [2.0]]
        part: Floats = whole[1]
        return part

    def keep(self, x: Floats) -> None:
        self._kept = x

    def kept(self) -> Floats:
        assert self._kept is not None
        return self._kept

    def drop(self) -> None:
        self._kept = None

    def total(self, x: Floats, *, weights: Floats | None = None) -> float:
        return float(x.sum() if weights is None else x @ weights)

    def wrong_dtype(self) -> Floats:
        wrong: Any = np.zeros(300, np.float32)
        result: Floats = wrong
        return result

    def no_array(self) -> Floats:
        wrong: Any = [1.0]
        result: Floats = wrong
        return result

    def objects(self) -> Array:
        return np.array([object()])

    def write(self, x: Floats) -> str:
        try:
            x[0] = 1.0
        except ValueError as error:
            return str(error)
        return "written"

    def held(self, x: Floats, gate: str) -> float:
        pass_gate(gate)
        return float(x.sum())


if __name__ == "__main__":
    fastplug.serve(NumpyArrays())
