"""Streams that methods return and take: one meaning over every transport."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import pytest
from tests.growing import growing_s
from tests.plugins.flows_api import Flows
from tests.plugins.flows_plugin import PlainFlows

import fastplug
from fastplug.errors import ArgumentError, DeadlineExceeded, LocalProtocolError, PluginDied, RemoteError, ResultError

SOON_S = 60.0


def test_a_stream(flows: Flows) -> None:
    assert list(flows.count(1000)) == list(range(1000))
    assert list(flows.count(0)) == []
    assert flows.log() == ["ended", "ended"]
    assert list(flows.texts(9000, 50)) == [chr(97 + i % 26) * 9000 for i in range(50)]
    assert list(flows.odd("list")) == [1, 2, 3]
    stream = flows.count(3)
    assert "stream of test.flows/1.count" in repr(stream)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(stream)


def test_arrays_in_a_stream(start: Callable[..., fastplug.Client]) -> None:
    flows: Flows = start(PlainFlows).dispense(Flows)  # its own: its arena grows
    seen = 0
    for n, x in enumerate(flows.arrays(100_000, 60)):
        assert x[0] == x[-1] == n
        assert not x.flags.writeable
        seen += 1
    assert seen == 60
    kept = list(flows.arrays(10_000, 40))
    assert [x[7] for x in kept] == list(range(40))
    assert flows.total_of((np.full(20_000, float(n)) for n in range(40)), 5) == 5 + 20_000 * sum(range(40))


@pytest.mark.transports("shm")
def test_copied_arrays_go_round_few_blocks(start: Callable[..., fastplug.Client]) -> None:
    """At most 4 MiB of copies are under way, and what came back last is written to next."""
    client = start(PlainFlows)
    flows: Flows = client.dispense(Flows)
    ordinary = np.ones(1 << 17)  # 1 MiB
    for _ in range(3):
        assert flows.total_of((ordinary for _ in range(60)), 5) == 5 + 60 * (1 << 17)
    assert (
        client.stats()["arena"]["blocks"] <= 8
    )  # four under way, one that is written, and those that the plugin has taken and not dropped
    large = np.ones(1 << 20)  # each more than may be under way, so one after another
    assert flows.total_of((large for _ in range(5)), 5) == 5 + 5 * (1 << 20)


@pytest.mark.parametrize("how", ["close", "drop", "with", "break"])
def test_early_close(flows: Flows, how: str) -> None:
    stream: Any = flows.count(10**9)
    assert next(stream) == 0
    if how == "close":
        stream.close()
        stream.close()
        with pytest.raises(StopIteration):
            next(stream)
    elif how == "with":
        with stream:
            assert next(stream) == 1
    elif how == "break":
        for n in stream:
            if n == 100:
                break
    del stream
    gc.collect()
    while (log := flows.log()) == []:
        pass
    assert log == ["closed"]


def test_errors_in_a_stream(flows: Flows) -> None:
    found: list[int] = []
    stream = flows.break_at(50)
    found.extend(next(stream) for _ in range(50))
    assert found == list(range(50))
    with pytest.raises(KeyError) as failed:
        next(stream)
    assert isinstance(failed.value, RemoteError)
    assert "break_at" in str(failed.value)
    with pytest.raises(ResultError, match="cannot be iterated"):
        list(flows.odd("number"))
    with pytest.raises(ResultError, match="str"):
        list(flows.odd("wrong"))
    with pytest.raises(OSError, match="raises"):
        list(flows.odd("raises"))


def test_a_deadline_over_a_stream(flows: Flows) -> None:
    for after_s in growing_s(0.05):
        with contextlib.suppress(DeadlineExceeded), fastplug.deadline(after_s=after_s):
            stream = flows.count(10**9)
            assert next(stream) == 0
            break
    with pytest.raises(DeadlineExceeded, match="end of the stream"):
        list(stream)
    while (log := flows.log()) == []:
        pass
    assert log == ["closed"]


def test_other_calls_while_a_stream_is_iterated(flows: Flows) -> None:
    for n, m in zip(flows.count(200), flows.count(200), strict=True):
        assert n == m
        assert flows.double(n) == 2 * n
    streams = [flows.count(500) for _ in range(40)]
    for _ in range(500):
        assert len({next(stream) for stream in streams}) == 1
    assert [list(stream) for stream in streams] == [[]] * 40


# -- streams that methods take


def test_a_stream_as_argument(flows: Flows) -> None:
    assert flows.total(range(1000)) == sum(range(1000))
    assert flows.total([]) == 0
    assert fastplug.submit(flows.total, range(10)).result(SOON_S) == 45
    with pytest.raises(ArgumentError, match="cannot be iterated"):
        flows.total(cast("list[int]", 5))
    with pytest.raises(ArgumentError, match="item of the stream"):
        flows.total(["x"])  # type: ignore[list-item]


def test_the_plugin_takes_no_more_of_a_stream(flows: Flows, transport: str) -> None:
    made: list[int] = []
    ended: list[bool] = []

    def source() -> Iterator[int]:
        try:
            for n in range(10**9):
                made.append(n)
                yield n
        finally:
            ended.append(True)

    assert flows.first(source()) == 0
    assert ended == [True]
    assert len(made) <= (33 if transport != "grpc" else 100_000), "of small ones HTTP/2 takes many"


@pytest.mark.parametrize("submitted", [False, True])
def test_a_deadline_over_a_stream_that_never_pauses(flows: Flows, submitted: bool) -> None:
    watchdog = time.monotonic() + SOON_S
    begun, closed = threading.Event(), threading.Event()

    def numbers() -> Iterator[int]:
        begun.set()
        try:
            while time.monotonic() < watchdog:
                yield 1
        finally:
            closed.set()

    def total() -> int:
        if not submitted:
            return flows.total(numbers())
        call = fastplug.submit(flows.total, numbers())
        if begun.wait(after_s):
            assert closed.wait(2 * SOON_S)  # nobody waits for the call, and it ends
        return call.result()

    for after_s in growing_s(0.05):
        with pytest.raises(DeadlineExceeded), fastplug.deadline(after_s=after_s):
            total()
        if begun.is_set():
            break
    assert closed.wait(SOON_S if submitted else 0)
    assert time.monotonic() < watchdog
    assert flows.double(1) == 2


@pytest.mark.transports("shm", "socket", "grpc")
def test_a_submitted_call_that_takes_a_stream_of_a_plugin_that_dies(start: Callable[..., fastplug.Client]) -> None:
    client = start(PlainFlows)
    flows: Flows = client.dispense(Flows)
    fed, dead = threading.Event(), threading.Event()

    def numbers() -> Iterator[int]:
        yield 1
        fed.set()
        assert dead.wait(SOON_S)
        watchdog = time.monotonic() + SOON_S
        while time.monotonic() < watchdog:  # in a sandbox the plugin ends a moment after the process that was started
            yield 1

    call = fastplug.submit(flows.total, numbers())
    assert fed.wait(SOON_S)
    assert client.pid is not None
    os.kill(client.pid, signal.SIGKILL)
    dead.set()
    with pytest.raises(PluginDied):
        call.result(SOON_S)


def test_a_generator_of_the_caller_that_fails(flows: Flows) -> None:
    def source() -> Iterator[int]:
        yield 1
        raise LookupError("here")

    with pytest.raises(LookupError, match="here") as failed:
        flows.total(source())
    assert not isinstance(failed.value, RemoteError)
    with pytest.raises(LookupError, match="here"):
        list(flows.doubled(source()))


def test_a_generator_of_the_caller_that_calls(flows: Flows) -> None:
    def source() -> Iterator[int]:
        for n in range(100):
            yield flows.double(n)

    assert flows.total(source()) == 2 * sum(range(100))
    assert list(flows.doubled(source())) == [4 * n for n in range(100)]


def test_a_generator_of_the_caller_that_feeds_a_call(flows: Flows) -> None:
    def source(depth: int) -> Iterator[int]:
        if depth:
            yield flows.total(source(depth - 1))
        yield 1

    for depth in (*[1] * 20, 2, 5):
        assert flows.total(source(depth)) == depth + 1


def test_both_ways(flows: Flows) -> None:
    assert list(flows.doubled(range(1000))) == [2 * n for n in range(1000)]
    assert list(flows.pairs(range(7))) == [(0, 1), (2, 3), (4, 5)]
    for n, doubled in enumerate(flows.doubled(range(100))):
        assert doubled == 2 * n
        assert flows.double(n) == 2 * n
    closed: list[bool] = []

    def source() -> Iterator[int]:
        try:
            yield from range(10**9)
        finally:
            closed.append(True)

    stream: Any = flows.doubled(source())
    assert [next(stream) for _ in range(3)] == [0, 2, 4]
    stream.close()
    assert closed == [True]


def test_a_chain_of_iterables_has_an_end(flows: Flows) -> None:
    def numbers(levels: int) -> Iterator[int]:
        if levels:
            yield flows.total(numbers(levels - 1))
        yield 1

    assert flows.total(numbers(31)) == 32
    with pytest.raises(RecursionError, match="endless"):
        flows.total(numbers(32))


def test_an_iterable_that_takes_from_the_stream_it_feeds(flows: Flows) -> None:
    def numbers(*, careful: bool) -> Iterator[int]:
        yield 1
        try:
            next(stream)
        except LocalProtocolError:
            if not careful:
                raise
        yield 2

    stream = flows.doubled(numbers(careful=False))
    with pytest.raises(LocalProtocolError, match="feeds this stream"):
        list(stream)
    stream = flows.doubled(numbers(careful=True))
    assert list(stream) == [2, 4]
