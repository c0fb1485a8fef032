"""The interfaces that accepted.py and refused.py use."""
# pyright: strict

from __future__ import annotations

import abc
import dataclasses
from typing import Protocol

import numpy as np
import numpy.typing as npt

import fastplug

__all__ = ["Abstract", "Dsp", "Model", "NumpyDsp"]


@dataclasses.dataclass
class Model:
    name: str
    error: float = 0.0


@fastplug.interface("acme.dsp/1")
class Dsp(Protocol):
    def total(self, x: npt.NDArray[np.float64]) -> float: ...
    def fft(self, x: npt.NDArray[np.float64]) -> npt.NDArray[np.complex128]: ...
    def fit(self, x: npt.NDArray[np.float64], *, steps: int = 10) -> Model: ...

    @fastplug.optional
    def norm(self, values: list[float]) -> float:
        return 0.0


@fastplug.interface("acme.abstract/1")
class Abstract(abc.ABC):
    @abc.abstractmethod
    def square(self, x: int) -> int: ...


class NumpyDsp(Dsp):
    def total(self, x: npt.NDArray[np.float64]) -> float:
        return float(x.sum())

    def fft(self, x: npt.NDArray[np.float64]) -> npt.NDArray[np.complex128]:
        result = fastplug.empty(x.shape, np.complex128)
        result[:] = np.fft.fft(x)
        return result

    def fit(self, x: npt.NDArray[np.float64], *, steps: int = 10) -> Model:
        return Model("m", float(x.std()) / steps)
