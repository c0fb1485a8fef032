"""What a Go host calls: scalars, structs, arrays, errors, and proof of where they were computed."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
from typing import Protocol

import numpy as np
import numpy.typing as npt

import fastplug

__all__ = ["Reading", "Station", "Summary", "Unit"]


class Unit(enum.Enum):
    CELSIUS = "C"
    KELVIN = "K"


@dataclasses.dataclass
class Reading:
    place: str
    values: list[float]
    unit: Unit = Unit.CELSIUS
    taken: dt.datetime | None = None


@dataclasses.dataclass
class Summary:
    place: str
    mean: float
    unit: Unit
    counts: dict[str, int]


@fastplug.interface("test.station/1")
class Station(Protocol):
    def pid(self) -> int: ...
    def scaled(self, x: int, factor: float = 2.5) -> float: ...
    def summary(self, reading: Reading) -> Summary: ...
    def cumulated(self, x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]: ...
    def look_up(self, key: str) -> str: ...
