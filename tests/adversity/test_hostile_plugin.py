"""A plugin that breaks the protocol: the host says so at once, does not crash, uses the connection no more, and can still end it."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest
from tests.adversity.running import Running, plugin_environment
from tests.plugins.faults_api import Faults
from tests.plugins.hostile_plugin import CONTROLS, HARMLESS, HELLOS, REPLIES, SEGMENTS

import fastplug

FaultRow = Callable[..., None]


def start(how: str) -> fastplug.Client:
    argv = [sys.executable, "-m", "tests.plugins.hostile_plugin", how]
    return fastplug.start(argv, name="hostile", env=plugin_environment(), connect_timeout_s=5, stop_timeout_s=0.1)


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
