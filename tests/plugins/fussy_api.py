"""A dataclass whose constructor is fussy, beside an array: what it refuses must not cost the connection or the memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt

import fastplug

LIMITS = {"most": 10}


@dataclasses.dataclass
class Level:
    value: int

    def __post_init__(self) -> None:
        if self.value > LIMITS["most"]:
            raise ValueError(f"level {self.value} is over {LIMITS['most']}")


@fastplug.interface("tests.fussy/1")
class Fussy(Protocol):
    def set(self, level: Level, x: npt.NDArray[np.float64]) -> int: ...
    def get(self, value: int) -> Level: ...
    def each(self, values: list[int]) -> Iterator[Level]: ...
