"""Where the Python code of a process is: asked of the interpreter, and, when C code holds the GIL, of faulthandler's signal handler.

Several ways were tried, docs/decisions/2026-11-26-plugin-stack.md. This one uses public interfaces only: the plugin registers faulthandler
on a real-time signal that nobody uses, with a pipe whose other end the host opens. The host raises the signal, through the pidfd, only
when the kernel says that the plugin catches it: a signal that is not caught would end the plugin.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import select
import signal
import stat
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

__all__ = ["NOT_RUNNING", "DumpWriter", "given_up", "process_state", "read_dump", "stack_of", "stack_of_task"]

# A recursion of thousands of frames says what it says in the innermost ones.
FRAMES_MAX = 100
# In front of the stack of a thread that has other things to do.
NOT_RUNNING = "(The call has not begun, or is over.)\n"
# What one dump may be: faulthandler writes at most 100 threads of 100 frames.
DUMP_BYTES_MAX = 256 * 1024
# How often the kernel is asked whether the signal handler has returned, once the pipe is silent.
DUMP_GAP_S = 0.005
# Between the thread's start and the handler: the package's frames that serve.
_SERVING = tuple(str(Path(__file__).parents[1] / name) for name in ("protocols", "server.py"))


def stack_of(frame: FrameType | None) -> str:
    """The stack that ends in ``frame``, innermost last as in a traceback, without fastplug's own frames at its outer end."""
    entries = traceback.extract_stack(frame, FRAMES_MAX) if frame is not None else []
    first = next((i for i in reversed(range(len(entries))) if entries[i].filename.startswith(_SERVING)), -1) + 1
    return "".join(traceback.format_list(entries[first:] or entries))


def stack_of_task(made: Any, thread: int) -> str:
    """The stack of a coroutine or an asynchronous generator, empty for None. On ``thread``, its loop's, it may run right now."""
    frames: list[tuple[FrameType, int]] = []
    while made is not None:
        kind = next((kind for kind in ("cr", "ag", "gi") if hasattr(made, f"{kind}_frame")), "")
        frame = getattr(made, f"{kind}_frame", None)
        if frame is None:  # something in C that is awaited, or the end
            break
        frames.append((frame, frame.f_lineno))
        inner = getattr(made, "gi_yieldfrom" if kind == "gi" else f"{kind}_await")
        if inner is None and getattr(made, f"{kind}_running"):
            return stack_of(sys._current_frames().get(thread))
        made = inner
    return "".join(traceback.format_list(traceback.StackSummary.extract(iter(frames))))


def given_up(thread: int, cancel: Callable[[], bool], task: Callable[[], str] = str) -> str:
    """Cancels a call that ``thread`` runs or is to run (``cancel`` says which), and tells where that thread was before it heard of it.

    ``task`` says where the call is when it runs on an event loop instead, else nothing.
    """
    frame = sys._current_frames().get(thread)
    awaiting = task()
    runs = cancel()
    return awaiting or ("" if runs else NOT_RUNNING) + stack_of(frame)


class DumpWriter:
    """The plugin's end: a pipe, and the signal that makes faulthandler write to it. Raises OSError without descriptors.

    Nothing is sent to the host but the two numbers: it opens the pipe under /proc when it needs it, so that it keeps none.
    """

    def __init__(self) -> None:
        self.signal = _unused_signal()
        self.reader_fd, self._writer_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)  # a full pipe must not hold up the signal handler
        faulthandler.register(self.signal, self._writer_fd, all_threads=True)

    def close(self) -> None:
        """Idempotent. The signal is ignored from now on: a host that raises it late must not end this process."""
        if self._writer_fd >= 0:
            faulthandler.unregister(self.signal)
            with contextlib.suppress(ValueError):  # not on the main thread: then the default stays, and the host looks before it signals
                signal.signal(self.signal, signal.SIG_IGN)
            os.close(self.reader_fd)
            os.close(self._writer_fd)
            self.reader_fd = self._writer_fd = -1


