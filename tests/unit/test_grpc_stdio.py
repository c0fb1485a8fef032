"""The plugin's feed of what is printed: who gets it, what is kept, who waits."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from fastplug.process.descriptor import DescriptorPump
from fastplug.protocols.grpc import stdio
from fastplug.protocols.grpc.stdio import CHUNK_BYTES_MAX, PENDING_BYTES_MAX, STDERR, STDOUT, StdioFeed, streamed

WATCHDOG_S = 60.0


def test_what_was_printed_before_the_host_came_is_kept() -> None:
    feed = StdioFeed()
    assert feed.write(STDOUT, b"one") == 3
    assert feed.write(STDERR, b"two") == 3
    feed.end()
    assert list(feed.read(object())) == [(STDOUT, b"one"), (STDERR, b"two")]


def test_without_a_reader_a_pipe_is_kept_and_the_rest_is_left() -> None:
    feed = StdioFeed()
    sizes = [feed.write(STDOUT, bytes(PENDING_BYTES_MAX)) for _ in range(3)]
    assert sizes == [CHUNK_BYTES_MAX, CHUNK_BYTES_MAX, 0]


def test_a_slow_reader_makes_the_writer_wait() -> None:
    feed = StdioFeed()
    reading = feed.read("me")
    with ThreadPoolExecutor(1) as pool:
        feed.write(STDOUT, b"x")
        assert next(reading) == (STDOUT, b"x")
        for _ in range(2):
            assert feed.write(STDOUT, bytes(CHUNK_BYTES_MAX)) == CHUNK_BYTES_MAX
        waiting = pool.submit(feed.write, STDOUT, b"after")
        assert next(reading) == (STDOUT, bytes(CHUNK_BYTES_MAX))
        assert waiting.result(WATCHDOG_S) == 5


def test_a_reader_that_does_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stdio, "WRITE_TIMEOUT_S", 0.01)
    feed = StdioFeed()
    reading = feed.read("me")
    feed.write(STDOUT, b"x")
    next(reading)
    for _ in range(2):
        feed.write(STDOUT, bytes(CHUNK_BYTES_MAX))
    assert feed.write(STDOUT, b"to the log") == 0


def test_one_reader_at_a_time_and_nothing_is_lost_between_two() -> None:
    feed = StdioFeed()
    with ThreadPoolExecutor(1) as pool:
        first, began = feed.read(1), threading.Event()
        feed.write(STDOUT, b"a")
        assert next(first) == (STDOUT, b"a")
        rest = pool.submit(lambda: began.set() or list(first))
        assert began.wait(WATCHDOG_S)
        second = feed.read(2)
        feed.write(STDOUT, b"b")
        feed.end()
        got = list(second)
        assert rest.result(WATCHDOG_S) + got == [(STDOUT, b"b")]
    third = feed.read(3)
    feed.leave(3)
    assert list(third) == []


def test_after_the_end_nothing_is_taken() -> None:
    feed = StdioFeed()
    flushed = []
    feed.before_end(lambda: flushed.append(feed.write(STDOUT, b"late")))
    feed.end()
    feed.end()
    assert flushed == [4]
    assert feed.write(STDOUT, b"x") == 0
    assert list(feed.read(object())) == [(STDOUT, b"late")]


def test_python_streams_become_the_feeds(capfd: pytest.CaptureFixture[str]) -> None:
    feed = StdioFeed()
    before = sys.stdout, sys.stderr
    with streamed(feed):
        print("ü", "out")
        print("err", file=sys.stderr)
        print("no newline", end="")
        assert (sys.stdout.fileno(), sys.stderr.fileno()) == (1, 2)
        os.write(1, b"raw\n")
    assert (sys.stdout, sys.stderr) == before
    got = list(feed.read(object()))
    assert b"".join(data for channel, data in got if channel == STDOUT) == "ü out\nno newline".encode()
    assert b"".join(data for channel, data in got if channel == STDERR) == b"err\n"
    assert capfd.readouterr().out == "raw\n"


def test_a_forked_child_prints_to_its_descriptors(capfd: pytest.CaptureFixture[str]) -> None:
    feed = StdioFeed()
    with streamed(feed):
        pid = os.fork()
        if pid == 0:
            print("from the child")
            os._exit(0)
        os.waitpid(pid, 0)
    assert list(feed.read(object())) == []
    assert capfd.readouterr().out == "from the child\n"


def test_what_the_feed_does_not_take_goes_where_it_went() -> None:
    read, write = os.pipe()
    taken: list[bytes] = []

    def give(data: bytes) -> int:
        if len(taken) < 2:
            taken.append(data[:3])
            return len(data[:3])
        return 0

    pump = DescriptorPump(write, give)
    os.write(write, b"abcdefgh")
    pump.close()
    os.close(write)
    assert taken == [b"abc", b"def"]
    assert os.read(read, 100) == b"gh"
    os.close(read)
