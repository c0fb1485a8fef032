"""What the tests of processes share: pidfds as the only proof that a process is gone, and programs to start.

A pid can be given away; a pidfd cannot. Each wait is for an event, under a watchdog.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

__all__ = ["FAMILY", "GIL_HOLDER", "WATCHDOG_S", "alive", "gone", "open_pidfds", "read_pids"]

# Far longer than any of this takes: a test that needs it has failed.
WATCHDOG_S = 60.0

# Prints its own pid, that of a child in its group, and that of a child in a session of its own; then sleeps.
FAMILY = [
    sys.executable,
    "-I",
    "-c",
    """
import os, subprocess, sys, time
forever = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(1000)"]
children = [subprocess.Popen(forever), subprocess.Popen(forever, start_new_session=True)]
print(os.getpid(), *(child.pid for child in children), flush=True)
time.sleep(1000)
""",
]

# Prints its pid, then holds the GIL in one call into C for longer than any test runs: a regex with exponential backtracking.
GIL_HOLDER = [sys.executable, "-I", "-S", "-c", "import os, re; print(os.getpid(), flush=True); re.match('(a+)+$', 'a' * 60 + 'b')"]


@contextmanager
def open_pidfds(pids: Iterable[int]) -> Iterator[list[int]]:
    """Pidfds of running processes, closed at the end."""
    pidfds: list[int] = []
    try:
        pidfds.extend(os.pidfd_open(pid) for pid in pids)
        yield pidfds
    finally:
        for pidfd in pidfds:
            os.close(pidfd)


def alive(pidfd: int) -> bool:
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return not poller.poll(0)


def gone(pidfd: int) -> bool:
    """Wait for the end of a process."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(WATCHDOG_S * 1000))


def read_pids(fd: int) -> list[int]:
    """The pids on the next line of a pipe."""
    line = b""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    while not line.endswith(b"\n"):
        assert poller.poll(WATCHDOG_S * 1000), "the program did not print its pids"
        byte = os.read(fd, 1)
        assert byte, "the program ended without printing its pids"
        line += byte
    return [int(word) for word in line.split()]
