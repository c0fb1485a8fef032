"""The relay process ends on either side, or a plugin is stopped: what a caller then sees, and that nothing hangs or stays."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.adversity.processes import WATCHDOG_S
from tests.adversity.running import Running
from tests.conformance.conftest import Gate
from tests.plugins.faults_api import Faults

import fastplug
from fastplug.net.relay import relay


def relay_of(pid: int) -> int:
    """The relay process that this process has started."""
    for task in os.listdir(f"/proc/{pid}/task"):
        for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
            if b"relay_main.py" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
    raise AssertionError(f"process {pid} has no relay")


@pytest.mark.parametrize("side", ["host", "plugin"])
def test_a_relay_is_killed(
    side: str, start: Callable[..., fastplug.Client], fault_row: Callable[..., None], running: Callable[..., Running[Any]], gate: Gate
) -> None:
    """With multiplexing the plugin can be reached by nobody any more, and ends."""
    client = start("grpc", auto_mtls=True, grpc_broker_multiplex=True)
    faults = client.dispense(Faults)
    waiting = running(faults.gate, gate.path, "late")
    gate.wait_entered()
    victim = relay().pid if side == "host" else relay_of(client.pid or 0)
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    gate.open()  # the call in hand may finish; its plugin has no other reason to stay
    # as long as the plugin takes to end, it is only the connection that has
    assert isinstance(waiting.error(), fastplug.PluginDied | fastplug.ConnectionLost)
    assert client._runner is not None
    assert client._runner.wait(WATCHDOG_S)
    with pytest.raises(fastplug.PluginDied) as died:
        faults.echo("x")
    assert died.value.returncode == 0
    fault_row(f"a call after the relay process of the {side} was killed (grpc_broker_multiplex)", died.value, do="Start it again")
    client.kill()
    with start("grpc", auto_mtls=True, grpc_broker_multiplex=True) as again:
        assert again.dispense(Faults).echo("x") == "x"


def test_the_hosts_relay_is_killed_under_auto_mtls(
    start: Callable[..., fastplug.Client], fault_row: Callable[..., None], running: Callable[..., Running[Any]], gate: Gate
) -> None:
    """The plugin lives on, and takes other connections; this host has lost the one that it had."""
    client = start("grpc", auto_mtls=True, stop_timeout_s=600)
    faults = client.dispense(Faults)
    waiting = running(faults.gate, gate.path, "late")
    gate.wait_entered()
    pid = relay().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    error = waiting.error()
    gate.open()
    assert isinstance(error, fastplug.ConnectionLost)
    assert "relay process" in error.reason
    fault_row("the relay process of the host is killed in a call (auto_mtls)", error, do="end it (kill()) and start it again.")
    assert not client.exited
    client.kill()  # it cannot be asked: SIGTERM at once, and not after stop_timeout_s
    assert client.exited


def test_a_plugin_that_cannot_multiplex_is_refused(fault_row: Callable[..., None]) -> None:
    """Such as any before go-plugin 1.6: its line has six fields."""
    old = ["sh", "-c", "echo '1|1|unix|/tmp/x|grpc|'; sleep 60"]
    with pytest.raises(fastplug.UnsupportedProtocol) as refused:
        fastplug.start(old, name="acme", grpc_broker_multiplex=True)
    fault_row("a plugin before go-plugin 1.6, and grpc_broker_multiplex", refused.value, do="Or switch multiplexing off in this host.")
    for impossible in ({"transport": "shm"}, {"allowed_protocols": ["fast"]}):
        with pytest.raises(fastplug.ConfigError, match="grpc_broker_multiplex is for plugins over gRPC"):
            fastplug.start(old, grpc_broker_multiplex=True, **impossible)  # type: ignore[arg-type]
