"""Ctrl-C, and a fork of the host, in the middle of a stream."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from tests.plugins.flows_api import Flows

pytestmark = pytest.mark.transports("shm", "socket", "inproc")

SOON_S = 60.0


def interrupt_main() -> None:
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGINT)


def test_ctrl_c_while_an_item_is_awaited(flows: Flows) -> None:
    """The handler waits for an item of the caller, the caller's generator for Ctrl-C: the stream ends on both sides."""
    closed: list[bool] = []
    sender: list[threading.Thread] = []

    def source() -> Iterator[int]:
        try:
            yield 1
            sender.append(threading.Thread(target=interrupt_main))
            sender[0].start()
            while not threading.Event().wait(SOON_S):
                pass
        finally:
            closed.append(True)

    stream: Any = flows.doubled(source())
    with pytest.raises(KeyboardInterrupt):
        list(stream)
    sender[0].join(SOON_S)
    assert closed == [True]
    with pytest.raises(StopIteration):
        next(stream)
    assert flows.double(3) == 6


def test_ctrl_c_between_items_closes_the_generator(flows: Flows) -> None:
    def consume() -> None:
        with flows.count(10**9) as stream:  # type: ignore[attr-defined]
            for n in stream:
                if n == 100:
                    interrupt_main()

    with pytest.raises(KeyboardInterrupt):
        consume()
    while (log := flows.log()) == []:
        pass
    assert log == ["closed"]


@pytest.mark.transports("shm", "socket")
def test_a_fork_in_the_middle_of_a_stream(flows: Flows) -> None:
    """The child gets no further item and does the parent's stream no harm; the parent goes on."""
    stream: Any = flows.count(1000)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads, which is what this is about
        pid = os.fork()
    if pid == 0:
        told = b"nothing"
        try:
            for _ in range(100):  # items that had come already are the child's, too
                next(stream)
        except BaseException as error:  # noqa: BLE001
            told = type(error).__name__.encode()
        try:
            stream.close()
            flows.double(1)
        except BaseException as error:  # noqa: BLE001
            told += b" " + type(error).__name__.encode()
        os.write(writer, told)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        assert answer.read() == b"Closed Closed"
    assert os.waitpid(pid, 0)[1] == 0
    assert list(stream) == list(range(3, 1000))
    assert flows.double(2) == 4
