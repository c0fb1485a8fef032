"""What a handler learns of its call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import fastplug

__all__ = ["Contexts"]


@fastplug.interface("test.context/1")
class Contexts(Protocol):
    def metadata(self) -> dict[str, str]: ...
    def remaining_s(self) -> float | None: ...
    def cancelled(self) -> bool: ...
    def sleep_until_cancelled(self, path: str) -> bool:
        """Says at the gate that it is here (the gate must be open), and waits for the caller to give up."""
        ...

    def answer_when_cancelled(self, path: str) -> bool:
        """Passes the gate, and answers when the caller has given up: whoever tells of it is held up until ``let_go()`` is called."""
        ...

    def give_up_first(self, numbers: Iterator[int]) -> int:
        """Raises Cancelled, as check() does, a moment before the caller's deadline."""
        ...

    def let_go(self) -> None: ...

    def seen(self) -> list[str]:
        """What handlers whose answer nobody waited for have seen, since the last time."""
        ...

    def keep(self, tell: Callable[[], int]) -> None: ...
    def ask_kept(self, early: bool) -> None:
        """Calls what was kept, and waits for the caller to give up. ``early``: it asks for its context before, too."""
        ...

    def stand(self, path: str) -> int:
        """Passes the gate."""
        ...

    def hold_the_gil(self, path: str, count: int) -> int:
        """Says at the gate that it is here (the gate must be open), then runs C code that lets no other thread run."""
        ...

    def add(self, x: int, y: int) -> int: ...
