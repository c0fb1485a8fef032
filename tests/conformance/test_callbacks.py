"""Callbacks, and what the end of a plugin means for all that was under way: one meaning over every transport."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import numpy as np
import pytest
from tests.conformance.conftest import Gate, started
from tests.plugins.flows_api import Floats, Flows
from tests.plugins.flows_plugin import PlainFlows, UncollectedFlows

import fastplug
from fastplug.errors import ArgumentError, ConfigError, DeadlineExceeded, PluginDied, RemoteError

SOON_S = 60.0


def test_a_callback(flows: Flows) -> None:
    here = threading.current_thread()
    threads: set[threading.Thread] = set()

    def tell(n: int) -> int:
        threads.add(threading.current_thread())
        return 3 * n

    assert flows.each(100, tell) == 3 * sum(range(100))
    assert threads == {here}
    assert not flows.maybe()
    assert not flows.maybe(None)
    assert flows.maybe(print)
    assert float(flows.apply(np.ones(50_000), lambda x: x * 2).sum()) == 150_000
    with pytest.raises(ArgumentError, match="cannot be called"):
        flows.each(1, cast("Callable[[int], int]", 5))


def test_callbacks_that_call(flows: Flows) -> None:
    def tell(n: int) -> int:
        return flows.double(n) + (flows.each(n, tell) if n < 4 else sum(flows.count(n)))

    def model(n: int) -> int:
        return 2 * n + (sum(map(model, range(n))) if n < 4 else sum(range(n)))

    assert flows.each(8, tell) == sum(map(model, range(8)))


def _chain(flows: Flows, levels: int) -> int:
    """Calls the plugin, which calls back, and so on."""
    return 1 + flows.each(1, lambda _: _chain(flows, levels - 1)) if levels else 0


def test_a_chain_of_callbacks_has_an_end(flows: Flows) -> None:
    assert _chain(flows, 32) == 32
    with pytest.raises(RecursionError, match="endless") as refused:
        _chain(flows, 1000)
    assert isinstance(refused.value, RemoteError)
    assert _chain(flows, 32) == 32


def test_chains_of_many_threads(flows: Flows) -> None:
    """Together they are deeper than one may be."""
    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(lambda levels: _chain(flows, levels), [3] * 40, timeout=SOON_S)) == [3] * 40


def test_callbacks_of_many_calls_that_call(flows: Flows) -> None:
    """More handlers wait than run on top of each other, and what their callbacks call is answered all the same."""
    calls = [fastplug.submit(flows.each, 3, flows.double) for _ in range(100)]
    assert [call.result(timeout_s=SOON_S) for call in calls] == [6] * 100


def test_callbacks_that_fail(flows: Flows) -> None:
    def tell(n: int) -> int:
        raise KeyError(n)

    with pytest.raises(KeyError) as failed:
        flows.each(3, tell)
    assert isinstance(failed.value, RemoteError)
    with pytest.raises(RemoteError, match="callback must return int, got str; correct the host"):
        flows.each(3, lambda n: cast("int", "x"))
    with pytest.raises(KeyboardInterrupt):
        flows.each(3, interrupt)


@pytest.mark.parametrize("kept", [False, True])
def test_each_traceback_says_whose_it_is(flows: Flows, kept: bool) -> None:
    def tell(n: int) -> int:
        raise KeyError(n)

    if kept:
        flows.keep(tell)
    with pytest.raises(KeyError) as failed:
        flows.use(3) if kept else flows.each(3, tell)
    assert str(failed.value).count("traceback:") == 2
    head, _, rest = str(failed.value).partition("\n\nThe plugin's traceback:\n")
    plugins, _, hosts = rest.partition("\n\nThe host's traceback:\n")
    assert "KeyError: " in head
    assert "flows_plugin.py" in plugins
    assert "in tell" not in plugins
    assert "flows_plugin.py" not in hosts
    assert "in tell" in hosts
    assert isinstance(failed.value, RemoteError)
    assert failed.value.raised_by == "plugin"  # what the host calls


def interrupt(n: int) -> int:
    raise KeyboardInterrupt


def _goes(alive: weakref.ref[Callable[[int], int]]) -> bool:
    """Whether the host lets go of a callback: over gRPC the connection that carried it ends a moment later."""
    end = time.monotonic() + SOON_S
    while alive() is not None and time.monotonic() < end:
        gc.collect()
    return alive() is None


def test_kept_callbacks(flows: Flows) -> None:
    def tell(n: int) -> int:
        return n

    alive = weakref.ref(tell)
    flows.keep(tell)
    del tell
    assert flows.use(5) == 5
    assert fastplug.submit(flows.thread_of, abs, -4).result(SOON_S) == 4
    gc.collect()
    assert alive() is not None
    assert flows.drop() == 1
    assert _goes(alive)


def test_callbacks_from_elsewhere(flows: Flows) -> None:
    names: list[str] = []

    def tell(n: int) -> int:
        names.append(threading.current_thread().name)
        return n + 1

    assert flows.thread_of(tell, 1) == 2
    flows.keep(tell)
    assert flows.use(5) == 6
    assert flows.use_thread(6) == 7
    assert list(flows.counted(3, tell)) == [1, 2, 3]
    assert fastplug.submit(flows.each, 3, tell).result(SOON_S) == 6
    assert {name.rpartition(" ")[0] for name in names} == {"fastplug callbacks"}
    assert flows.fed_back(range(10), tell) == 55


def test_callbacks_from_elsewhere_that_call(start: Callable[..., fastplug.Client]) -> None:
    """They run on the host's thread for callbacks, and the plugin's only worker waits for them: it answers on top."""
    flows: Flows = start(PlainFlows).dispense(Flows)  # its own: a socket has an eventfd from then on

    def tell(n: int) -> int:
        return flows.double(n) + sum(flows.count(n))

    expected = [2 * n + sum(range(n)) for n in range(20)]
    assert fastplug.submit(flows.each, 20, tell).result(SOON_S) == sum(expected)
    assert list(flows.counted(20, tell)) == expected
    several = [fastplug.submit(flows.each, 20, tell) for _ in range(10)]
    assert [call.result(SOON_S) for call in several] == [sum(expected)] * 10
    flows.keep(tell)
    assert flows.use(7) == expected[7]
    with pytest.raises(KeyError):
        fastplug.submit(flows.each, 3, lambda n: flows.fail(7) if flows.double(n) else {}[n]).result(SOON_S)
    with pytest.raises(DeadlineExceeded), fastplug.deadline(after_s=0.1):
        fastplug.submit(flows.each, 10**9, flows.double).result(SOON_S)
    assert flows.double(3) == 6


def test_a_kept_callback_goes_with_the_connection(start: Callable[..., fastplug.Client]) -> None:
    def tell(n: int) -> int:
        return n

    client = start(PlainFlows)
    flows: Flows = client.dispense(Flows)
    alive = weakref.ref(tell)
    flows.keep(tell)
    del tell
    assert alive() is not None
    client.kill()
    assert _goes(alive)
    with pytest.raises(fastplug.Closed):  # the handle lives on
        flows.double(1)


@pytest.mark.transports("shm", "socket", "inproc")
def test_callbacks_of_calls_that_do_not_begin(start: Callable[..., fastplug.Client], gate: Gate) -> None:
    """They are let go without a search for cycles in the plugin."""

    def tell(n: int) -> int:
        return n

    alive = weakref.ref(tell)
    flows: Flows = start(UncollectedFlows).dispense(Flows)
    try:
        waits = fastplug.submit(flows.wait, gate.path)
        gate.wait_entered()
        assert all(fastplug.submit(flows.each, 1, tell).cancel() for _ in range(10))
        del tell
        assert alive() is not None
        gate.open()
        waits.result(SOON_S)
        assert flows.double(1) == 2
        assert _goes(alive)
    finally:
        gc.enable()  # of a plugin in this process


class Ear:
    def __init__(self) -> None:
        self.words: list[str] = []

    def heard(self, what: str) -> int:
        self.words.append(what)
        return len(what)

    def said(self, x: Floats, *, loud: bool = False) -> Floats:
        return x * (2 if loud else 1)


def test_an_interface_as_callback(flows: Flows) -> None:
    ear = Ear()
    assert flows.listen(ear) == 3 + 3 + 5 + 2000
    assert ear.words == ["one", "two", "three"]
    with pytest.raises((ArgumentError, ConfigError), match="does not implement"):
        flows.listen(cast("Ear", object()))


# -- the end


def killed_at(client: fastplug.Client, values: Iterator[int], at: int) -> Iterator[int]:
    """``values``; the plugin is killed when one of them is ``at``."""
    for n in values:
        if n == at:
            assert client.pid is not None
            os.kill(client.pid, signal.SIGKILL)
        yield n


@pytest.mark.transports("shm", "socket", "grpc")
def test_the_plugin_dies_in_the_middle(transport: str, gate: Gate) -> None:
    endless = range(10**9)

    def calls(client: fastplug.Client, flows: Flows) -> None:
        under_way = [fastplug.submit(flows.wait, gate.path) for _ in range(3)]
        gate.wait_entered()
        list(killed_at(client, iter([1]), 1))
        under_way[1].result(SOON_S)

    runs: tuple[Callable[[fastplug.Client, Flows], object], ...] = (
        lambda client, flows: list(killed_at(client, flows.count(10**9), 100)),
        lambda client, flows: list(killed_at(client, flows.doubled(iter(endless)), 100)),
        lambda client, flows: list(fastplug.map(flows.double, killed_at(client, iter(endless), 100))),
        calls,
    )
    for run in runs:
        with started(transport, PlainFlows) as client:
            handle: Flows = client.dispense(Flows)
            with pytest.raises(PluginDied):
                run(client, handle)
            with pytest.raises(PluginDied):
                handle.double(1)
