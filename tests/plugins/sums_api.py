"""An interface without arrays."""

from __future__ import annotations

from typing import Protocol

import fastplug


@fastplug.interface("tests.sums/1")
class Sums(Protocol):
    def total(self, data: bytes) -> int:
        """The sum of the bytes."""
        ...
