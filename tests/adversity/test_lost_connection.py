"""A plugin whose connection ends while its process runs on: it has not died, and is not told as dead; and it is ended without a wait."""

from __future__ import annotations

import signal
import sys
import textwrap
from pathlib import Path
from typing import Protocol

import pytest
from tests.adversity.processes import WATCHDOG_S, gone, open_pidfds
from tests.adversity.running import Running
from tests.conformance.conftest import plugin_environment

import fastplug

PLUGIN = """
    import os, signal, socket, sys
    from tests.adversity.test_lost_connection import Hermit
    import fastplug

    class Cutting(Hermit):
        def cut(self, transport: str) -> None:
            print("alone now", file=sys.stderr, flush=True)
            if transport != "grpc":
                os.closerange(3, 4096)
            for number in filter(lambda number: number > 2, map(int, os.listdir("/proc/self/fd"))):
                try:
                    found = socket.socket(fileno=os.dup(number))
                    if not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                        found.shutdown(socket.SHUT_RDWR)  # also for threads that wait in it
                except OSError:
                    continue
            while True:
                signal.pause()

    fastplug.serve(Cutting())
"""


@fastplug.interface("test.hermit/1")
class Hermit(Protocol):
    def cut(self, transport: str) -> None: ...


@pytest.mark.parametrize("transport", ["shm", "socket", "grpc"])
def test_a_plugin_that_closes_its_connection_and_runs_on(transport: fastplug.Transport, tmp_path: Path) -> None:
    program = tmp_path / "plugin.py"
    program.write_text(textwrap.dedent(PLUGIN))
    command = [sys.executable, str(program)]
    # Ten minutes of grace would be waited for if the plugin could be asked to stop.
    with fastplug.start(command, name="hermit", transport=transport, env=plugin_environment(), stop_timeout_s=600) as client:
        hermit = client.dispense(Hermit)
        with pytest.raises(fastplug.ConnectionLost) as raised, fastplug.deadline(after_s=WATCHDOG_S):
            hermit.cut(transport)
        assert (raised.value.name, raised.value.calling) == ("hermit", "test.hermit/1.cut")
        assert raised.value.stderr_tail == ("alone now",)
        with pytest.raises(fastplug.ConnectionLost):
            client.ping()
        assert not client.exited
        assert client.pid is not None
        with open_pidfds([client.pid]) as [pidfd]:
            Running(client.kill).result()  # within its watchdog, which is shorter than the grace
            assert gone(pidfd)
        assert client.returncode == -signal.SIGTERM
    with pytest.raises(fastplug.Closed, match=r"ended by kill\(\)"):
        hermit.cut(transport)
