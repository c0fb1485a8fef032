"""Serves ``tests.plugins.lender_api``."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable

import numpy as np
from tests.plugins.lender_api import Floats, Lender, Pair

import fastplug

__all__ = ["NumpyLender"]


class NumpyLender(Lender):
    def __init__(self) -> None:
        self._limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._kept: list[Floats] = []
        self._sum: Floats | None = None

    def limit_descriptors(self, limited: bool) -> None:
        """This process can open no further descriptor, or as many as at first."""
        resource.setrlimit(resource.RLIMIT_NOFILE, self._limits)
        if limited:
            free = os.dup(0)
            os.close(free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, self._limits[1]))

    def total(self, x: Floats) -> float:
        return float(x.sum())

    def echo(self, x: Floats) -> Floats:
        return x

    def keep(self, x: Floats) -> int:
        self._kept.append(x)
        return len(self._kept)

    def drop(self) -> None:
        self._kept.clear()

    def root(self, x: Floats) -> Floats:
        result: Floats = np.sqrt(x) * 2
        return result

    def made(self, n: int, how: str) -> Floats:
        """Of n ones, as numpy makes them in different ways."""
        ways: dict[str, Callable[[], Floats]] = {
            "full": lambda: np.full(n, 1.0),
            "zeros": lambda: np.zeros(n) + 1.0,
            "calloc": lambda: np.zeros(n),
            "view": lambda: np.ones(2 * n)[::2],
            "reshaped": lambda: np.ones(n).reshape(-1, 1)[:, 0],
            "fromiter": lambda: np.fromiter((1.0 for _ in range(n)), np.float64),
            "resized": lambda: _resized(n),
            "sorted": lambda: np.sort(np.ones(n)),
            "concatenated": lambda: np.concatenate([np.ones(n // 2), np.ones(n - n // 2)]),
        }
        return ways[how]()

    def several(self, n: int) -> tuple[list[Floats], dict[str, Floats], Pair]:
        return [np.full(n, 0.0), np.full(n, 1.0)], {"two": np.full(n, 2.0)}, Pair(np.full(n, 3.0), np.full(n, 4.0))

    def add(self, x: Floats) -> Floats:
        """What an ordinary handler does: it keeps what it returns, and changes it with the next call."""
        self._sum = x + 0.0 if self._sum is None else self._sum
        self._sum += x
        return self._sum

    def change(self, x: Floats) -> Floats:
        own = fastplug.writable(x)
        own[0] = -1.0
        return own[:10]

    def like(self, x: Floats) -> Floats:
        made = fastplug.empty_like(x)
        made[...] = 5.0
        return made

    def fork(self, n: int) -> Floats:
        """A child that writes to what its parent has, and allocates: the parent sees nothing of either."""
        x = np.ones(n)
        pid = os.fork()
        if pid == 0:
            x += 1.0
            y = np.full(n, 7.0)
            os._exit(int(y[0]) - 7)
        assert os.waitpid(pid, 0)[1] == 0
        return x

    def numpy_blocks(self) -> int:
        from fastplug.shm import _ndarray_memory

        return _ndarray_memory.allocated()

    def kept_total(self) -> float:
        return float(sum(x.sum() for x in self._kept))

    def oldest(self) -> Floats:
        return self._kept[0]


def _resized(n: int) -> Floats:
    x = np.ones(n // 2)
    x.resize(n, refcheck=False)
    x[n // 2 :] = 1.0
    return x
