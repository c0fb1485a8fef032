"""Ten million calls, memory and descriptors watched: ``make soak``, or ``python -m benchmarks.soak``.

Ends with exit code 1 when a limit is passed.
"""

from __future__ import annotations

import argparse
import gc
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .measure import ECHO_DICT
from .peers import Peer, load

__all__ = ["main"]

CALLS = 10_000_000
WARMUP_CALLS = 100_000  # fills what grows once: buffers, free lists, recycled segments
GROWTH_LIMIT_KIB = 1024
REPORTS = 10
ARRAY_ELEMENTS = 1024  # 8 KiB: large enough to go through the arena


@dataclass(frozen=True)
class Footprint:
    """What one process holds."""

    rss_kib: int
    descriptors: int

    @classmethod
    def of(cls, pid: int) -> Footprint:
        status = Path(f"/proc/{pid}/status").read_text()
        (rss,) = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")]
        return cls(rss, len(os.listdir(f"/proc/{pid}/fd")) - (pid == os.getpid()))  # listing one's own opens one

    def __str__(self) -> str:
        return f"{self.rss_kib:>9} KiB {self.descriptors:>4} fds"


def footprints(peer: Peer) -> tuple[Footprint, Footprint]:
    gc.collect()
    assert peer.pid is not None
    return Footprint.of(os.getpid()), Footprint.of(peer.pid)


def cycle(peer: Peer) -> Iterator[int]:
    """Endless calls, each checked; yields how many were made. Of 16 calls 10 are echoes, 2 carry a dict, 4 an array."""
    payload, x = bytes(range(64)), np.arange(ARRAY_ELEMENTS, dtype=np.float64)
    born = peer.born(ARRAY_ELEMENTS)
    shared = x.copy() if born is None else born
    shared[:] = x
    echo, echo_dict, touch, turn = peer.echo, peer.echo_dict, peer.touch, 0
    while True:
        for _ in range(5):
            assert echo(payload) == payload
            assert echo(payload) == payload
        turn = (turn + 1) % ARRAY_ELEMENTS
        for array in (x, shared):
            assert echo_dict(ECHO_DICT) == ECHO_DICT
            assert touch(array, turn, 0, 1)[1:] == (turn, 0.0, 1.0)
            assert touch(array, 1, turn, 2)[1:] == (1.0, turn, 2.0)
        yield 16


def make(calls: Iterator[int], count: int) -> int:
    made = 0
    while made < count:
        made += next(calls)
    return made


def judge(before: tuple[Footprint, Footprint], after: tuple[Footprint, Footprint]) -> list[str]:
    """What is wrong, in words; empty when nothing is."""
    faults = []
    for name, first, last in zip(("host", "plugin"), before, after, strict=True):
        if last.rss_kib - first.rss_kib > GROWTH_LIMIT_KIB:
            faults.append(f"the {name} grew by {last.rss_kib - first.rss_kib} KiB, more than {GROWTH_LIMIT_KIB}")
        if last.descriptors != first.descriptors:
            faults.append(f"the {name} had {first.descriptors} descriptors and has {last.descriptors}")
    return faults


def soak(peer: Peer, count: int) -> list[str]:
    """Prints a line per tenth of the calls; the faults."""
    calls = cycle(peer)
    make(calls, WARMUP_CALLS)
    before = after = footprints(peer)
    print(f"{'calls':>12}  {'host':>22}  {'plugin':>22}  {'calls/s':>9}")
    print(f"{0:>12,}  {before[0]!s:>22}  {before[1]!s:>22}", flush=True)
    made = 0
    for _ in range(REPORTS):
        start = time.perf_counter()
        part = make(calls, count // REPORTS)
        elapsed, made = time.perf_counter() - start, made + part
        after = footprints(peer)
        print(f"{made:>12,}  {after[0]!s:>22}  {after[1]!s:>22}  {part / elapsed:>9,.0f}", flush=True)
    return judge(before, after)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--calls", type=int, default=CALLS)
    parser.add_argument("--transport", default="shm", choices=("shm", "socket", "grpc"))
    options = parser.parse_args(argv)
    print(f"{options.calls:,} calls over {options.transport}, after {WARMUP_CALLS:,} of warm-up")
    print(f"limits: {GROWTH_LIMIT_KIB} KiB of growth of either process, equal descriptors\n", flush=True)
    peer = load(options.transport)
    try:
        peer.start()
        faults = soak(peer, options.calls)
    finally:
        peer.stop()
    print("\n".join(["", *(f"FAILED: {fault}" for fault in faults)] if faults else ["", "ok"]))
    return bool(faults)


if __name__ == "__main__":
    raise SystemExit(main())
