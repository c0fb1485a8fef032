"""The plugin that does what it is told, and calls that are waited for elsewhere."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from tests.adversity.processes import WATCHDOG_S
from tests.conformance.conftest import plugin_environment

import fastplug

__all__ = ["COMMAND", "Running", "plugin_environment", "started"]

T = TypeVar("T")

COMMAND = [sys.executable, "-m", "tests.plugins.faults_plugin"]


def started(transport: str = "shm", **options: Any) -> fastplug.Client:
    """A Client of tests.plugins.faults_plugin."""
    options.setdefault("name", "faulty")
    if transport == "inproc":
        return fastplug.start("tests.plugins.faults_plugin:Faulty", transport="inproc", **options)
    options["env"] = {**plugin_environment(), **options.get("env", {})}
    return fastplug.start(COMMAND, transport=transport, **options)  # type: ignore[arg-type]


class Running(Generic[T]):
    """A call in a thread of its own: its result or its error, under a watchdog."""

    def __init__(self, function: Callable[..., T], *args: Any) -> None:
        self._outcome: list[T] = []
        self._error: list[BaseException] = []
        self.thread = threading.Thread(target=self._run, args=(function, args), daemon=True)
        self.thread.start()

    def _run(self, function: Callable[..., T], args: Any) -> None:
        try:
            self._outcome.append(function(*args))
        except BaseException as error:  # noqa: BLE001  the test judges it
            self._error.append(error)

    def _join(self) -> None:
        self.thread.join(WATCHDOG_S)
        assert not self.thread.is_alive(), "the call hangs"

    def result(self) -> T:
        self._join()
        if self._error:
            raise self._error.pop()
        return self._outcome.pop()

    def error(self) -> BaseException:
        self._join()
        assert self._error, f"no error but {self._outcome}"
        return self._error.pop()
