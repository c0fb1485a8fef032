"""A plugin whose connection ends while its process runs on: it has not died, and is not told as dead; and it is ended without a wait."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
import time
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from tests.adversity.processes import WATCHDOG_S, gone, open_pidfds
from tests.adversity.running import Running
from tests.conformance.conftest import plugin_environment

import fastplug
from fastplug.life import REAP_TIMEOUT_S

PLUGIN = """
    import os, signal, socket, sys
    from collections.abc import Iterator
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

        def cut_when(self, transport: str, fifo: str) -> None:
            with open(fifo) as opened:
                opened.readline()
            self.cut(transport)

        def trickle(self, transport: str) -> Iterator[int]:
            yield 1
            self.cut(transport)

    fastplug.serve(Cutting())
"""


@fastplug.interface("test.hermit/1")
class Hermit(Protocol):
    def cut(self, transport: str) -> None: ...
    def cut_when(self, transport: str, fifo: str) -> None: ...
    def trickle(self, transport: str) -> Iterator[int]: ...


def start(folder: Path, transport: fastplug.Transport, **options: Any) -> fastplug.Client:
    program = folder / "plugin.py"
    program.write_text(textwrap.dedent(PLUGIN))
    return fastplug.start([sys.executable, str(program)], name="hermit", transport=transport, env=plugin_environment(), **options)


@pytest.mark.parametrize("transport", ["shm", "socket", "grpc"])
def test_a_plugin_that_closes_its_connection_and_runs_on(transport: fastplug.Transport, tmp_path: Path) -> None:
    # Ten minutes of grace would be waited for if the plugin could be asked to stop.
    with start(tmp_path, transport, stop_timeout_s=600) as client:
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


@pytest.mark.parametrize("streams", [False, True], ids=["calls", "stream"])
@pytest.mark.parametrize("transport", ["shm", "socket", "grpc"])
def test_an_event_loop_goes_on_while_its_calls_learn_why(transport: fastplug.Transport, tmp_path: Path, *, streams: bool) -> None:
    """The process's end is waited for first, and it does not come; all calls under way are told, and the next one at once."""
    beats = list[float]()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    async def beat() -> None:
        while True:
            beats.append(time.monotonic())
            await asyncio.sleep(0.01)

    async def later(stream: Any) -> None:  # usable both ways, as fastplug's streams are
        assert await anext(stream) == 1
        await anext(stream)

    async def main(hermit: Hermit) -> None:
        beating = asyncio.create_task(beat())
        waiting: list[Awaitable[None]] = []
        if streams:
            waiting.append(later(hermit.trickle(transport)))
        else:
            waiting += [fastplug.submit(hermit.cut_when, transport, str(fifo)) for _ in range(3)]
            fifo.write_text("all are under way\n")
        outcomes = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), WATCHDOG_S)
        told_s = time.monotonic()
        assert {type(outcome) for outcome in outcomes} == {fastplug.ConnectionLost}
        while_it_waited = [beat_s for beat_s in beats if 0.1 < (told_s - beat_s) / REAP_TIMEOUT_S < 0.9]
        assert len(while_it_waited) >= 3
        beating.cancel()

    with start(tmp_path, transport) as client:
        hermit = client.dispense(Hermit)
        asyncio.run(main(hermit))
        with pytest.raises(fastplug.ConnectionLost):
            hermit.cut(transport)
        assert not client.exited
