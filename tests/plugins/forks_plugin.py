"""Makes arrays, and forks in a handler."""

from __future__ import annotations

import os
import sys

import numpy as np
import numpy.typing as npt
from tests.plugins.forks_api import Forks

import fastplug

__all__ = ["Forking"]


class Forking(Forks):
    def make(self, size: int) -> npt.NDArray[np.float64]:
        return np.arange(size, dtype=np.float64)

    def total(self, x: npt.NDArray[np.float64]) -> float:
        return float(x.sum())

    def fork_and_call(self, size: int) -> int:
        """A child of the plugin that touches an array of ours and goes."""
        made = fastplug.empty(size, np.float64)
        made[:] = 1
        pid = os.fork()
        if not pid:
            total = int(made.sum())
            del made
            os._exit(0 if total == size else 1)
        return os.waitpid(pid, 0)[1]

    def fork_and_come_back(self, how: str) -> int:
        """A child that does not end itself: it returns, or raises, where the plugin answers."""
        pid = os.fork()
        if pid:
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if how == "exit":
            sys.exit(7)
        if how == "raise":
            raise ValueError("in the child")
        return -1


if __name__ == "__main__":
    fastplug.serve(Forking())
