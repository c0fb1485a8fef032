"""A plugin that ends, or stands still, exactly where it hurts: the debug build stops at a named point, and the test signals there."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.adversity import debug_tree
from tests.adversity.processes import WATCHDOG_S
from tests.adversity.running import Running, plugin_environment
from tests.growing import growing_s
from tests.plugins.faults_api import Faults

import fastplug

Start = Callable[..., fastplug.Client]

# A point that no test knows would never be stopped at.
POINTS = [
    "blocks lent, not published",
    "frame copied, not consumed",
    "frame published",
    "frame written, not published",
    "handler about to run",
]


def test_every_point_of_the_sources_is_here() -> None:
    assert debug_tree.points() == sorted(POINTS)


@pytest.fixture(scope="module")
def debug_build() -> Path:
    return debug_tree.tree()


@pytest.fixture
def stopping(start: Start, debug_build: Path) -> Callable[[str], fastplug.Client]:
    """A client whose plugin stops at each passing of the point."""

    def started_at(point: str) -> fastplug.Client:
        path = os.pathsep.join([str(debug_build), plugin_environment()["PYTHONPATH"]])
        return start("shm", env={"PYTHONPATH": path, "FASTPLUG_STOP_AT": point}, stop_timeout_s=0.1)

    return started_at


def stopped(client: fastplug.Client) -> None:
    assert client.pid is not None
    status = Running(os.waitid, os.P_PID, client.pid, os.WSTOPPED).result()
    assert status is not None
    assert status.si_status == signal.SIGSTOP


def in_call(client: fastplug.Client) -> tuple[Running[np.ndarray], np.ndarray]:
    """A call with a lent array, which the plugin answers with another; and the array."""
    faults = client.dispense(Faults)
    block = client.empty(1 << 14)
    block[:] = 1
    call = Running(faults.plus_one, block)
    stopped(client)
    return call, block


@pytest.mark.parametrize("point", POINTS)
def test_killed_at(stopping: Callable[[str], fastplug.Client], point: str) -> None:
    client = stopping(point)
    call, block = in_call(client)
    assert client.pid is not None
    os.kill(client.pid, signal.SIGKILL)
    if point == "frame published":  # the answer is there, whole: it may be taken, or the death be seen first
        try:
            assert float(call.result()[0]) == 2.0
        except fastplug.PluginDied as error:
            assert "signal 9 (SIGKILL)" in str(error)  # noqa: PT017
    else:
        error = call.error()
        assert isinstance(error, fastplug.PluginDied), repr(error)
        assert "signal 9 (SIGKILL)" in str(error)
        assert "plus_one" in str(error)
    client.kill()
    block[:] = 5  # ours, and nobody reads it any more
    assert float(block.sum()) == 5.0 * (1 << 14)


@pytest.mark.parametrize("point", POINTS)
def test_standing_still_at(stopping: Callable[[str], fastplug.Client], point: str) -> None:
    """A deadline ends the wait, SIGCONT lets the plugin go on, and every block comes back."""
    client = stopping(point)
    faults = client.dispense(Faults)
    block = client.empty(1 << 14)
    block[:] = 1

    def bounded(after_s: float) -> object:
        with fastplug.deadline(after_s=after_s):
            return faults.plus_one(block)

    assert client.pid is not None
    if point == "frame published":  # the answer is there before the plugin stops
        Running(bounded, WATCHDOG_S).result()
        stopped(client)
    else:
        for after_s in growing_s(0.3):
            assert isinstance(Running(bounded, after_s).error(), fastplug.DeadlineExceeded)
            if os.waitid(os.P_PID, client.pid, os.WSTOPPED | os.WNOHANG):
                break
    again = Running(faults.plus_one, np.full(1 << 14, 7.0))
    while again.thread.is_alive():  # it stops at the point again and again
        os.kill(client.pid, signal.SIGCONT)
        again.thread.join(0.01)
    assert float(again.result()[0]) == 8.0
    client.kill()


@pytest.mark.parametrize("point", POINTS)
def test_killed_by_the_host_at(stopping: Callable[[str], fastplug.Client], point: str) -> None:
    client = stopping(point)
    call, _ = in_call(client)
    client.kill()
    assert client.exited
    if point != "frame published":
        assert isinstance(call.error(), (fastplug.Closed, fastplug.PluginDied))
