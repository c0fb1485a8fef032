"""Serves ``tests.plugins.lender_api``."""

from __future__ import annotations

import os
import resource

from tests.plugins.lender_api import Floats, Lender

__all__ = ["NumpyLender"]


class NumpyLender(Lender):
    def __init__(self) -> None:
        self._limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._kept: list[Floats] = []

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
