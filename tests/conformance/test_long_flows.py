"""A million callbacks that leave nothing, and both directions full again and again. ``make test-all`` runs the full counts."""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.conformance.conftest import started
from tests.plugins.arrays_api import Arrays
from tests.plugins.arrays_plugin import NumpyArrays
from tests.plugins.flows_api import Flows

import fastplug

# Callbacks of one call that passes one. Over gRPC each that is passed is a connection of its own, which takes ten times a callback's time.
ASKED = {"grpc": 100}
ASKED_USUALLY = 10
# A gRPC callback takes a millisecond, and a million of them too long for the suite.
LONG_CALLBACKS = {"grpc": 100_000}
LONG_CALLBACKS_USUALLY = 1_000_000
# What fills once: buffers, free lists, the arenas of malloc of threads that come and go.
WARMUP = 10
# A leak of five bytes a callback is more, and what the allocators of two Pythons keep on a busy day is not.
GROWTH_LIMIT_KIB = 5 * 1024
# AddressSanitizer keeps what was freed for a while, 256 MiB of it, so that resident memory tells nothing.
KEEPS_FREED = "libasan" in os.environ.get("LD_PRELOAD", "")
# A watchdog, not a measure: the machine may be busy.
SOON_S = 120.0
# Between two looks: nothing tells that the plugin has let a callback go.
LOOK_AGAIN_S = 0.01

# For a run in both directions: the long ones fill any socket buffer and HTTP/2 window; shm lends them, and the short ones fill its ring.
SIZES = (40_000, 1, 300, 400)
CALLS = 24
CALLERS = 3


class Tell:
    """What is passed: a new one with each call, so that one which is kept can be told from the rest."""

    def __call__(self, n: int) -> int:
        return n + 1


def rss_kib(pid: int) -> int:
    (found,) = [int(line.split()[1]) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS:")]
    return found


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd")) - (pid == os.getpid())  # listing one's own opens one


class Passing:
    """Calls that pass a callback each, and the callbacks that are still there."""

    def __init__(self, flows: Flows, asked: int) -> None:
        self._flows = flows
        self._asked = asked
        self._alive: weakref.WeakSet[Tell] = weakref.WeakSet()

    def run(self, callbacks: int) -> None:
        for _ in range(callbacks // self._asked):
            tell = Tell()
            self._alive.add(tell)
            assert self._flows.each(self._asked, tell) == self._asked * (self._asked + 1) // 2
        del tell
        end = time.monotonic() + SOON_S
        while self._alive:
            assert time.monotonic() < end, f"{len(self._alive)} callbacks are kept, and no handler keeps one"
            self._flows.double(1)  # a plugin says on an answer what it has dropped
            gc.collect()
            time.sleep(LOOK_AGAIN_S)


def more_descriptors(before: dict[int, int]) -> dict[int, int]:
    """What each process has beyond ``before``, once that is nothing: a connection of a callback ends a moment after its call."""
    end = time.monotonic() + SOON_S
    while (more := {pid: count for pid in before if (count := descriptors(pid) - before[pid]) > 0}) and time.monotonic() < end:
        time.sleep(LOOK_AGAIN_S)
    return more


@pytest.mark.parametrize("part", [100, pytest.param(1, marks=pytest.mark.long)])
def test_a_million_callbacks_leave_nothing(transport: str, part: int) -> None:
    """Neither memory, nor descriptors, nor what was passed. ``part``: of how many."""
    callbacks = int(os.environ.get("FASTPLUG_TEST_CALLBACKS", LONG_CALLBACKS.get(transport, LONG_CALLBACKS_USUALLY))) // part
    with started(transport, "tests.plugins.flows_plugin:PlainFlows") as client:
        flows = client.dispense(Flows)
        passing = Passing(flows, ASKED.get(transport, ASKED_USUALLY))
        passing.run(max(callbacks // WARMUP, 1000))
        pids = {os.getpid(), client.pid or os.getpid()}
        open_before, before = {pid: descriptors(pid) for pid in pids}, {pid: rss_kib(pid) for pid in pids}
        passing.run(callbacks)
        assert not more_descriptors(open_before)
        grown = {("host" if pid == os.getpid() else "plugin"): rss_kib(pid) - before[pid] for pid in pids}
        assert KEEPS_FREED or max(grown.values()) < GROWTH_LIMIT_KIB, f"KiB more than before {callbacks} callbacks: {grown}"


def fill(arrays: Arrays, offset: int) -> None:
    """Submits more than both directions hold before it looks at any answer."""
    sizes = [SIZES[(i + offset) % len(SIZES)] for i in range(CALLS)]
    calls = [(fastplug.submit(arrays.echo, np.full(size, float(i))), size, i) for i, size in enumerate(sizes)]
    for call, size, i in calls:
        echoed = call.result(SOON_S)
        assert echoed.size == size
        assert echoed[-1] == i


def both_full(arrays: Arrays, offset: int) -> None:
    failed: list[BaseException] = []

    def work(n: int) -> None:
        try:
            fill(arrays, n)
        except BaseException as error:  # noqa: BLE001  the test raises it
            failed.append(error)

    threads = [threading.Thread(target=work, args=(offset + n,)) for n in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON_S)
    assert not any(thread.is_alive() for thread in threads), "a deadlock"
    assert not failed, failed


@pytest.fixture
def arrays(transport: str) -> Iterator[Arrays]:
    with started(transport, NumpyArrays) as client:
        yield client.dispense(Arrays)


@pytest.mark.parametrize("runs", [4, pytest.param(1000, marks=pytest.mark.long)])
def test_both_directions_full(arrays: Arrays, runs: int) -> None:
    for offset in range(runs):
        both_full(arrays, offset)
