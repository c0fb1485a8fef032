from collections.abc import Callable
from typing import Final

from typing_extensions import disjoint_base

from fastplug.protocols._call import Caller
from fastplug.protocols._waiting import Turnstile

__all__ = ["LANES_MAX", "Pool"]

LANES_MAX: Final[int]

@disjoint_base
class Pool(Turnstile):
    @property
    def limit(self) -> int: ...
    @property
    def lanes(self) -> int: ...
    def __init__(self, first: Caller, limit: int = 1, spread: bool = False, opener: Callable[[int], None] | None = None) -> None: ...
    def add(self, caller: Caller) -> None: ...
    def refused(self) -> None: ...
