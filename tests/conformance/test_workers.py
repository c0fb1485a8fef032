"""serve(workers=N): slow calls do not hold up a fast one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from tests.conformance.conftest import EVENT_TIMEOUT_S, Gate, started
from tests.plugins.workers_plugin import WORKERS, Waiting, WorkersPlugin, serve_alone, serve_with_workers

import fastplug

CALLS = 50


@pytest.fixture
def client(transport: str) -> Iterator[fastplug.Client]:
    options = {"workers": WORKERS} if transport == "inproc" else {}
    target = WorkersPlugin if transport == "inproc" else serve_with_workers
    with started(transport, target, **options) as client:  # type: ignore[arg-type]
        yield client


@pytest.fixture
def plugin(client: fastplug.Client) -> Waiting:
    return client.dispense(Waiting)


def in_threads(plugin: Waiting, gate: Gate, count: int) -> tuple[list[threading.Thread], list[str]]:
    """So many calls that wait at the gate, each on a thread of its own."""
    names: list[str] = []
    threads = [threading.Thread(target=lambda: names.append(plugin.wait(gate.path))) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads, names


def not_more_than_that_many_at_a_time(plugin: Waiting, gate: Gate) -> None:
    threads, names = in_threads(plugin, gate, 2 * WORKERS)
    for _ in range(WORKERS):
        gate.wait_entered()
    gate.open(2 * WORKERS)
    for thread in threads:
        thread.join()
    assert len(names) == 2 * WORKERS
    assert plugin.most_at_a_time() == WORKERS


def eight_threads_each_get_their_own_answers(plugin: Waiting) -> None:
    wrong: list[int] = []

    def work(start: int) -> None:
        wrong.extend(i for i in range(start, start + CALLS) if plugin.add(i, start) != i + start)

    threads = [threading.Thread(target=work, args=(1000 * n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_slow_calls_do_not_hold_up_a_fast_one(plugin: Waiting, gate: Gate) -> None:
    for _ in range(3):  # the lanes of the first round are there in the next
        threads, names = in_threads(plugin, gate, WORKERS - 1)
        for _ in threads:
            gate.wait_entered()
        for i in range(CALLS):
            assert plugin.add(i, 1) == i + 1
        assert not names
        gate.open(len(threads))
        for thread in threads:
            thread.join()
        assert len(set(names)) == WORKERS - 1
    not_more_than_that_many_at_a_time(plugin, gate)
    eight_threads_each_get_their_own_answers(plugin)


@pytest.mark.transports("shm", "socket", "grpc")
def test_one_worker_is_the_main_thread(transport: str) -> None:
    with started(transport, serve_alone) as client:  # type: ignore[arg-type]
        plugin = client.dispense(Waiting)
        names: list[str] = []
        threads = [threading.Thread(target=lambda: names.append(plugin.thread())) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert names == ["MainThread"] * 8


@pytest.mark.parametrize("wrong", [0, -1, 17, "2"])
def test_a_number_that_cannot_be_is_refused(wrong: int) -> None:
    with pytest.raises(fastplug.ConfigError, match="workers"):
        fastplug.ServeConfig(workers=wrong)


@pytest.mark.transports("shm")
def test_calls_of_many_threads_open_lanes_up_to_a_limit(transport: str, gate: Gate) -> None:
    with started(transport, serve_alone) as client:  # type: ignore[arg-type]
        plugin = client.dispense(Waiting)
        assert plugin.add(1, 2) == 3
        assert client.stats()["lanes"] == 1
        threads, names = in_threads(plugin, gate, 20)
        gate.wait_entered()  # the first of them; the others are on their way to it
        until = time.monotonic() + EVENT_TIMEOUT_S
        while client.stats()["lanes"] == 1 and time.monotonic() < until:
            pass
        gate.open(20)
        for thread in threads:
            thread.join()
        assert names == ["MainThread"] * 20
        assert 1 < client.stats()["lanes"] <= 16
        assert plugin.most_at_a_time() == 1
