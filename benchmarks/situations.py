"""The states of the machine in which the peers are compared: idle, pinned, and with every core busy."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .peers import Peer

__all__ = ["SITUATIONS", "Situation", "hogs", "pin", "usable_cpus"]

# A hog that outlives its runner would spoil every later measurement: it looks at its parent twice a second or so.
HOG = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    for _ in range(10_000_000): pass\n"


@dataclass(frozen=True)
class Situation:
    """`pinned`: how many CPUs host and plugin are pinned to (0: none, 1: the same one, 2: one each)."""

    name: str
    label: str
    pinned: int = 0
    hogs: int = 0
    every_cell: bool = False  # otherwise only the small cells
    budget_s: float = 0.4

    def cpus(self) -> tuple[int, int]:
        """CPU of the host and of the plugin, -1 where the kernel chooses."""
        first, *others = usable_cpus()
        if not self.pinned:
            return -1, -1
        return (first, first) if self.pinned == 1 or not others else (first, others[0])


SITUATIONS = (
    Situation("idle", "idle, not pinned", every_cell=True),
    Situation("two_cpus", "host and plugin pinned to a CPU each", pinned=2, every_cell=True),
    Situation("one_cpu", "host and plugin pinned to one CPU", pinned=1),
    # With more runnable processes than CPUs a call may wait for a time slice of milliseconds: more time for as many calls.
    Situation("hogs", "two CPU hogs, not pinned", hogs=2, budget_s=1.5),
)

_ALL_CPUS = frozenset(os.sched_getaffinity(0))


def usable_cpus() -> list[int]:
    """The CPUs this process was started with."""
    return sorted(_ALL_CPUS)


def pin(peers: list[Peer], situation: Situation) -> None:
    """Pins every thread of this process and of the peers' processes, or frees them all."""
    host, plugin = situation.cpus()
    _set_affinity(os.getpid(), _ALL_CPUS if host < 0 else {host})
    for peer in peers:
        if peer.pid is not None and peer.pid != os.getpid():
            _set_affinity(peer.pid, _ALL_CPUS if plugin < 0 else {plugin})


@contextlib.contextmanager
def hogs(count: int) -> Iterator[None]:
    """`count` processes that compute for as long as the block lasts."""
    running = [subprocess.Popen([sys.executable, "-S", "-c", HOG]) for _ in range(count)]
    try:
        yield
    finally:
        for hog in running:
            hog.kill()
        for hog in running:
            hog.wait()


def _set_affinity(pid: int, cpus: frozenset[int] | set[int]) -> None:
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # a thread may end between the listing and here
            os.sched_setaffinity(int(thread.name), cpus)
