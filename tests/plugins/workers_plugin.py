"""Plugins that run several handlers at a time."""

from __future__ import annotations

import threading
from typing import Protocol

from tests.plugins.gate import pass_gate

import fastplug

__all__ = ["WORKERS", "Waiting", "WorkersPlugin", "serve_alone", "serve_with_workers"]

WORKERS = 3


@fastplug.interface("test.workers/1")
class Waiting(Protocol):
    def wait(self, path: str) -> str:
        """Passes the gate; the name of the thread."""
        ...

    def thread(self) -> str: ...
    def add(self, x: int, y: int) -> int: ...
    def most_at_a_time(self) -> int:
        """How many handlers have been running at once, at most."""
        ...


class WorkersPlugin(Waiting):
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = self._most = 0

    def wait(self, path: str) -> str:
        with self._lock:
            self._running += 1
            self._most = max(self._most, self._running)
        try:
            pass_gate(path)
        finally:
            with self._lock:
                self._running -= 1
        return threading.current_thread().name

    def thread(self) -> str:
        return threading.current_thread().name

    def add(self, x: int, y: int) -> int:
        return x + y

    def most_at_a_time(self) -> int:
        return self._most


def serve_with_workers() -> None:
    """An entry point that serves by itself."""
    fastplug.serve(WorkersPlugin(), workers=WORKERS)


def serve_alone() -> None:
    fastplug.serve(WorkersPlugin())
