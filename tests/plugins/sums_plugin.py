"""Sums bytes."""

from __future__ import annotations

from tests.plugins.sums_api import Sums

import fastplug


class PlainSums(Sums):
    def total(self, data: bytes) -> int:
        return sum(data)


if __name__ == "__main__":
    fastplug.serve(PlainSums())
