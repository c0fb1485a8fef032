"""Asynchronous handlers over gRPC: a thread of the engine hands one to the event loop, and waits for it as it does for a worker."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Self

from fastplug.protocols._tasks import Producing, Running, Tasks
from fastplug.protocols.grpc.workers import Activation

__all__ = ["Awaiting", "Items"]

# Items that a generator makes ahead, as over the fast protocol.
AHEAD_MAX = 32
# Stacks of calls that were given up, kept until the host asks for them: it does so at once, or never.
LEFT_MAX = 64


def _telling(event: threading.Event) -> Callable[[], bool]:
    """How the loop tells a thread that waits for the event, which it never misses."""

    def tell() -> bool:
        event.set()
        return False

    return tell


class Awaiting:
    """The asynchronous handlers of one plugin, and where each of them is."""

    def __init__(self) -> None:
        self._tasks = Tasks()
        self._running: dict[str, Running] = {}  # by the host's number for the call
        self._left: dict[str, str] = {}  # where those were that have been given up, in order

    def result_of(self, made: Any, activation: Activation) -> Any:
        """What a coroutine returns; raises what it raises. It ends when its call does."""
        over = threading.Event()
        running = Running(self._tasks, made, activation.context, _telling(over))
        self._start(running, activation)
        over.wait()  # ends with the answer, the caller's end, or the plugin's
        return running.outcome()

    def items(self, made: Any, activation: Activation) -> Items:
        """What an asynchronous generator makes."""
        changed = threading.Event()
        running = Producing(self._tasks, made, activation.context, _telling(changed), window=AHEAD_MAX)
        self._start(running, activation)
        return Items(running, changed)

    def _start(self, running: Running, activation: Activation) -> None:
        if activation.number:
            self._running[activation.number] = running
            activation.context.add_cancel_callback(lambda: self._leave(activation.number))  # before the task hears of it
        running.start()

    def _leave(self, call: str) -> None:
        running = self._running.get(call)
        if running is not None:
            self._left[call] = running.stack()
            if len(self._left) > LEFT_MAX:
                self._left.pop(next(iter(self._left)), None)

    def over(self, call: str) -> None:
        """The call of that number has ended."""
        self._running.pop(call, None)

    def stack(self, call: str) -> str:
        """Where the call's handler is, or was when it was given up; empty when that is not known. From a thread of the engine."""
        running = self._running.get(call)
        return self._left.pop(call, "") or (running.stack() if running is not None else "")

    def close(self) -> None:
        """Ends what runs. Idempotent."""
        self._tasks.close()


class Items:
    """What an asynchronous generator makes, for a thread that waits for it."""

    def __init__(self, running: Producing, changed: threading.Event) -> None:
        self._running = running
        self._changed = changed

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
