"""What the fork tests call."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

import fastplug


@fastplug.interface("test.forks/1")
class Forks(Protocol):
    def make(self, size: int) -> npt.NDArray[np.float64]: ...
    def total(self, x: npt.NDArray[np.float64]) -> float: ...
    def fork_and_come_back(self, how: str) -> int: ...
    def fork_and_call(self, size: int) -> int: ...
