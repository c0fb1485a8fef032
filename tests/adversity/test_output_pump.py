"""The host's reader of a plugin's output, with real pipes: it never stops reading, never raises, and ends when told."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from fastplug.config import LOG_BUFFER_BYTES as LINE_BYTES_MAX
from fastplug.process.stderr import TAIL_LINES, OutputPump

# Far longer than any of this takes: a test that needs it has failed.
WATCHDOG_S = 60.0


class Listener(logging.Handler):
    def __init__(self) -> None:
        super().__init__(level=0)
        self.records: list[logging.LogRecord] = []
        self.heard = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        self.heard.set()

    @property
    def said(self) -> list[tuple[int, str]]:
        return [(record.levelno, record.getMessage()) for record in self.records]


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    logger = logging.getLogger("fastplug.plugin.pumped")
    logger.addHandler(listener)
    logger.setLevel(1)
    yield listener
    logger.removeHandler(listener)


class Streams:
    """Two pipes and their pump."""

    def __init__(self) -> None:
        (out, self.stdout_fd), (err, self.stderr_fd) = os.pipe(), os.pipe()
        self.stdout, self.stderr = open(out, "rb", buffering=0), open(err, "rb", buffering=0)  # noqa: PTH123, SIM115
        self._writers = [self.stdout_fd, self.stderr_fd]
        self.pump = OutputPump("pumped", self.stderr)

    def end(self) -> None:
        while self._writers:
            os.close(self._writers.pop())

    def close(self) -> None:
        assert self.pump.stop(WATCHDOG_S)
        self.end()
        self.stdout.close()
        self.stderr.close()


@pytest.fixture
def streams() -> Iterator[Streams]:
    streams = Streams()
    yield streams
    streams.close()


def test_both_streams_become_records_and_the_thread_ends_with_them(streams: Streams, listener: Listener) -> None:
    os.write(streams.stderr_fd, b"[WARN] early\n")
    streams.pump.drain(streams.stdout, b"behind the li")
    os.write(streams.stdout_fd, b"ne\nprinted\nunfinished")
    os.write(streams.stderr_fd, b'{"@level":"error","@message":"m","@module":"db","k":"v"}\n')
    streams.end()
    streams.pump._thread.join(WATCHDOG_S)
    assert sorted(listener.said) == [
        (logging.INFO, "behind the line"),
        (logging.INFO, "printed"),
        (logging.INFO, "unfinished"),
        (logging.WARNING, "early"),
        (logging.ERROR, "m"),
    ]
    (error,) = [record for record in listener.records if record.levelno == logging.ERROR]
    assert vars(error)["plugin_logger"] == "db"
    assert vars(error)["plugin_fields"] == {"k": "v"}
    assert streams.pump.tail() == ("early", "m")


def test_settle_needs_no_end_of_file(streams: Streams, listener: Listener) -> None:
    text = 'Traceback (most recent call last):\n  File "x.py", line 1, in f\nKeyError: 1\n'
    for _ in range(20):
        os.write(streams.stderr_fd, text.encode())
        assert streams.pump.settle(WATCHDOG_S)
        assert listener.records[-1].exc_text == text.rstrip()
    assert [message for _, message in listener.said] == ["KeyError: 1"] * 20
    assert streams.pump.tail()[-3:] == tuple(text.splitlines())


def test_an_idle_traceback_is_logged_without_being_asked_for(streams: Streams, listener: Listener) -> None:
    os.write(streams.stderr_fd, b'Traceback (most recent call last):\n  File "x.py", line 1, in f\nKeyError: 1\n')
    assert listener.heard.wait(WATCHDOG_S)
    assert listener.said == [(logging.ERROR, "KeyError: 1")]


def test_lines_over_the_limit_come_in_pieces(streams: Streams, listener: Listener) -> None:
    program = f"import os; os.write({streams.stderr_fd}, b'x' * {3 * LINE_BYTES_MAX + 5} + b'\\nend\\n')"
    subprocess.run([sys.executable, "-c", program], pass_fds=[streams.stderr_fd], check=True, timeout=WATCHDOG_S)
    assert streams.pump.settle(WATCHDOG_S)
    assert "".join(message for _, message in listener.said) == "x" * (3 * LINE_BYTES_MAX + 5) + "end"
    assert max(len(message) for _, message in listener.said) <= LINE_BYTES_MAX
    assert max(map(len, streams.pump.tail())) <= 1024


def test_the_rest_of_a_line_over_the_limit_is_no_line(streams: Streams, listener: Listener) -> None:
    """A piece may look like a record, a panic or a traceback: it is a part of the line that it is in."""
    looks = [b"[ERROR] x", b"panic: x", b'{"@level":"error","@message":"x"}', b"Traceback (most recent call last):", b"ERROR:a:x"]
    line = b"[WARN] " + b"y" * (LINE_BYTES_MAX - 7) + b"".join(look.ljust(LINE_BYTES_MAX, b" ") for look in looks) + b"z"
    with os.fdopen(os.dup(streams.stderr_fd), "wb") as stderr:
        stderr.write(line + b"\nend\n")
    assert streams.pump.settle(WATCHDOG_S)
    levels, texts = zip(*listener.said, strict=True)
    assert set(levels[:-1]) == {logging.WARNING}
    assert levels[-1] == logging.INFO
    assert [text.strip() for text in texts[1:]] == [*(look.decode() for look in looks), "z", "end"]


def test_a_raising_handler_or_filter_does_not_end_the_reading(streams: Streams, listener: Listener) -> None:
    def refuse(record: logging.LogRecord) -> bool:
        if record.getMessage() == "bad":
            raise SystemExit("a filter of the user")
        return True

    listener.addFilter(refuse)
    os.write(streams.stderr_fd, b"bad\n" * 3 + b"good\n")
    assert streams.pump.settle(WATCHDOG_S)
    assert listener.said == [(logging.INFO, "good")]
    assert streams.pump.records_lost == 3


def test_the_tail_is_bounded(streams: Streams) -> None:
    os.write(streams.stderr_fd, b"".join(b"line %d\n" % n for n in range(100)))
    assert streams.pump.settle(WATCHDOG_S)
    assert streams.pump.tail() == tuple(f"line {n}" for n in range(100 - TAIL_LINES, 100))


def test_stop_ends_it_although_a_grandchild_goes_on_writing(streams: Streams) -> None:
    program = f"import os\nwhile True: os.write({streams.stderr_fd}, b'x\\n' * 1000)"
    with subprocess.Popen([sys.executable, "-c", program], pass_fds=[streams.stderr_fd]) as writer:
        try:
            assert streams.pump.stop(WATCHDOG_S)
        finally:
            writer.kill()
    assert streams.pump.settle(WATCHDOG_S)


def test_no_thread_and_no_descriptor_is_left() -> None:
    before = os.listdir("/proc/self/fd")
    for end_first in (True, False):
        streams = Streams()
        streams.pump.drain(streams.stdout)
        if end_first:
            streams.end()
        streams.close()
        assert not streams.pump._thread.is_alive()
    assert os.listdir("/proc/self/fd") == before


def test_one_logger_level_that_hides_everything_still_drains(streams: Streams, listener: Listener) -> None:
    logging.getLogger("fastplug.plugin.pumped").setLevel(logging.CRITICAL)
    os.write(streams.stderr_fd, b"hidden\n")
    assert streams.pump.settle(WATCHDOG_S)
    assert listener.said == []
    assert streams.pump.tail() == ("hidden",)
