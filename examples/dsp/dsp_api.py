"""The interface: declared once, imported by both sides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

import fastplug

__all__ = ["Dsp", "Peak"]


@dataclass
class Peak:
    """The strongest frequency of a signal."""

    frequency_hz: float
    power: float


@fastplug.interface("acme.dsp/1")
class Dsp(Protocol):
    def total(self, x: npt.NDArray[np.float64]) -> float: ...
    def fft(self, x: npt.NDArray[np.float64]) -> npt.NDArray[np.complex128]: ...
    def peak(self, x: npt.NDArray[np.float64], rate_hz: float = 1.0) -> Peak: ...
