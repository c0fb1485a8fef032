"""A second interface, and the same as a newer host has it, which can do without what is new."""

from __future__ import annotations

from typing import Any, Protocol

import numpy.typing as npt

import fastplug

__all__ = ["Extra", "OptionalHost"]


@fastplug.interface("test.extra/2")
class Extra(Protocol):
    def name(self) -> str: ...


@fastplug.interface("test.extra/2")
class OptionalHost(Protocol):
    def name(self) -> str: ...

    @fastplug.optional
    def size(self, of: list[int], unit: str = "m") -> int:
        return 0

    @fastplug.optional
    def anything(self, x: npt.NDArray[Any]) -> None:
        return None
