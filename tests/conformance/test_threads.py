"""One handle, many threads."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from tests.conformance.conftest import Gate, started
from tests.plugins.arrays_api import Arrays
from tests.plugins.arrays_plugin import NumpyArrays
from tests.plugins.probe_api import Note, Probe
from tests.plugins.probe_plugin import ProbePlugin

import fastplug

THREADS = 8
CALLS = 60
WATCHDOG_S = 60.0


@pytest.fixture(scope="module")
def client(transport: str) -> Iterator[fastplug.Client]:
    with started(transport, ProbePlugin) as client:
        assert client.dispense(Probe).add(1) == 11.0  # its threads start here
        yield client


@pytest.fixture
def probe(client: fastplug.Client) -> Probe:
    return client.dispense(Probe)


def in_threads(work: Callable[[int], None], count: int = THREADS) -> None:
    """Runs ``work(i)`` in as many threads; raises the first error that one of them raised."""
    errors: list[BaseException] = []
    at_once = threading.Barrier(count)

    def run(i: int) -> None:
        try:
            at_once.wait()
            work(i)
        except BaseException as error:  # noqa: BLE001  raised again below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_eight_threads_each_get_their_own_answers(probe: Probe) -> None:
    def work(i: int) -> None:
        for n in range(CALLS):
            assert probe.add(i * 1000, n) == i * 1000 + n
            assert probe.note(Note(str(i), n)) == Note(str(i), n)
            if n % 10 == 0:
                with pytest.raises(ValueError, match=f"^ValueError: {i}"):
                    probe.raises("ValueError", [str(i)])

    in_threads(work)


def test_eight_threads_with_arrays(start: Callable[..., fastplug.Client]) -> None:
    client = start(NumpyArrays)
    arrays = client.dispense(Arrays)

    def work(i: int) -> None:
        for n in range(CALLS // 2):
            value = float(i * 1000 + n)
            shared = client.empty(3000)  # what came back in the last round is lent until the plugin has looked at that lane again
            shared[:] = value
            assert arrays.total(shared) == 3000 * value
            assert arrays.total(np.full(200, value)) == 200 * value
            assert np.array_equal(arrays.born(500, value), np.full(500, value))
            back = arrays.echo(shared)
            assert back[0] == back[-1] == value
            del back

    in_threads(work)
    if client.transport == "shm":
        until = time.monotonic() + WATCHDOG_S
        while client.stats()["lent"] and time.monotonic() < until:  # the plugin looks at every lane before it waits
            assert arrays.total(np.ones(1)) == 1.0
        assert client.stats()["lent"] == 0


def test_handles_of_one_interface_share_the_connection(client: fastplug.Client) -> None:
    handles = [client.dispense(Probe) for _ in range(THREADS)]

    def work(i: int) -> None:
        for n in range(CALLS):
            assert handles[i].add(i, n) == i + n

    in_threads(work)


def test_a_call_from_another_thread_while_one_waits(probe: Probe, gate: Gate) -> None:
    answers: list[Any] = []
    holder = threading.Thread(target=lambda: answers.append(probe.through(gate.path, 1)))
    holder.start()
    gate.wait_entered()
    second = threading.Thread(target=lambda: answers.append(probe.add(1)))
    second.start()
    gate.open()
    holder.join()
    second.join()
    assert sorted(answers) == [1, 11.0]


def test_many_plugins_at_once(start: Callable[..., fastplug.Client]) -> None:
    probes = [start(ProbePlugin).dispense(Probe) for _ in range(3)]
    in_threads(lambda i: [probes[i].add(i, n) for n in range(CALLS)] and None, len(probes))
    pids = {probe.pid() for probe in probes}
    assert len(pids) == (1 if os.getpid() in pids else 3)


@pytest.mark.transports("shm", "socket", "inproc")
def test_a_call_inside_a_call_of_the_same_thread_is_refused(probe: Probe, gate: Gate) -> None:
    """From a signal handler, while this thread waits for its answer."""
    inner: list[BaseException] = []

    def handler(signum: int, frame: object) -> None:
        try:
            probe.add(1)
        except BaseException as error:  # noqa: BLE001  what comes is the question
            inner.append(error)
        gate.open()

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        main = threading.main_thread().ident
        assert main is not None
        sender = threading.Thread(target=lambda: (gate.wait_entered(), signal.pthread_kill(main, signal.SIGUSR1)))
        sender.start()
        assert probe.through(gate.path, 5) == 5
        sender.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert [type(error) for error in inner] == [fastplug.LocalProtocolError]
    assert "open a second handle" in str(inner[0])
    assert probe.add(1) == 11.0


def test_a_call_while_an_argument_is_read_is_refused_or_right(probe: Probe) -> None:
    class Sly(int):
        def __index__(self) -> int:
            probe.add(1)
            return 7

    assert probe.add(Sly(3)) == 13.0  # an int is taken as the int it is, whatever its class says
    assert probe.add(1) == 11.0


def test_ctrl_c_ends_a_waiting_call_and_leaves_the_handle_usable(probe: Probe, gate: Gate) -> None:
    main = threading.main_thread().ident
    assert main is not None
    sender = threading.Thread(target=lambda: (gate.wait_entered(), signal.pthread_kill(main, signal.SIGINT)))
    sender.start()
    with pytest.raises(KeyboardInterrupt):
        probe.through(gate.path, 1)
    sender.join()
    gate.open()
    assert probe.add(1) == 11.0
