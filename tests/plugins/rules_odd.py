"""Other signatures under the same name."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

import fastplug

__all__ = ["Rules"]


@fastplug.interface("test.rules/1")
class Rules(Protocol):
    def fit(self, options: dict[str, int]) -> int: ...
    def scale(self, x: npt.NDArray[np.float32], by: int) -> float: ...
