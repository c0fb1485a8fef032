"""Handlers that look at their call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from tests.plugins.context_api import Contexts
from tests.plugins.gate import pass_gate

import fastplug

__all__ = ["ContextPlugin"]

# A watchdog: the test gives the call up long before.
JUST_BEFORE_S = 0.007
TIMEOUT_S = 60.0


class ContextPlugin(Contexts):
    def __init__(self) -> None:
        self._seen: list[str] = []
        self._held = threading.Event()
        self._kept: list[Callable[[], int]] = []

    def metadata(self) -> dict[str, str]:
        return dict(fastplug.context().metadata)

    def remaining_s(self) -> float | None:
        return fastplug.context().remaining_s

    def cancelled(self) -> bool:
        return fastplug.context().cancelled

    def sleep_until_cancelled(self, path: str) -> bool:
        context = fastplug.context()
        context.add_cancel_callback(lambda: self._seen.append("callback"))
        pass_gate(path)
        woken = context.wait(TIMEOUT_S)
        try:
            context.check()
        except fastplug.Cancelled:
            self._seen.append(f"cancelled {woken}")
        return woken

    def answer_when_cancelled(self, path: str) -> bool:
        context = fastplug.context()
        context.add_cancel_callback(lambda: self._held.wait(TIMEOUT_S))
        pass_gate(path)
        return context.wait(TIMEOUT_S)

    def give_up_first(self, numbers: Iterator[int]) -> int:
        context = fastplug.context()
        assert context.remaining_s is not None
        context.wait(context.remaining_s - JUST_BEFORE_S)
        raise fastplug.Cancelled("the deadline is all but over")

    def let_go(self) -> None:
        self._held.set()

    def seen(self) -> list[str]:
        found, self._seen = self._seen, []
        return sorted(found)

    def keep(self, tell: Callable[[], int]) -> None:
        self._kept.append(tell)

    def ask_kept(self, early: bool) -> None:
        before = fastplug.context() if early else None
        self._kept.pop()()
        context = fastplug.context()
        assert before in (None, context)
        self._seen.append(f"asked, cancelled {context.wait(TIMEOUT_S)}")

    def stand(self, path: str) -> int:
        pass_gate(path)
        return 1

    def hold_the_gil(self, path: str, count: int) -> int:
        pass_gate(path)
        return sum(range(count))

    def add(self, x: int, y: int) -> int:
        return x + y
