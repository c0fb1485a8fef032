"""An interface as an older side knows it. rules_fresh.py and rules_odd.py declare the same name differently."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import fastplug

__all__ = ["Options", "Rules"]


@dataclasses.dataclass
class Options:
    depth: int
    label: str = "none"


@fastplug.interface("test.rules/1")
class Rules(Protocol):
    def fit(self, options: Options) -> Options: ...
    def scale(self, x: float, by: float = 2.0) -> float: ...
