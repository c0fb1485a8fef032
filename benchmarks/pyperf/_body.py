"""What every bench_*.py here runs: the same names and the same calls, over one transport.

pyperf starts each script again as a worker process; a worker starts its plugin once, at its first benchmark. The loop stands inside the
timed function, so that pyperf's own call is no part of the figure.
"""

from __future__ import annotations

import atexit
import math
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))  # for what the peers start

import numpy as np  # noqa: E402
from benchmarks.peers import Peer, load  # noqa: E402

import pyperf  # noqa: E402
from benchmarks import machine, measure  # noqa: E402

__all__ = ["main"]

TOUCH_SIZES = (8 << 10, 1 << 20, 64 << 20)  # bytes
SUM_SIZE = 1 << 20  # bytes
PROCESSES = 5  # each starts its plugin anew; pyperf's own default of 20 makes a script last ten minutes (-p sets another number)
INDEX_SETS = 1 << 10  # drawn before the timed part, one of them for each call


class LazyPeer:
    """The peer of this worker process, started when its first benchmark runs."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._peer: Peer | None = None

    def get(self) -> Peer:
        if self._peer is None:
            self._peer = load(self.name)
            try:
                self._peer.start()
            finally:
                atexit.register(self._peer.stop)  # last in, first out: before multiprocessing ends its children
        return self._peer


def echo_64b(lazy: LazyPeer, loops: int) -> float:
    call, payload, turns = lazy.get().echo, random.randbytes(64), range(loops)
    start = time.perf_counter()
    for _ in turns:
        reply = call(payload)
    elapsed = time.perf_counter() - start
    assert reply == payload
    return elapsed


def echo_dict(lazy: LazyPeer, loops: int) -> float:
    call, argument, turns = lazy.get().echo_dict, measure.ECHO_DICT, range(loops)
    start = time.perf_counter()
    for _ in turns:
        reply = call(argument)
    elapsed = time.perf_counter() - start
    assert reply == argument
    return elapsed


def touch(lazy: LazyPeer, size_bytes: int, shared: bool, loops: int) -> float:
    peer, count = lazy.get(), size_bytes // 8
    born = peer.born(count) if shared else None
    x = np.empty(count) if born is None else born
    x[:] = np.random.default_rng(size_bytes).standard_normal(count)
    drawn = np.random.default_rng().integers(0, count, (INDEX_SETS, 3)).tolist()
    call, replies, turns = peer.touch, [], range(loops)
    start = time.perf_counter()
    for turn in turns:
        i, j, k = drawn[turn % INDEX_SETS]
        reply = call(x, i, j, k)
        if turn < INDEX_SETS:
            replies.append(reply)
    elapsed = time.perf_counter() - start
    for (i, j, k), one in zip(drawn, replies, strict=False):
        assert one[0] == (count,), one
        assert one[1:] == (x[i], x[j], x[k]), one
    return elapsed


def total(lazy: LazyPeer, loops: int) -> float:
    x = np.random.default_rng(SUM_SIZE).standard_normal(SUM_SIZE // 8)
    call, turns = lazy.get().total, range(loops)
    start = time.perf_counter()
    for _ in turns:
        value = call(x)
    elapsed = time.perf_counter() - start
    assert math.isclose(value, float(x.sum())), value  # alignment decides in which order numpy adds
    return elapsed


def benchmarks(lazy: LazyPeer) -> dict[str, Callable[[int], float]]:
    """Name of the benchmark -> seconds for `loops` calls.

    The names are the same in every script: where there is no shared memory, an array is born where it can be.
    """
    out: dict[str, Callable[[int], float]] = {
        "echo_64B": lambda loops: echo_64b(lazy, loops),
        "echo_dict": lambda loops: echo_dict(lazy, loops),
    }
    for shared in (False, True):
        for size in TOUCH_SIZES:
            name = f"touch_{measure.size_name(size)}{'_shared' if shared else ''}"
            out[name] = lambda loops, size=size, shared=shared: touch(lazy, size, shared, loops)  # type: ignore[misc]
    out["sum_1MiB"] = lambda loops: total(lazy, loops)
    return out


def main(name: str) -> None:
    """`name` as in benchmarks.peers."""
    runner = pyperf.Runner(processes=PROCESSES, program_args=(sys.argv[0],))
    runner.metadata.update(metadata(name))
    lazy = LazyPeer(name)
    for benchmark, function in benchmarks(lazy).items():
        runner.bench_time_func(benchmark, function)


def metadata(name: str) -> dict[str, Any]:
    """Text and numbers only: pyperf's rule. Load and affinity are those at the start of the worker."""
    return {
        "transport": name,
        "description": f"fastplug benchmarks over {name}",
        "load_at_start": " ".join(map(str, machine.load())),
        "affinity": ",".join(map(str, sorted(os.sched_getaffinity(0)))),
        "spin_settings": " ".join(f"{key}={value}" for key, value in machine.spin_settings().items()) or "default",
        "fastplug_commit": machine.commit(),
    }
