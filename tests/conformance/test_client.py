"""The Client: what it tells of its plugin."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from tests.conformance.conftest import Gate, started
from tests.plugins.arrays_api import Arrays
from tests.plugins.arrays_plugin import NumpyArrays
from tests.plugins.probe_api import Probe
from tests.plugins.probe_plugin import ProbePlugin

import fastplug

Start = Callable[..., fastplug.Client]


@pytest.fixture(scope="module")
def running(transport: str) -> Iterator[fastplug.Client]:
    """For what leaves a client as it was."""
    with started(transport, ProbePlugin) as client:
        client.ping()  # gRPC connects with its first call
        client.dispense(Probe)  # its threads start here
        yield client


def test_what_a_client_is(start: Start, transport: str) -> None:
    client = start(ProbePlugin)
    probe = client.dispense(Probe)
    assert client.transport == transport
    assert client.protocol == {"shm": "fast", "socket": "fast"}.get(transport, transport)
    assert not client.exited
    assert client.name == "ProbePlugin"
    if transport == "inproc":
        assert client.pid is None
        assert probe.pid() == os.getpid()
    else:
        assert client.pid == probe.pid() != os.getpid()
        assert client.negotiated_version == 1
        assert str(client.pid) in client.id
    client.kill()
    assert client.exited
    assert client.start is not None
    with pytest.raises(fastplug.Closed, match="new one"):
        client.start()


def test_a_client_may_be_made_and_started_apart(running: fastplug.Client) -> None:
    client = fastplug.Client(running.config)
    assert "new" in repr(client)
    assert (client.pid, client.transport, client.negotiated_version, client.exited) == (None, "", None, False)
    with pytest.raises(fastplug.Closed, match="not started"):
        client.dispense(Probe)
    with client as same:
        assert same is client
        assert client.start() is client
        assert client.dispense(Probe).add(1) == 11.0
    assert client.exited


def test_a_client_that_was_killed_before_its_start_does_not_start(running: fastplug.Client) -> None:
    client = fastplug.Client(running.config)
    client.kill()
    with pytest.raises(fastplug.Closed):
        client.start()


def test_ping_is_answered(running: fastplug.Client) -> None:
    for _ in range(5):
        running.ping()


def test_ping_is_answered_while_a_handler_runs(running: fastplug.Client, gate: Gate) -> None:
    probe = running.dispense(Probe)
    answers: list[int] = []
    caller = threading.Thread(target=lambda: answers.append(probe.through(gate.path, 3)))
    caller.start()
    gate.wait_entered()
    running.ping()
    assert answers == []
    gate.open()
    caller.join()
    assert answers == [3]


@pytest.mark.transports("shm", "socket", "grpc")
def test_a_stopped_plugin_does_not_answer_a_ping(running: fastplug.Client) -> None:
    running.ping()
    assert running.pid is not None
    os.kill(running.pid, signal.SIGSTOP)
    assert os.waitid(os.P_PID, running.pid, os.WSTOPPED | os.WNOWAIT)  # now all of its threads have stopped
    try:
        with pytest.raises(fastplug.DeadlineExceeded):
            running.ping(timeout_s=0.1)
    finally:
        os.kill(running.pid, signal.SIGCONT)
    running.ping()


def test_stats_count_calls_and_copies(start: Start, transport: str) -> None:
    client = start(NumpyArrays)
    arrays = client.dispense(Arrays)
    before = client.stats()
    assert (before["calls"], before["copies"], before["copied_bytes"]) == (0, 0, 0)
    for _ in range(3):
        arrays.total(np.ones(1000))
    after = client.stats()
    assert after["calls"] == 3
    assert (after["copies"], after["copied_bytes"]) == (3, 24_000)
    assert after["transport"] == transport
    assert after.get("late_replies", 0) == 0  # gRPC has none: a call that is given up is cancelled
    assert after["plugin_calls"] == 3
    assert (after["plugin_copies"], after["plugin_copied_bytes"]) == ((0, 0) if transport == "shm" else (3, 24_000))
    if transport == "shm":
        assert after["arena"]["segments"] >= 1
        assert after["arena"]["bytes"] <= after["arena"]["limit_bytes"]
        assert after["spins"] + after["sleeps"] >= 0


def test_stats_while_a_handler_runs(running: fastplug.Client, gate: Gate) -> None:
    probe = running.dispense(Probe)
    before = running.stats()["calls"]
    caller = threading.Thread(target=lambda: probe.through(gate.path, 3))
    caller.start()
    gate.wait_entered()
    assert running.stats()["calls"] - before in (0, 1)
    gate.open()
    caller.join()


def test_blocks_are_given_out_in_turn_over_every_transport(start: Start) -> None:
    client = start(NumpyArrays)
    arrays = client.dispense(Arrays)
    for i, block in zip(range(10), client.blocks((50, 40), np.float64, count=3), strict=False):
        assert block.shape == (50, 40)
        block[:] = i
        assert arrays.total(block.ravel()) == 2000 * i


def test_a_wrong_option_is_refused_before_anything_starts() -> None:
    for options in (
        {"transport": "pigeon"},
        {"start_timeout_s": 0},
        {"arena_limit_bytes": -1},
        {"allowed_protocols": ["smoke"]},
        {"env": {"A=B": "c"}},
    ):
        with pytest.raises(fastplug.ConfigError):
            fastplug.start("plugin.py", **options)  # type: ignore[arg-type]
