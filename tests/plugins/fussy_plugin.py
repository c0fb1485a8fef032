"""Takes and gives levels; allows higher ones than its host does."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from tests.plugins import fussy_api
from tests.plugins.fussy_api import Fussy, Level


class Levels(Fussy):
    def set(self, level: Level, x: npt.NDArray[np.float64]) -> int:
        return level.value + x.size

    def each(self, values: list[int]) -> Iterator[Level]:
        return map(self.get, values)

    def get(self, value: int) -> Level:
        before, fussy_api.LIMITS["most"] = fussy_api.LIMITS["most"], value
        try:
            return Level(value)
        finally:
            fussy_api.LIMITS["most"] = before
