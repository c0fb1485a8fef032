"""Giving a call up, the host's part: CANCEL to the plugin, and the plugin's stack back, by whichever way still works.

Asked first is the kernel, whether the process is stopped; then the plugin's control thread, which needs the GIL; and when that says
nothing, faulthandler in the plugin (process/stacks.py), which needs none.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from fastplug.process.stacks import process_state, read_dump

if TYPE_CHECKING:
    from fastplug.protocols.fast.control import Body

__all__ = ["Cancels"]

# A stack may delay the error by 100 ms at most. An interpreter that is merely busy gives the GIL away every 5 ms, so that its control
# thread answers within some of these; one that has not in 40 ms is in C code.
ANSWER_TIMEOUT_S = 0.04
DUMP_TIMEOUT_S = 0.05


def _numbers(dump: object) -> tuple[int, int] | None:
    """Signal and descriptor, when HELLO has them and they can be such."""
    if not isinstance(dump, list) or len(dump) != 2 or not all(isinstance(one, int) for one in dump):
        return None
    number, fd = dump
    return (number, fd) if 0 < number <= 64 and fd > 2 else None


class Cancels:
    """The host's questions about calls that were given up. Thread-safe.

    Args:
        send: sends the body of a CANCEL; raises OSError when the plugin is gone.
        pid: the plugin's process, when it is this process's child; else None.
        dump: what HELLO said of faulthandler in the plugin: its signal and its pipe.
    """

    def __init__(self, send: Callable[[Body], None], pid: int | None, dump: object) -> None:
        self._send = send
        self._pid = pid
        self._dumps = _numbers(dump)
        self._numbers = itertools.count(1)
        self._waiting: dict[int, tuple[threading.Event, list[str]]] = {}
        self._lock = threading.Lock()

    def give_up(self, lane: int, call: int, want_stack: bool) -> tuple[str, str]:
        """Tells the plugin, and returns its stack and, when there is none, why. Takes 100 ms at most, without ``want_stack`` none."""
        if not want_stack:
            try:
                self._send({"lane": lane, "call": call})
            except OSError:
                pass  # gone: there is nothing left to cancel
            return "", ""
        number, answered, found = next(self._numbers), threading.Event(), list[str]()
        with self._lock:
            self._waiting[number] = (answered, found)
        try:
            self._send({"lane": lane, "call": call, "n": number})
            stopped = process_state(self._pid) if self._pid is not None else ""
            if stopped:
                return "", stopped
            answered.wait(ANSWER_TIMEOUT_S)
        except OSError:
            return "", "the plugin has closed its control socket"
        finally:
            with self._lock:
                self._waiting.pop(number, None)
        return ("".join(found), "" if found else "the plugin ended meanwhile") if answered.is_set() else self._dump()

    def _dump(self) -> tuple[str, str]:
        if self._dumps is None or self._pid is None:
            return "", "it does not answer, and there is no way to ask without its GIL"
        dump = read_dump(self._pid, *self._dumps, DUMP_TIMEOUT_S)
        if dump:
            return f"(C code holds the GIL; all threads, most recent call first)\n{dump}\n", ""
        return "", process_state(self._pid) or "it neither answers nor handles the signal that asks for it"

    def answered(self, body: Body) -> None:
        """STACK came."""
        number, stack = body.get("n"), body.get("stack")
        with self._lock:
            waiting = self._waiting.pop(number, None) if isinstance(number, int) else None
        if waiting is not None:
            if isinstance(stack, str):
                waiting[1].append(stack)
            waiting[0].set()

    def end(self) -> None:
        """The plugin is gone: whoever waits for a stack waits no longer. Idempotent."""
        with self._lock:
            waiting, self._waiting = list(self._waiting.values()), {}
        for answered, _ in waiting:
            answered.set()
