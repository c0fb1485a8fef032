"""What can be asked about memory: who keeps what, where numpy's own arrays lie, and what happens at a limit of descriptors."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

import fastplug

__all__ = ["Floats", "Lender"]

Floats = npt.NDArray[np.float64]


@fastplug.interface("test.lender/1")
class Lender(Protocol):
    def limit_descriptors(self, limited: bool) -> None: ...
    def total(self, x: Floats) -> float: ...
    def echo(self, x: Floats) -> Floats: ...
    def keep(self, x: Floats) -> int: ...
    def drop(self) -> None: ...
