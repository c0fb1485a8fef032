"""The interface that the benchmarks call."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

import fastplug

from .peers.message import Touched

__all__ = ["Bench", "Touched"]


@fastplug.interface("fastplug.bench/1")
class Bench(Protocol):
    def echo(self, data: bytes) -> bytes:
        """Answers `data`."""

    def echo_dict(self, d: dict[str, float]) -> dict[str, float]:
        """Answers `d`."""

    def touch(self, x: npt.NDArray[np.float64], i: int, j: int, k: int) -> Touched:
        """Answers the shape of `x` and its values at three indices: proof that the array is there, without the time of reading it."""

    def total(self, x: npt.NDArray[np.float64]) -> float:
        """Answers the sum of `x`."""

    def pause(self, duration_s: float) -> None:
        """Sleeps: a call during which the plugin can be killed."""
