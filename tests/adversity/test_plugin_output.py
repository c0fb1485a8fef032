"""What a plugin prints, logs and debugs, end to end: records of its logger in the host; a terminal for its debugger."""

from __future__ import annotations

import logging
import os
import pty
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
from tests.adversity.hosts import environment, source
from tests.adversity.processes import WATCHDOG_S
from tests.adversity.running import plugin_environment
from tests.plugins.faults_api import Faults

import fastplug

TRANSPORTS = ["shm", "socket", "grpc"]


class Records(logging.Handler):
    """Collects records; a test waits for the one it wants."""

    def __init__(self) -> None:
        super().__init__()
        self._arrived = threading.Condition()
        self._all: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        with self._arrived:
            self._all.append(record)
            self._arrived.notify_all()

    def first(self, text: str) -> logging.LogRecord:
        """The first record with this text in it, now or later."""

        def found() -> logging.LogRecord | None:
            return next((record for record in self._all if text in record.getMessage()), None)

        with self._arrived:
            assert self._arrived.wait_for(found, WATCHDOG_S), [record.getMessage()[:200] for record in self._all]
            record = found()
        assert record is not None
        return record

    def characters(self, character: str, wanted: int) -> None:
        """Returns when as many of this character have come, in however many records."""

        def count() -> bool:
            return sum(record.getMessage().count(character) for record in self._all) >= wanted

        with self._arrived:
            assert self._arrived.wait_for(count, WATCHDOG_S)


@pytest.fixture
def records() -> Iterator[Records]:
    logger = logging.getLogger("fastplug.plugin.faulty")
    handler = Records()
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(before[0])
    logger.propagate = before[1]


Start = Callable[..., fastplug.Client]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_prints_and_logs_arrive_with_their_levels(start: Start, records: Records, transport: str) -> None:
    faults = start(transport).dispense(Faults)
    for how, level in (
        ("print", "INFO"),
        ("printf", "INFO"),
        ("child", "INFO"),
        ("DEBUG", "DEBUG"),
        ("WARNING", "WARNING"),
        ("ERROR", "ERROR"),
    ):
        faults.say(how, f"said by {how}!")
        assert records.first(f"said by {how}!").levelname == level
    faults.say("stderr", "said on stderr")
    records.first("said on stderr")


@pytest.mark.parametrize("how", ["print", "printf", "stderr"])
def test_more_than_a_pipe_holds(start: Start, records: Records, how: str) -> None:
    """3 MiB in one go: nobody blocks, nothing is lost."""
    faults = start("shm").dispense(Faults)
    faults.say(how, "\N{LATIN SMALL LETTER A}" * 1024, 3 * 1024)
    records.characters("a", 3 << 20)
    assert faults.echo("x") == "x"


CHATTY = """
import sys
print("before fastplug", end=" ")
import fastplug
from tests.plugins.faults_plugin import Faulty
print("before serve()")
fastplug.serve(Faulty())
print("after serve()", file=sys.stderr)
"""


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_what_is_printed_before_the_line_is_logged(records: Records, transport: str) -> None:
    with fastplug.start([sys.executable, "-c", CHATTY], transport=transport, name="faulty", env=plugin_environment()) as client:  # type: ignore[arg-type]
        assert client.dispense(Faults).echo("a") == "a"
        records.first("before fastplug before serve()")


def test_the_last_prints_are_in_the_error(start: Start) -> None:
    faults = start("shm").dispense(Faults)
    faults.say("stderr", "a warning of the plugin")
    with pytest.raises(fastplug.PluginDied) as caught:
        faults.end_process("SIGKILL")
    assert "a warning of the plugin" in str(caught.value)


DEBUGGED = """
import fcntl, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
with started(sys.argv[1]) as client:
    faults = client.dispense(Faults)
    print("the call returned", faults.debug(41), flush=True)
    assert os.tcgetpgrp(0) == os.getpgrp()
    print("host read", input("host> "), flush=True)
"""


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_breakpoint_in_a_handler(transport: str) -> None:
    """The plugin takes the terminal, reads commands, gives it back; then the call returns."""
    master, slave = pty.openpty()
    host = subprocess.Popen(
        [*source(DEBUGGED), transport], stdin=slave, stdout=slave, stderr=slave, start_new_session=True, env=environment()
    )
    os.close(slave)
    seen = ""

    def wait_for(text: str) -> None:
        nonlocal seen
        while text not in seen:
            assert select.select([master], [], [], WATCHDOG_S)[0], seen
            seen += os.read(master, 4096).decode()
        seen = seen.partition(text)[2]

    try:
        wait_for("(Pdb) ")
        os.write(master, b"p x * 2\n")
        wait_for("82\r\n")
        wait_for("(Pdb) ")
        os.write(master, b"x = 1\n")
        wait_for("(Pdb) ")
        os.write(master, b"c\n")
        wait_for("the call returned 2\r\n")
        wait_for("host> ")
        os.write(master, b"mine\n")
        wait_for("host read mine\r\n")
        assert host.wait(WATCHDOG_S) == 0
    finally:
        host.kill()
        host.wait()
        os.close(master)
