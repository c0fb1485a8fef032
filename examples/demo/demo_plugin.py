"""The plugin: a running statistic, and a filter for images, in plain numpy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from demo_api import Demo, Group

import fastplug

__all__ = ["NumpyDemo"]


class NumpyDemo(Demo):
    def __init__(self) -> None:
        self.reset(0)

    def reset(self, carriers: int) -> None:
        self.rows = 0
        self.count = np.zeros(carriers)
        self.mean = np.zeros(carriers)
        self.squares = np.zeros(carriers)  # the sum of the squared distances from the mean

    def add(self, carrier: npt.NDArray[np.uint8], delay_min: npt.NDArray[np.float64]) -> int:
        """Merges the batch's own count, mean and squares into the running ones (Chan, Golub, LeVeque 1979)."""
        known = ~np.isnan(delay_min)
        group, value, groups = carrier[known], delay_min[known], len(self.count)
        count = np.bincount(group, minlength=groups)
        mean = np.bincount(group, value, groups) / np.maximum(count, 1)
        squares = np.bincount(group, (value - mean[group]) ** 2, groups)
        total = self.count + count
        distance = mean - self.mean
        self.squares += squares + distance**2 * self.count * count / np.maximum(total, 1)
        self.mean += distance * count / np.maximum(total, 1)
        self.count = total
        self.rows += delay_min.size
        return self.rows

    def statistic(self) -> list[Group]:
        rows = zip(self.count, self.mean, self.squares, strict=True)
        return [Group(int(count), float(mean), float(squares / max(count - 1, 1))) for count, mean, squares in rows]

    def edges(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        p = np.pad(image, 1, mode="edge").astype(np.float32)
        across = p[:-2] + 2 * p[1:-1] + p[2:]  # smoothed down the columns
        along = p[:, :-2] + 2 * p[:, 1:-1] + p[:, 2:]  # smoothed along the rows
        strength = np.hypot(across[:, 2:] - across[:, :-2], along[2:] - along[:-2])
        out: npt.NDArray[np.uint8] = fastplug.empty(image.shape, np.uint8)  # born in shared memory: returned without a copy
        np.minimum(strength, 255, out=out, casting="unsafe")
        return out


if __name__ == "__main__":
    fastplug.serve(NumpyDemo())
