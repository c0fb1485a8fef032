"""Sums bytes."""

from __future__ import annotations

import fastplug
from tests.plugins.sums_api import Sums


class PlainSums(Sums):
    def total(self, data: bytes) -> int:
        return sum(data)


if __name__ == "__main__":
    fastplug.serve(PlainSums())
