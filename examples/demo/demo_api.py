"""What the host may ask of the plugin. Both sides import this file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

import fastplug

__all__ = ["Demo", "Group"]


@dataclass
class Group:
    """The running statistic of one carrier: how many delays are known, their mean and their sample variance."""

    count: int
    mean: float
    variance: float


@fastplug.interface("fastplug.demo/1")
class Demo(Protocol):
    def reset(self, carriers: int) -> None:
        """Forgets everything; from now on there are `carriers` carriers, numbered from 0."""

    def add(self, carrier: npt.NDArray[np.uint8], delay_min: npt.NDArray[np.float64]) -> int:
        """Takes one batch of flights into the statistic; an unknown delay is NaN. Answers how many flights it has seen."""

    def statistic(self) -> list[Group]:
        """The statistic of each carrier."""

    def edges(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The strength of the edges in a grey image (Sobel), of the same shape."""
