"""Asynchronous handlers over gRPC: a thread of the engine hands one to the event loop, and waits for it as it does for a worker."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Self

from fastplug.contexts import Context
from fastplug.protocols._tasks import Producing, Running, Tasks

__all__ = ["Items", "result_of"]

# Items that a generator makes ahead, as over the fast protocol.
AHEAD_MAX = 32


def _telling(event: threading.Event) -> Callable[[], bool]:
    """How the loop tells a thread that waits for the event, which it never misses."""

    def tell() -> bool:
        event.set()
        return False

    return tell


def result_of(tasks: Tasks, made: Any, context: Context) -> Any:
    """What a coroutine returns; raises what it raises. It ends when its call does."""
    over = threading.Event()
    running = Running(tasks, made, context, _telling(over))
    running.start()
    over.wait()  # ends with the answer, the caller's end, or the plugin's
    return running.outcome()


class Items:
    """What an asynchronous generator makes, for a thread that waits for it."""

    def __init__(self, tasks: Tasks, made: Any, context: Context) -> None:
        self._changed = threading.Event()
        self._running = Producing(tasks, made, context, _telling(self._changed), window=AHEAD_MAX)
        self._running.start()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        while True:
            self._changed.clear()
            self._running.told = False
            if self._running.ready:
                break
            self._changed.wait()  # as above
        self._running.granted(1)
        return next(self._running)

    def close(self) -> None:
        """The generator runs its clean-up, on its loop."""
        self._running.close()
