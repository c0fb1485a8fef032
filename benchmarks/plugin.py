"""The plugin of the benchmarks: ``python -m benchmarks.plugin``, started by a host."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt

import fastplug

from .bench_api import Bench, Touched

__all__ = ["Plugin"]


class Plugin(Bench):
    def echo(self, data: bytes) -> bytes:
        return data

    def echo_dict(self, d: dict[str, float]) -> dict[str, float]:
        return d

    def touch(self, x: npt.NDArray[np.float64], i: int, j: int, k: int) -> Touched:
        return x.shape, x.item(i), x.item(j), x.item(k)

    def total(self, x: npt.NDArray[np.float64]) -> float:
        return float(x.sum())

    def pause(self, duration_s: float) -> None:
        time.sleep(duration_s)


if __name__ == "__main__":
    fastplug.serve(Plugin())
