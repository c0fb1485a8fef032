"""What a plugin says beside its answers arrives in the host's logging, with its level; over every transport that has a process."""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable, Iterator

import pytest
from tests.conformance.conftest import EVENT_TIMEOUT_S, started
from tests.plugins.probe_api import Probe
from tests.plugins.probe_plugin import ProbePlugin

import fastplug

pytestmark = pytest.mark.transports("shm", "socket", "grpc")

LOGGER = logging.getLogger("fastplug.plugin.ProbePlugin")


class Heard(logging.Handler):
    """Records in the order in which they came; the test waits for the one it is about."""

    def __init__(self) -> None:
        super().__init__()
        self._records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()

    def emit(self, record: logging.LogRecord) -> None:
        self._records.put(record)

    def wait_for(self, text: str) -> logging.LogRecord:
        """The next record with ``text`` in its message."""
        while True:
            record = self._records.get(timeout=EVENT_TIMEOUT_S)
            if text in record.getMessage():
                return record


@pytest.fixture
def heard() -> Iterator[Heard]:
    handler, level = Heard(), LOGGER.level
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.DEBUG)
    yield handler
    LOGGER.removeHandler(handler)
    LOGGER.setLevel(level)


@pytest.fixture(scope="module")
def client(transport: str) -> Iterator[fastplug.Client]:
    level = LOGGER.level
    LOGGER.setLevel(logging.DEBUG)  # a plugin follows the level that it finds at its start
    with started(transport, ProbePlugin) as client:
        LOGGER.setLevel(level)
        assert client.dispense(Probe).add(1) == 11.0  # its threads start here
        yield client


@pytest.fixture
def probe(heard: Heard, client: fastplug.Client) -> Probe:
    return client.dispense(Probe)


def test_print_is_safe_and_arrives(heard: Heard, probe: Probe) -> None:
    for flush in (True, False):
        probe.prints(f"printed {flush}\nin two lines", flush)
        record = heard.wait_for(f"printed {flush}")
        assert record.levelno == logging.INFO
        assert heard.wait_for("in two lines").levelno == logging.INFO
    assert probe.add(1) == 11.0


def test_a_line_that_looks_like_a_handshake_harms_nobody(heard: Heard, probe: Probe) -> None:
    probe.prints("1|1|unix|/tmp/nowhere|grpc|", True)
    heard.wait_for("1|1|unix")
    assert probe.add(1) == 11.0


@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO, 25, logging.WARNING, logging.ERROR, logging.CRITICAL])
def test_a_log_record_keeps_its_level(heard: Heard, probe: Probe, level: int) -> None:
    probe.logs(level, f"logged at {level}")
    record = heard.wait_for(f"logged at {level}")
    assert record.levelno == level
    assert record.plugin_logger == "acme.probe"  # type: ignore[attr-defined]


def test_a_traceback_is_one_record(heard: Heard, probe: Probe) -> None:
    probe.logs_error("it went wrong")
    record = heard.wait_for("it went wrong")
    assert record.levelno == logging.ERROR
    assert record.exc_text
    assert "ValueError: the reason" in record.exc_text
    assert "probe_plugin.py" in record.exc_text


def test_raw_text_on_stderr_arrives(heard: Heard, probe: Probe) -> None:
    probe.writes("raw words\n")
    assert heard.wait_for("raw words").name == "fastplug.plugin.ProbePlugin"
    probe.writes("Traceback (most recent call last):\n  File \"x\", line 1, in f\nKeyError: 'k'\n")
    record = heard.wait_for("KeyError")
    assert "Traceback" in (record.exc_text or record.getMessage())


def test_long_and_odd_output_stops_nothing(heard: Heard, probe: Probe) -> None:
    probe.prints("x" * 300_000, True)
    probe.writes("y" * 200_000 + "\n")
    probe.prints("é \x00 end", True)
    heard.wait_for("end")
    for i in range(2000):
        probe.writes(f"line {i}\n")
    heard.wait_for("line 1999")
    assert probe.add(1) == 11.0


def test_the_plugin_follows_the_level_of_the_host(start: Callable[..., fastplug.Client], heard: Heard) -> None:
    LOGGER.setLevel(logging.ERROR)
    probe = start(ProbePlugin).dispense(Probe)
    probe.logs(logging.WARNING, "not wanted")
    probe.logs(logging.ERROR, "wanted")
    assert heard.wait_for("wanted").getMessage() == "wanted"


def test_output_goes_to_the_logger_that_is_named(start: Callable[..., fastplug.Client]) -> None:
    handler, logger = Heard(), logging.getLogger("acme.host")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        start(ProbePlugin, logger=logger).dispense(Probe).prints("to acme", True)
        assert handler.wait_for("to acme").name == "acme.host"
    finally:
        logger.removeHandler(handler)


def test_what_was_said_last_is_logged_before_kill_returns(start: Callable[..., fastplug.Client], heard: Heard) -> None:
    client = start(ProbePlugin)
    probe = client.dispense(Probe)
    probe.prints("unflushed last words")
    client.kill()
    heard.wait_for("unflushed last words")
