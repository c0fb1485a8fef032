"""Values that call back while they are made into messages, or out of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import fastplug


@dataclass
class Pair:
    a: int
    b: int


kept: list[Callable[[int], int]] = []


@dataclass
class Waking:
    """Its constructor calls what is kept: a callback in the plugin, the plugin in the host."""

    a: int

    def __post_init__(self) -> None:
        if kept:
            self.a = kept[-1](self.a)


@fastplug.interface("test.lazy/1")
class LazyPairs(Protocol):
    def keep(self, tell: Callable[[int], int]) -> None: ...
    def pair(self, a: int) -> Pair: ...
    def pairs(self, n: int) -> Iterator[Pair]: ...
    def made(self, a: int, tell: Callable[[int], int]) -> Pair: ...
    def told(self, a: int, tell: Callable[[int], int]) -> int: ...
    def around(self, a: int, tell: Callable[[int], int]) -> int: ...
    def taken(self, pair: Waking) -> int: ...
    def woken(self, a: int) -> Waking: ...
    def all_woken(self, n: int) -> Iterator[Waking]: ...
    def told_woken(self, a: int, tell: Callable[[Waking], int]) -> int: ...
    def text(self, n: int) -> str: ...
    def on_signal(self) -> int: ...


class _Lazy(Pair):
    def __init__(self, a: int, tell: Callable[[int], int]) -> None:
        self.a = a
        self._tell = tell

    @property
    def b(self) -> int:  # type: ignore[override]  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._tell(self.a)


class Lazy(LazyPairs):
    def keep(self, tell: Callable[[int], int]) -> None:
        kept[:] = [tell]

    def pair(self, a: int) -> Pair:
        return _Lazy(a, kept[-1])

    def pairs(self, n: int) -> Iterator[Pair]:
        for k in range(n):
            yield _Lazy(k, kept[-1])

    def made(self, a: int, tell: Callable[[int], int]) -> Pair:
        return _Lazy(a, tell)

    def told(self, a: int, tell: Callable[[int], int]) -> int:
        kept[:] = [tell]
        try:
            return tell(a)
        finally:
            kept.clear()

    def around(self, a: int, tell: Callable[[int], int]) -> int:
        return tell(a)

    def taken(self, pair: Waking) -> int:
        return pair.a

    def woken(self, a: int) -> Waking:
        return Waking(a)

    def all_woken(self, n: int) -> Iterator[Waking]:
        return map(Waking, range(n))

    def told_woken(self, a: int, tell: Callable[[Waking], int]) -> int:
        return tell(Waking(a))

    def text(self, n: int) -> str:
        return "x" * n

    def on_signal(self) -> int:
        signal.signal(signal.SIGUSR1, lambda *_: print(kept[-1](7)))
        return os.getpid()
