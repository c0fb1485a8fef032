"""A newer side: a further method, further fields, a further parameter, each of them with a default."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import fastplug

__all__ = ["Options", "Rules"]


@dataclasses.dataclass
class Options:
    depth: int
    label: str = "none"
    ratio: float = 0.5
    tags: list[str] = dataclasses.field(default_factory=lambda: ["fresh"])


@fastplug.interface("test.rules/1")
class Rules(Protocol):
    def extra(self) -> str: ...
    def fit(self, options: Options) -> Options: ...
    def scale(self, x: float, by: float = 2.0, offset: float = 0.0) -> float: ...