def _unused_signal() -> int:
    """From the top, where programs and C libraries take none."""
    for number in range(signal.SIGRTMAX - 1, signal.SIGRTMIN, -1):
        if signal.getsignal(number) == signal.SIG_DFL:
            return number
    raise OSError("every real-time signal is in use")


def read_dump(pid: int, number: int, fd: int, timeout_s: float) -> str:
    """What faulthandler in the plugin ``pid`` writes of all its threads; empty when nothing comes in time.

    Args:
        pid: a process of this user, not reaped yet.
        number, fd: what its DumpWriter says.
    """
    until = time.monotonic() + timeout_s
    try:
        with contextlib.ExitStack() as stack:
            pidfd = os.pidfd_open(pid)
            stack.callback(os.close, pidfd)
            pipe = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            stack.callback(os.close, pipe)
            if not stat.S_ISFIFO(os.fstat(pipe).st_mode) or not _catches(pid, number):
                return ""
            _take(pipe)  # what an earlier question left
            before = _holding(pid, number)
            signal.pidfd_send_signal(pidfd, number)
            dump = _gathered(pipe, until, lambda: _holding(pid, number) <= before)
            return _without_own_threads(dump.decode(errors="replace"))
    except OSError:  # it has ended, or /proc does not show it
        return ""


def _gathered(pipe: int, until: float, written: Callable[[], bool]) -> bytes:
    """What comes until it is ``written``: faulthandler puts no end mark, and a gap says nothing, its thread may have lost its CPU."""
    poller = select.poll()
    poller.register(pipe, select.POLLIN)
    found = b""
    while len(found) < DUMP_BYTES_MAX and (left := until - time.monotonic()) > 0:
        whole = bool(found) and written()  # asked first: what was written meanwhile is taken below
        if poller.poll(0 if whole else min(left, DUMP_GAP_S) * 1000):
            more = _take(pipe)
            if not more:
                break
            found += more
        elif whole:
            break
    return found


def _take(pipe: int) -> bytes:
    try:
        return os.read(pipe, DUMP_BYTES_MAX)
    except BlockingIOError:
        return b""


def _without_own_threads(dump: str) -> str:
    """faulthandler's text without the thread that only watches descriptors for fastplug. An empty line parts the threads."""
    return "\n\n".join(thread for thread in dump.strip().split("\n\n") if "/fastplug/shm/watcher.py" not in thread)


def _status(pid: int, folder: str = "") -> dict[str, str]:
    try:
        lines = Path(f"/proc/{pid}/{folder}status").read_text(errors="replace").splitlines()
    except OSError:
        return {}
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _holding(pid: int, number: int) -> frozenset[str]:
    """The threads that have the signal pending or blocked, as the kernel blocks it while its handler runs."""
    threads = os.listdir(f"/proc/{pid}/task")
    return frozenset(
        thread
        for thread in threads
        if any(_names(mask, number) for key, mask in _status(pid, f"task/{thread}/").items() if key in {"SigBlk", "SigPnd", "ShdPnd"})
    )


def _names(mask: str, number: int) -> bool:
    """Whether a mask of /proc has the signal."""
    return bool(int(mask, 16) >> (number - 1) & 1)


def _catches(pid: int, number: int) -> bool:
    """Whether the process has a handler for the signal. Not so after exec(), which would make the signal deadly."""
    return _names(_status(pid).get("SigCgt", "0"), number)


def process_state(pid: int) -> str:
    """Why a process says nothing, in words; empty when the kernel sees no reason."""
    letter = _status(pid).get("State", "X")[:1]
    return {
        "T": "the process is stopped (SIGSTOP, or Ctrl-Z)",
        "t": "the process is stopped by a debugger",
        "D": "the process waits in the kernel and cannot be interrupted",
        "Z": "the process has ended",
        "X": "the process has ended",
    }.get(letter, "")
