"""The queue whose timed get has an end, against a deque, and with threads and signals."""

from __future__ import annotations

import collections
import math
import os
import queue
import random
import signal
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from fastplug.protocols._waiting import TimedQueue

WATCHDOG_S = 60.0


def test_it_is_a_deque() -> None:
    rng = random.Random(2)
    waiting, oracle = TimedQueue[int](), collections.deque[int]()
    for n in range(3000):
        if rng.random() < 0.5:
            waiting.put(n)
            oracle.append(n)
        elif oracle:
            take: Callable[[], int] = rng.choice((waiting.get, waiting.get_nowait, lambda: waiting.get(0), lambda: waiting.get(timeout=5)))
            assert take() == oracle.popleft()
        assert (waiting.qsize(), waiting.empty()) == (len(oracle), not oracle)


@pytest.mark.parametrize("timeout_s", [0, -1.0, -1e300, 1e-9, 1e-3])
def test_an_empty_one(timeout_s: float) -> None:
    waiting = TimedQueue[int]()
    for take in (waiting.get_nowait, lambda: waiting.get(timeout_s)):
        with pytest.raises(queue.Empty):
            take()
    before_s = time.monotonic()
    with pytest.raises(queue.Empty):
        waiting.get(0.02)
    assert time.monotonic() - before_s >= 0.0199


def test_what_is_no_time_is_refused() -> None:
    waiting = TimedQueue[int]()
    for wrong in ("1", [], float("nan")):
        with pytest.raises((TypeError, ValueError)):
            waiting.get(wrong)  # type: ignore[arg-type]


def test_it_keeps_nothing_that_was_taken() -> None:
    class Item:
        pass

    waiting, item = TimedQueue[Item](), Item()
    gone = weakref.ref(item)
    waiting.put(item)
    del item
    assert isinstance(waiting.get(1), Item)
    assert gone() is None


def test_many_threads_put_and_get() -> None:
    """Each item is taken once, and nobody sleeps beside one: the takers wait without a time."""
    waiting, taken = TimedQueue[Any](), [list[int]() for _ in range(4)]

    def put(first: int) -> None:
        for n in range(first, first + 2000):
            waiting.put(n)
            if n % 7 == 0:
                time.sleep(0)  # lets takers run out of items

    def take(into: list[int]) -> None:
        while (n := waiting.get()) is not None:
            into.append(n)

    takers = [threading.Thread(target=take, args=(into,), daemon=True) for into in taken]
    putters = [threading.Thread(target=put, args=(2000 * k,), daemon=True) for k in range(3)]
    for thread in takers + putters:
        thread.start()
    for thread in putters:
        thread.join(WATCHDOG_S)
    for _ in takers:
        waiting.put(None)
    for thread in takers:
        thread.join(WATCHDOG_S)
        assert not thread.is_alive()
    assert sorted(n for into in taken for n in into) == list(range(6000))


def test_short_times_end_on_a_busy_machine() -> None:
    """Of a queue whose gate was opened before, as that of callbacks: queue.SimpleQueue of CPython 3.11 waits for ever in one of these."""
    waiting = TimedQueue[int]()
    ended = threading.Event()

    def get() -> None:
        for n in range(20000):
            with pytest.raises(queue.Empty):
                waiting.get((1e-6, 2e-5)[n & 1])
            waiting.put(n)
            assert waiting.get() == n
        ended.set()

    children = []
    for _ in range(2 * len(os.sched_getaffinity(0))):
        child = os.posix_spawn("/bin/sh", ["sh", "-c", "while :; do :; done"], os.environ)
        children.append(child)
    try:
        threading.Thread(target=get, daemon=True).start()
        assert ended.wait(WATCHDOG_S)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


@pytest.mark.parametrize("timeout_s", [None, WATCHDOG_S, math.inf])
def test_ctrl_c_while_it_waits(timeout_s: float | None) -> None:
    waiting = TimedQueue[int]()

    raised = False

    def interrupt(*_: object) -> None:
        nonlocal raised
        if not raised:
            raised = True
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)  # again, should the first come just before the wait
        with pytest.raises(KeyboardInterrupt):
            waiting.get(timeout_s)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    waiting.put(1)
    assert waiting.get(1) == 1


def test_a_signal_handler_puts() -> None:
    waiting = TimedQueue[int]()
    before = signal.signal(signal.SIGALRM, lambda *_: waiting.put(7))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert waiting.get(WATCHDOG_S) == 7
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
