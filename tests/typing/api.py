"""The interfaces that accepted.py and refused.py use."""
# pyright: strict

from __future__ import annotations

import abc
import dataclasses
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt

import fastplug

__all__ = ["Abstract", "Dsp", "Flows", "Model", "NumpyDsp", "PlainFlows"]


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


@fastplug.interface("acme.flows/1")
class Flows(Protocol):
    def square(self, n: int) -> int: ...
    async def half(self, n: int) -> float: ...
    def count(self, n: int) -> Iterator[int]: ...
    def total(self, values: Iterable[int]) -> int: ...
    def ticks(self, n: int) -> AsyncIterator[int]: ...
    async def sum_of(self, values: AsyncIterator[int]) -> int: ...
    def fit(self, n: int, progress: Callable[[int], None]) -> int: ...


class PlainFlows(Flows):
    def square(self, n: int) -> int:
        return n * n

    async def half(self, n: int) -> float:
        return n / 2

    def count(self, n: int) -> Iterator[int]:
        yield from range(n)

    def total(self, values: Iterable[int]) -> int:
        return sum(values)

    async def ticks(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i

    async def sum_of(self, values: AsyncIterator[int]) -> int:
        return sum([value async for value in values])

    def fit(self, n: int, progress: Callable[[int], None]) -> int:
        progress(n)
        return n


class NumpyDsp(Dsp):
    def total(self, x: npt.NDArray[np.float64]) -> float:
        return float(x.sum())

    def fft(self, x: npt.NDArray[np.float64]) -> npt.NDArray[np.complex128]:
        result = fastplug.empty(x.shape, np.complex128)
        result[:] = np.fft.fft(x)
        return result

    def fit(self, x: npt.NDArray[np.float64], *, steps: int = 10) -> Model:
        return Model("m", float(x.std()) / steps)
