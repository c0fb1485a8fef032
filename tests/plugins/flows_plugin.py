"""Streams, callbacks and many calls."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Generator, Iterable, Iterator

import numpy as np
from tests.plugins.flows_api import Floats, Flows, Listener
from tests.plugins.gate import pass_gate

import fastplug

WORKERS = 3


class PlainFlows(Flows):
    def __init__(self) -> None:
        self._log: list[str] = []
        self._kept: list[Callable[[int], int]] = []

    def double(self, n: int) -> int:
        return 2 * n

    def fail(self, n: int) -> int:
        if n % 10 == 7:
            raise ValueError(n)
        return n

    def wait(self, folder: str) -> None:
        pass_gate(folder)

    def log(self) -> list[str]:
        found, self._log = self._log, []
        return found

    def count(self, n: int) -> Iterator[int]:
        try:
            yield from range(n)
        except GeneratorExit:
            self._log.append("closed")
            raise
        else:
            self._log.append("ended")

    def arrays(self, size: int, n: int) -> Generator[Floats, None, None]:
        for i in range(n):
            x = fastplug.empty(size)
            x[:] = i
            yield x

    def break_at(self, n: int) -> Iterator[int]:
        yield from range(n)
        raise KeyError(n)

    def texts(self, size: int, n: int) -> Iterator[str]:
        for i in range(n):
            yield chr(97 + i % 26) * size

    def odd(self, what: str) -> Iterator[int]:
        odd = {"list": [1, 2, 3], "number": 5, "wrong": iter(["x"]), "raises": None}
        if what == "raises":
            raise OSError(what)
        return odd[what]  # type: ignore[return-value]

    def total(self, values: Iterable[int]) -> int:
        return sum(values)

    def total_of(self, values: Iterable[Floats], first: int) -> float:
        return first + sum(float(x.sum()) for x in values)

    def first(self, values: Iterator[int]) -> int:
        return next(values)

    def doubled(self, values: Iterator[int]) -> Iterator[int]:
        for value in values:
            yield 2 * value

    def pairs(self, values: Iterator[int]) -> Iterator[tuple[int, int]]:
        yield from zip(values, values, strict=False)

    def each(self, n: int, tell: Callable[[int], int]) -> int:
        return sum(tell(i) for i in range(n))

    def tell_and_wait(self, tell: Callable[[int], int], folder: str) -> int:
        told = tell(0)
        pass_gate(folder)
        return told

    def maybe(self, tell: Callable[[int], None] | None = None) -> bool:
        if tell is not None:
            tell(1)
        return tell is not None

    def apply(self, x: Floats, f: Callable[[Floats], Floats]) -> Floats:
        return np.asarray(f(x)) + 1

    def keep(self, tell: Callable[[int], int]) -> None:
        self._kept.append(tell)

    def drop(self) -> int:
        kept, self._kept = self._kept, []
        return len(kept)

    def use(self, n: int) -> int:
        return sum(tell(n) for tell in self._kept)

    def use_thread(self, n: int) -> int:
        return self._in_thread(lambda: self.use(n))

    def thread_of(self, tell: Callable[[int], int], n: int) -> int:
        return self._in_thread(lambda: tell(n))

    def _in_thread(self, call: Callable[[], int]) -> int:
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(call()))
        thread.start()
        thread.join(60)
        return found[0]

    def listen(self, listener: Listener) -> int:
        heard = sum(listener.heard(word) for word in ("one", "two", "three"))
        return heard + int(listener.said(np.ones(1000), loud=True).sum())

    def counted(self, n: int, tell: Callable[[int], int]) -> Iterator[int]:
        for i in range(n):
            yield tell(i)

    def fed_back(self, values: Iterator[int], tell: Callable[[int], int]) -> int:
        return sum(tell(value) for value in values)


class UncollectedFlows(PlainFlows):
    """What is in a cycle stays."""

    def __init__(self) -> None:
        super().__init__()
        gc.disable()


def serve_with_workers() -> None:
    """An entry point that serves by itself."""
    fastplug.serve(PlainFlows(), workers=WORKERS)


if __name__ == "__main__":
    fastplug.serve(PlainFlows())
