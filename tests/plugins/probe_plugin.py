"""Errors of every kind, gates, output."""

from __future__ import annotations

import builtins
import ctypes
import logging
import os
import signal
import sys
import time
from typing import Any

import numpy as np
import numpy.typing as npt
from tests.plugins.gate import pass_gate
from tests.plugins.probe_api import Note, Probe

import fastplug

__all__ = ["Odd", "ProbePlugin", "Unspeakable"]

_log = logging.getLogger("acme.probe")


class Odd(LookupError):
    """Wants other arguments than those it keeps."""

    def __init__(self, key: str, *, where: str) -> None:
        super().__init__(key, 1, 2.5, None, b"x", True, object())
        self.where = where


class Unspeakable(ValueError):
    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


class Leaves(SystemExit):
    pass


class ProbePlugin(Probe):
    def __init__(self) -> None:
        self._calls = 0

    def _count(self) -> None:
        self._calls += 1

    def calls(self) -> int:
        return self._calls

    def pid(self) -> int:
        self._count()
        return os.getpid()

    def add(self, x: int, y: int = 10, *, scale: float = 1.0) -> float:
        self._count()
        return (x + y) * scale

    def note(self, note: Note) -> Note:
        self._count()
        return note

    def raises(self, name: str, args: list[str]) -> None:
        raise getattr(builtins, name)(*args)

    def raises_deep(self, depth: int) -> None:
        if depth:
            return self.raises_deep(depth - 1)
        try:
            dict[str, int]()["the cause"]
        except KeyError as error:
            raise ValueError("at the bottom") from error
        return None

    def odd_error(self, kind: str) -> None:
        errors: dict[str, Any] = {
            "odd": lambda: Odd("k", where="here"),
            "unspeakable": Unspeakable,
            "unicode": lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
            "leaves": lambda: Leaves(3),
            "os": lambda: FileNotFoundError(2, "gone", "/nowhere"),
            "group": lambda: ExceptionGroup("several", [ValueError("a"), KeyError("b")]),
            "long": lambda: ValueError("x" * 500_000),
            "surrogate": lambda: ValueError("\ud800"),
            "bigint": lambda: OverflowError(10**400),
        }
        raise errors[kind]()  # noqa: RSE102  a function, not a class

    def wrong_result(self, kind: str) -> int:
        wrong: Any = {"none": None, "str": "1", "float": 1.0}[kind]
        result: int = wrong
        return result

    def through(self, gate: str, value: int) -> int:
        self._count()
        pass_gate(gate)
        return value

    def array_through(self, gate: str, n: int) -> npt.NDArray[np.float64]:
        pass_gate(gate)
        return np.full(n, 1.0)

    def total_through(self, gate: str, x: npt.NDArray[np.float64]) -> float:
        pass_gate(gate)
        return float(x.sum())

    def remaining_calls(self, values: list[int]) -> list[int]:
        return values[::-1]

    def die(self, how: str) -> None:
        sys.stderr.write("last words\n")
        sys.stderr.flush()
        match how:
            case "exit":
                os._exit(3)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
                signal.pause()
            case "segv":
                ctypes.string_at(0)
            case _:
                time.sleep(float(how))

    def prints(self, text: str, flush: bool = False) -> None:
        print(text, flush=flush)

    def writes(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()

    def logs(self, level: int, text: str) -> None:
        _log.log(level, text)

    def logs_error(self, text: str) -> None:
        try:
            raise ValueError("the reason")
        except ValueError:
            _log.exception(text)

    def variables(self) -> dict[str, str]:
        return dict(os.environ)


if __name__ == "__main__":
    fastplug.serve(ProbePlugin())
