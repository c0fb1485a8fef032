"""Ctrl-C: it ends the host's wait, never the plugin, and never the handle."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import threading
from collections.abc import Callable

import pytest
from tests.adversity.hosts import environment, source
from tests.adversity.processes import WATCHDOG_S
from tests.adversity.running import Running
from tests.conformance.conftest import Gate
from tests.plugins.faults_api import Faults

import fastplug

Start = Callable[..., fastplug.Client]


@pytest.mark.parametrize("transport", ["shm", "socket", "grpc", "inproc"])
def test_ctrl_c_ends_a_waiting_call_and_nothing_else(start: Start, transport: str, gate: Gate) -> None:
    client = start(transport)
    faults = client.dispense(Faults)
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        gate.wait_entered()
        signal.pthread_kill(main, signal.SIGINT)

    interrupter = Running(interrupt)
    with pytest.raises(KeyboardInterrupt):
        faults.gate(gate.path, "late")
    interrupter.result()
    gate.open()
    assert faults.echo("mine") == "mine"  # never "late"
    if transport != "grpc":
        assert client.stats()["late_replies"] == 1


def test_the_plugin_ignores_sigint(start: Start, gate: Gate) -> None:
    client = start("shm")
    call = Running(client.dispense(Faults).gate, gate.path, "undisturbed")
    gate.wait_entered()
    assert client.pid is not None
    os.killpg(client.pid, signal.SIGINT)
    gate.open()
    assert call.result() == "undisturbed"


TERMINAL_HOST = """
import fcntl, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from pathlib import Path
from tests.conformance.conftest import Gate
client = started(sys.argv[1])
faults = client.dispense(Faults)
gate = Gate(Path(sys.argv[2]))
Running(lambda: (gate.wait_entered(), print("waiting", flush=True)))
try:
    faults.gate(gate.path, "late")
except KeyboardInterrupt:
    gate.open()
    print("interrupted, and then", faults.echo("well"), flush=True)
client.kill()
print("done", flush=True)
"""


@pytest.mark.parametrize("transport", ["shm", "grpc"])
def test_ctrl_c_at_the_terminal(transport: str, tmp_path: pytest.TempPathFactory) -> None:
    """The terminal signals its whole foreground group: the plugin has a group of its own."""
    master, slave = pty.openpty()
    argv = [*source(TERMINAL_HOST), transport, str(tmp_path)]
    host = subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, env=environment())
    os.close(slave)
    seen = ""
    try:
        while "done" not in seen:
            assert select.select([master], [], [], WATCHDOG_S)[0], seen
            seen += os.read(master, 4096).decode()
            if "waiting" in seen and "^C" not in seen:
                os.write(master, b"\x03")
                seen += "^C"
        assert host.wait(WATCHDOG_S) == 0
    finally:
        host.kill()
        host.wait()
        os.close(master)
    assert "interrupted, and then well" in seen
    assert "Traceback" not in seen
