"""Deadlines: who wins, what is dropped, and that the next call gets its own answer."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from tests.conformance.conftest import Gate, started
from tests.growing import growing_s
from tests.plugins.probe_api import Probe
from tests.plugins.probe_plugin import ProbePlugin

import fastplug
from fastplug.deadlines import remaining_s

# Short enough to wait for; nothing depends on its length, since the gate stays shut until it is over.
SHORT_S = 0.05
# Never reached.
LONG_S = 3600.0


@pytest.fixture(scope="module")
def client(transport: str) -> Iterator[fastplug.Client]:
    """Of all tests of a transport: what was given up in one must not be answered in the next."""
    with started(transport, ProbePlugin) as client:
        assert client.dispense(Probe).add(1) == 11.0  # its threads start here
        yield client


@pytest.fixture
def probe(client: fastplug.Client) -> Probe:
    return client.dispense(Probe)


def give_up(probe: Any, method: str, *args: object) -> fastplug.DeadlineExceeded:
    with pytest.raises(fastplug.DeadlineExceeded) as caught, fastplug.deadline(after_s=SHORT_S):
        getattr(probe, method)(*args)
    return caught.value


def give_up_sent(probe: Any, method: str, *args: object) -> None:
    """Its answer will come."""
    for after_s in growing_s(SHORT_S):
        with pytest.raises(fastplug.DeadlineExceeded) as caught, fastplug.deadline(after_s=after_s):
            getattr(probe, method)(*args)
        if "nothing was sent" not in str(caught.value):
            return


def test_a_call_ends_with_its_deadline_and_the_next_gets_its_own_answer(probe: Probe, gate: Gate) -> None:
    error = gate.give_up(probe.through, gate.path, 1)
    assert isinstance(error, TimeoutError)
    assert "test.probe/1.through" in str(error)
    gate.open()
    assert probe.add(5) == 15.0
    assert probe.calls() >= 2


def test_the_answer_is_never_that_of_an_earlier_call(probe: Probe, gate: Gate) -> None:
    for i in range(8):
        give_up(probe, "through", gate.path, i)
    gate.open(9)
    assert probe.through(gate.path, 100) == 100
    assert [probe.remaining_calls([i, -i]) for i in range(20)] == [[-i, i] for i in range(20)]


def test_a_call_behind_a_stuck_one_ends_with_its_own_deadline(probe: Probe, gate: Gate) -> None:
    for i in range(3):
        give_up(probe, "through", gate.path, i)
    gate.open(3)
    assert probe.add(1) == 11.0


def test_late_errors_are_dropped_too(probe: Probe, gate: Gate, tmp_path: Any) -> None:
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(probe.through, gate.path, 1)
        gate.wait_entered()  # so that the next call cannot be answered before its deadline
        give_up(probe, "raises", "ValueError", ["late"])
        gate.open()
        assert first.result() == 1
    assert probe.add(1) == 11.0


@pytest.mark.transports("shm")
def test_the_blocks_of_late_replies_and_given_up_requests_come_back(start: Callable[..., fastplug.Client], gate: Gate) -> None:
    client = start(ProbePlugin)  # its own: its arena grows
    probe = client.dispense(Probe)
    n = 100_000
    x = client.empty(n)
    x[:] = 1.0
    for _ in range(4):
        give_up_sent(probe, "array_through", gate.path, n)
        give_up_sent(probe, "total_through", gate.path, x)
        give_up_sent(probe, "total_through", gate.path, np.ones(n))
    assert client.stats()["lent"] > 0
    gate.open(13)
    assert probe.total_through(gate.path, x) == n
    client.ping()
    stats = client.stats()
    assert stats["late_replies"] == 12
    assert stats["lent"] == 0


@pytest.mark.transports("shm", "socket", "inproc")
def test_late_replies_are_counted(client: fastplug.Client, probe: Probe, gate: Gate) -> None:
    before = client.stats()["late_replies"]
    give_up_sent(probe, "through", gate.path, 1)
    gate.open()
    assert probe.add(1) == 11.0
    assert client.stats()["late_replies"] == before + 1


def test_a_deadline_that_is_over_sends_nothing(probe: Probe) -> None:
    before = probe.calls()
    for after_s in (0.0, -5.0):
        with pytest.raises(fastplug.DeadlineExceeded, match="nothing was sent"), fastplug.deadline(after_s=after_s):
            probe.add(1)
    assert probe.calls() == before


def test_a_wrong_argument_is_told_before_a_deadline_that_is_over(probe: Probe) -> None:
    wrong: Any = "x"
    with pytest.raises(fastplug.ArgumentError), fastplug.deadline(after_s=0):
        probe.add(wrong)


def test_the_smallest_of_nested_deadlines_wins(probe: Probe, gate: Gate) -> None:
    with fastplug.deadline(after_s=LONG_S):
        gate.give_up(probe.through, gate.path, 1)
        gate.open()
        assert probe.add(1) == 11.0
    with fastplug.deadline(after_s=SHORT_S), fastplug.deadline(after_s=LONG_S), pytest.raises(fastplug.DeadlineExceeded):
        probe.through(gate.path, 2)
    gate.open()
    assert remaining_s() is None
    assert probe.add(2) == 12.0


def test_a_deadline_that_is_not_reached_changes_nothing(probe: Probe) -> None:
    with fastplug.deadline(after_s=LONG_S):
        assert [probe.add(i) for i in range(5)] == [i + 10.0 for i in range(5)]


def test_a_deadline_belongs_to_its_context(probe: Probe, gate: Gate) -> None:
    answers: list[float] = []
    with fastplug.deadline(after_s=0):
        other = threading.Thread(target=lambda: answers.append(probe.add(1)))  # a new thread has a context of its own
        other.start()
        other.join()
        contextvars.Context().run(lambda: answers.append(probe.add(2)))
    assert answers == [11.0, 12.0]


def test_a_thread_that_queues_ends_with_its_deadline(probe: Probe, gate: Gate) -> None:
    """On the fast protocol one call is under way at a time; over gRPC a second one may be, and waits in the plugin."""
    answers: list[int] = []
    holder = threading.Thread(target=lambda: answers.append(probe.through(gate.path, 7)))
    holder.start()
    gate.wait_entered()
    give_up(probe, "through", gate.path, 8)
    gate.open(2)
    holder.join()
    assert answers == [7]
    assert probe.add(1) == 11.0


@pytest.mark.parametrize("after_s", [float("nan"), float("inf"), float("-inf")])
def test_no_finite_number_is_no_deadline(after_s: float) -> None:
    with pytest.raises(fastplug.ConfigError, match="finite number"), fastplug.deadline(after_s=after_s):
        pass


def test_a_ping_has_a_deadline_of_its_own(client: fastplug.Client, probe: Probe, gate: Gate) -> None:
    gate.give_up(probe.through, gate.path, 1)
    client.ping(timeout_s=60)  # also while the handler runs
    gate.open()
    assert probe.add(1) == 11.0
