"""A plugin that gets arrays, keeps them, and gives them back: ``python -m benchmarks.keeper``."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

import fastplug

__all__ = ["Array", "Keeper", "Plugin"]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


@fastplug.interface("fastplug.keeper/1")
class Keeper(Protocol):
    def echo(self, x: Array) -> Array:
        """Answers `x`."""

    def reversed(self, x: Array) -> Array:
        """Answers `x`, the other way round: a view of it."""

    def doubled(self, x: Array) -> Array:
        """Answers a new array, as numpy makes it: `x` twice, one behind the other, flat."""

    def root(self, x: Floats) -> Floats:
        """Answers `np.sqrt(x) * 2`."""

    def keep(self, key: int, x: Array) -> None:
        """Keeps `x` under `key`."""

    def give(self, key: int) -> Array:
        """Answers what was kept, and keeps it no more."""

    def touch(self, x: Floats, i: int) -> tuple[int, float]:
        """Answers how many elements there are, and one of them."""

    def pid(self) -> int:
        """Answers the process id."""


class Plugin(Keeper):
    def __init__(self) -> None:
        self._kept: dict[int, Array] = {}

    def echo(self, x: Array) -> Array:
        return x

    def reversed(self, x: Array) -> Array:
        flipped: Array = x[::-1] if x.ndim else x
        return flipped

    def doubled(self, x: Array) -> Array:
        result: Array = np.empty((2, x.size), x.dtype)  # concatenate() would change a foreign byte order
        result[:] = x.reshape(-1)
        return result.reshape(-1)

    def root(self, x: Floats) -> Floats:
        result: Floats = np.sqrt(x) * 2
        return result

    def keep(self, key: int, x: Array) -> None:
        self._kept[key] = x

    def give(self, key: int) -> Array:
        return self._kept.pop(key)

    def touch(self, x: Floats, i: int) -> tuple[int, float]:
        return x.size, x.item(i)

    def pid(self) -> int:
        import os

        return os.getpid()


if __name__ == "__main__":
    fastplug.serve(Plugin())
