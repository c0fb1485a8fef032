"""Does what it is told, also what no plugin should."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
from tests.plugins.faults_api import Faults
from tests.plugins.gate import pass_gate

import fastplug

__all__ = ["Faulty"]


class Unbuildable(ValueError):
    """Its constructor wants what the host cannot give."""

    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(f"{reason} ({code})")


def _raise(kind: str) -> None:
    if kind == "SystemExit":
        sys.exit(3)
    if kind == "Unbuildable":
        raise Unbuildable(7, reason="no way")
    if kind == "unprintable":
        raise type("Unprintable", (Exception,), {"__str__": lambda self: 1 // 0})
    raise {"KeyError": KeyError, "KeyboardInterrupt": KeyboardInterrupt, "StopIteration": StopIteration, "ValueError": ValueError}[kind](
        "asked for"
    )


class Faulty(Faults):
    def __init__(self) -> None:
        self._kept: list[npt.NDArray[Any]] = []

    def echo(self, x: str) -> str:
        return x

    def fail(self, kind: str) -> None:
        _raise(kind)

    def wrong_result(self) -> int:
        return "seven"  # type: ignore[return-value]  # pyright: ignore[reportReturnType]

    def end_process(self, how: str) -> None:
        print("last words", file=sys.stderr, flush=True)
        if how == "exit":
            os._exit(3)
        os.kill(os.getpid(), signal.Signals[how])

    def stop_process(self) -> str:
        os.kill(os.getpid(), signal.SIGSTOP)
        return "went on"

    def gate(self, path: str, answer: str) -> str:
        pass_gate(path)
        return answer

    def gate_array(self, path: str, x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        pass_gate(path)
        return self.plus_one(x)

    def plus_one(self, x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        result = fastplug.empty(x.shape, x.dtype)
        np.add(x, 1, out=result)
        return result

    def keep(self, x: npt.NDArray[Any]) -> int:
        self._kept.append(x)
        return len(self._kept)

    def drop(self) -> int:
        count = len(self._kept)
        self._kept.clear()
        return count

    def large(self, bytes_count: int) -> bytes:
        return bytes(bytes_count)

    def say(self, how: str, text: str, times: int = 1) -> None:
        text *= times
        if how == "print":
            print(text)
        elif how == "stderr":
            print(text, file=sys.stderr, flush=True)
        elif how == "printf":
            libc = ctypes.CDLL(None)
            libc.printf(b"%s\n", text.encode())
            libc.fflush(None)
        elif how == "child":
            subprocess.run(["/bin/echo", text], check=True)
        else:
            logging.getLogger("faulty").log(logging.getLevelNamesMapping()[how], text)

    def children(self) -> list[int]:
        forever = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(1000)"]
        return [subprocess.Popen(forever).pid, subprocess.Popen(forever, start_new_session=True).pid]

    def debug(self, x: int) -> int:
        breakpoint()  # noqa: T100  that is what is tested
        return x + 1


if __name__ == "__main__":
    fastplug.serve(Faulty())
