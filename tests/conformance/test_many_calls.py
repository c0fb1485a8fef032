"""Many calls under way: submit, map, await. One meaning over every transport."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

import numpy as np
import pytest
from tests.conformance.conftest import Gate
from tests.plugins.flows_api import Floats, Flows

import fastplug
from fastplug.errors import ArgumentError, Cancelled, ConfigError, DeadlineExceeded, RemoteError

SOON_S = 60.0


def test_submit(flows: Flows, gate: Gate) -> None:
    calls = [fastplug.submit(flows.double, n) for n in range(300)]
    assert [call.result() for call in reversed(calls)] == [2 * n for n in reversed(range(300))]
    assert all(call.done() and not call.cancelled() for call in calls)
    failing = fastplug.submit(flows.fail, n=7)
    with pytest.raises(RemoteError) as failed:
        failing.result(SOON_S)
    assert isinstance(failed.value, ValueError)
    assert isinstance(failing.exception(), ValueError)
    assert fastplug.submit(flows.fail, 1).exception() is None
    slow, behind = fastplug.submit(flows.wait, gate.path), fastplug.submit(flows.double, 3)
    gate.wait_entered()
    with pytest.raises(DeadlineExceeded, match="the call goes on"):
        slow.result(timeout_s=0.01)
    assert not slow.done()
    assert "under way" in repr(slow)
    gate.open()
    assert slow.result(SOON_S) is None
    assert behind.result(SOON_S) == 6
    with pytest.raises(ArgumentError, match="'n'"):
        fastplug.submit(flows.double, cast("int", "x"))
    with pytest.raises(ConfigError, match="method of a handle"):
        fastplug.submit(len, [])
    with pytest.raises(ConfigError, match="returns a stream"):
        fastplug.submit(flows.count, 3)


def test_cancel(flows: Flows, gate: Gate) -> None:
    slow, behind = fastplug.submit(flows.wait, gate.path), fastplug.submit(flows.double, 3)
    gate.wait_entered()
    assert slow.cancel()
    assert slow.cancelled()
    assert slow.done()
    with pytest.raises(Cancelled, match="cancelled by its caller"):
        slow.result()
    gate.open()
    assert behind.result(SOON_S) == 6
    assert not behind.cancel()
    error = gate.give_up(lambda: fastplug.submit(flows.wait, gate.path).result(SOON_S))
    assert "late one will be dropped" in str(error)
    gate.open()
    assert flows.double(1) == 2


def test_done_callbacks(flows: Flows, gate: Gate) -> None:
    told: list[tuple[Any, str]] = []
    event = threading.Event()

    def tell(call: fastplug.Call[None]) -> None:
        told.append((call.result(), threading.current_thread().name))
        event.set()

    slow = fastplug.submit(flows.wait, gate.path)
    gate.wait_entered()
    slow.add_done_callback(tell)
    assert not told
    assert flows is not None
    gate.open()
    assert event.wait(SOON_S)
    assert told == [(None, "fastplug reader")]
    slow.add_done_callback(tell)
    assert told[1] == (None, threading.current_thread().name)


def test_many_threads_wait_for_their_calls(flows: Flows) -> None:
    found: list[int] = []

    def work(start: int) -> None:
        for n in range(start, start + 200, 4):
            calls = [fastplug.submit(flows.double, k) for k in range(n, n + 4)]
            found.extend(call.result(SOON_S) for call in calls)

    threads = [threading.Thread(target=work, args=(1000 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON_S)
    assert sorted(found) == sorted(2 * n for start in range(4) for n in range(1000 * start, 1000 * start + 200))


def test_more_than_may_be_under_way(flows: Flows) -> None:
    calls = [fastplug.submit(flows.double, n) for n in range(3000)]
    assert [call.result(SOON_S) for call in calls] == [2 * n for n in range(3000)]


def test_map(flows: Flows) -> None:
    assert list(fastplug.map(flows.double, range(500))) == [2 * n for n in range(500)]
    assert list(fastplug.map(flows.double, range(3), in_flight=1)) == [0, 2, 4]
    assert list(fastplug.map(flows.double, [])) == []
    assert sorted(fastplug.map(flows.double, range(100), ordered=False)) == [2 * n for n in range(100)]
    arrays = [np.full(2000, float(n)) for n in range(100)]
    assert [float(y[0]) for y in fastplug.map(flows.apply, arrays, [abs_of] * 100)] == [n + 1.0 for n in range(100)]
    with pytest.raises(ConfigError, match="in_flight"):
        fastplug.map(flows.double, [1], in_flight=0)


def abs_of(x: Floats) -> Floats:
    return np.abs(x)


def test_a_map_takes_no_more_than_it_may_have_under_way(flows: Flows) -> None:
    taken: list[int] = []

    def source() -> Iterator[int]:
        for n in range(1000):
            taken.append(n)
            yield n

    results = fastplug.map(flows.double, source(), in_flight=32)
    assert not taken
    for n in range(100):
        assert next(results) == 2 * n
        assert len(taken) <= n + 33
    del results
    assert flows.double(1) == 2
    assert len(taken) < 200


def test_a_failing_item_of_a_map(flows: Flows) -> None:
    results = fastplug.map(flows.fail, range(30))
    for n in range(7):
        assert next(results) == n
    with pytest.raises(ValueError, match="7"):
        next(results)
    assert list(results) == []
    found: list[int | str] = []
    results = fastplug.map(flows.fail, [1, 7, cast("int", "x"), 2, 17, 3], on_error="continue")
    while True:
        try:
            found.append(next(results))
        except StopIteration:
            break
        except (ValueError, ArgumentError) as error:
            found.append(type(error).__name__)
    assert found == [1, "RemoteValueError", "ArgumentError", 2, "RemoteValueError", 3]


def test_what_ends_a_map_is_raised_at_its_place(flows: Flows) -> None:
    def source() -> Iterator[int]:
        yield from range(5)
        raise KeyError("no more")

    results = fastplug.map(flows.double, source(), on_error="continue")
    assert [next(results) for _ in range(5)] == [0, 2, 4, 6, 8]
    with pytest.raises(KeyError, match="no more"):
        next(results)
    assert list(results) == []
    with pytest.raises(ConfigError, match="returns a stream"):
        list(fastplug.map(flows.count, range(3)))


def test_a_map_whose_deadline_runs_out(flows: Flows, gate: Gate) -> None:
    with fastplug.deadline(after_s=0.05):
        late = fastplug.map(flows.wait, [gate.path] * 3)
        with pytest.raises(DeadlineExceeded):
            next(late)
    assert list(late) == []
    gate.open(3)
    assert flows.double(1) == 2


def test_maps_beside_each_other(flows: Flows) -> None:
    """Two on one thread, and others on other threads, with plain calls between: each finds its own answers."""

    def work(start: int) -> None:
        ours = fastplug.map(flows.double, range(start, start + 300), in_flight=20)
        others = fastplug.map(flows.fail, range(100, 400), in_flight=50, ordered=False, on_error="continue")
        for n in range(start, start + 300):
            assert next(ours) == 2 * n
            try:
                found.append(next(others))
            except ValueError:
                failed.append(n)
            assert flows.double(n) == 2 * n

    found: list[int] = []
    failed: list[int] = []
    threads = [threading.Thread(target=work, args=(1000 * n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON_S)
    assert sorted(found) == sorted(3 * [n for n in range(100, 400) if n % 10 != 7])
    assert len(failed) == 90


def test_awaiting(flows: Flows, gate: Gate) -> None:
    async def main() -> list[int]:
        slow = asyncio.ensure_future(_waited(flows, gate.path))
        gate_entered = asyncio.get_running_loop().run_in_executor(None, gate.wait_entered)
        await gate_entered
        many = asyncio.gather(*[_doubled(flows, n) for n in range(50)])
        gate.open()
        await slow
        with pytest.raises(ValueError, match="7"):
            await fastplug.submit(flows.fail, 7)
        stream = cast("AsyncIterator[int]", flows.count(100))
        assert [n async for n in stream] == list(range(100))
        return await many

    assert asyncio.run(main()) == [2 * n for n in range(50)]


async def _waited(flows: Flows, path: str) -> None:
    await fastplug.submit(flows.wait, path)


async def _doubled(flows: Flows, n: int) -> int:
    return await fastplug.submit(flows.double, n)


def test_awaiting_ends(flows: Flows, gate: Gate) -> None:
    async def main() -> None:
        with pytest.raises(DeadlineExceeded), fastplug.deadline(after_s=0.05):
            await fastplug.submit(flows.wait, gate.path)
        task = asyncio.ensure_future(_waited(flows, gate.path))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    gate.open(2)
    assert flows.double(1) == 2
