"""A plugin that breaks the protocol: the host says so at once, does not crash, uses the connection no more, and can still end it."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable

import numpy as np
import pytest
from tests.adversity.processes import WATCHDOG_S
from tests.adversity.running import Running, plugin_environment, started
from tests.plugins.faults_api import Faults
from tests.plugins.hostile_plugin import CONTROLS, HARMLESS, HELLOS, KEEPS, NEVER_WRITES, REPLIES, SEGMENTS, WRITES_FOR_EVER

import fastplug

FaultRow = Callable[..., None]


LIMIT_BYTES = 16 << 20


def start(how: str, arena: fastplug.Arena | None = None) -> fastplug.Client:
    argv = [sys.executable, "-m", "tests.plugins.hostile_plugin", how]
    return fastplug.start(argv, name="hostile", env=plugin_environment(), connect_timeout_s=WATCHDOG_S, stop_timeout_s=0.1, arena=arena)


def call(client: fastplug.Client) -> float:
    faults = client.dispense(Faults)
    return float(Running(faults.plus_one, np.zeros(10)).result().sum())


@pytest.mark.parametrize("how", HARMLESS)
def test_what_is_passed_over(how: str) -> None:
    with start(how) as client:
        assert call(client) == 0.0


@pytest.mark.parametrize("how", [*REPLIES, *CONTROLS])
def test_a_broken_answer(fault_row: FaultRow, how: str) -> None:
    with start(how) as client:
        faults = client.dispense(Faults)
        error = Running(faults.plus_one, np.zeros(10)).error()
        assert isinstance(error, fastplug.RemoteProtocolError), repr(error)
        with pytest.raises((fastplug.RemoteProtocolError, fastplug.PluginDied)):
            faults.echo("a")
        client.kill()
        assert client.exited
        with pytest.raises((fastplug.RemoteProtocolError, fastplug.PluginDied, fastplug.Closed)):
            faults.echo("a")
    if how == "array offset: the end sticks out":
        fault_row("the plugin breaks the protocol in an answer", error, do="start the plugin anew")


@pytest.mark.parametrize("how", [*SEGMENTS, *HELLOS])
def test_a_broken_connection(fault_row: FaultRow, how: str) -> None:
    with pytest.raises(fastplug.PluginError) as caught:
        start(how)
    assert isinstance(caught.value, (fastplug.RemoteProtocolError, fastplug.HandshakeError)), repr(caught.value)
    assert not isinstance(caught.value, TimeoutError)
    if how in ("arena: sparse", "arena: no seals", "lane: smaller than announced", "lane: another version", "HELLO: no JSON"):
        fault_row(f"the plugin breaks the protocol at the start: {how}", caught.value, do="start the plugin anew")


def test_who_gives_no_array_back_uses_up_the_arena_and_no_more(fault_row: FaultRow) -> None:
    arena = fastplug.Arena(LIMIT_BYTES)
    with arena, start(KEEPS, arena) as client:
        faults = client.dispense(Faults)
        with pytest.raises(fastplug.ArenaExhausted) as caught:  # noqa: PT012  how many fit is the arena's affair
            for _ in range(LIMIT_BYTES >> 19):
                faults.plus_one(np.zeros(1 << 17))
        stats = arena.stats()
        assert stats["bytes"] <= LIMIT_BYTES
        assert stats["blocks_lent"] >= LIMIT_BYTES >> 21
        assert stats["oldest_lent"] is not None
        assert stats["oldest_lent"]["peers"] == ["hostile"]
        fault_row("a plugin that gives no array back", caught.value, do="Drop arrays that are no longer needed on either side")
        client.kill()
        with started("shm", arena=arena) as next_one:  # what the one that is gone had is free
            assert next_one.dispense(Faults).plus_one(np.zeros(1 << 17)).sum() == 1 << 17
        assert arena.stats()["blocks_lent"] == 0


@pytest.mark.parametrize("how", [NEVER_WRITES, WRITES_FOR_EVER])
def test_lies_with_the_eventfd(how: str) -> None:
    """An awaited call ends all the same: the loop looks by itself, and does not listen to what is written for nothing."""

    async def main(faults: Faults) -> list[float]:
        return [float((await fastplug.submit(faults.plus_one, np.zeros(10)))[0]) for _ in range(5)]

    with start(how) as client:
        assert Running(lambda: asyncio.run(main(client.dispense(Faults)))).result() == [0.0] * 5
        reads = any(thread.name == "fastplug reader" for thread in threading.enumerate())
        assert reads == (how == WRITES_FOR_EVER), "a thread waits once the eventfd is not believed"
