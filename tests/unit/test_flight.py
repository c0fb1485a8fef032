"""The places of a map's calls, when answers are taken in an order of their own."""

from __future__ import annotations

import dataclasses
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pytest
from tests.unit.test_call_frames import REPLY, REQUEST, frame
from tests.unit.two_ends import SOON_S, two_ends

from fastplug._wire import MethodCodec, unpack_header
from fastplug.deadlines import deadline
from fastplug.interfaces import interface, interface_of
from fastplug.protocols._call import Caller
from fastplug.protocols._remote import Mapped, Remote

BUILT: list[Callable[[int], object]] = []


@dataclasses.dataclass
class Slow:
    """Its constructor lets others take results meanwhile."""

    n: int

    def __post_init__(self) -> None:
        for built in BUILT:
            built(self.n)


@interface("test.flight/1")
class Slows(Protocol):
    def slow(self, n: int) -> Slow: ...


@pytest.fixture
def built() -> Iterator[list[Callable[[int], object]]]:
    yield BUILT
    BUILT.clear()


def answer(plugin: Any, number: int, n: int) -> None:
    plugin.lane.send_frame(frame(REPLY, number, b"\x12\x01\0\0\0" + struct.pack("<Bq", 3, n)))


def test_a_result_is_taken_while_another_one_is_decoded(built: list[Callable[[int], object]]) -> None:
    """By a thread that reads for others: the place of the one that it decodes goes to another one meanwhile."""
    host, plugin = two_ends()
    (method,) = interface_of(Slows).methods
    caller = Caller(host.lane, host.port, ConnectionError)
    remote = Remote(caller, MethodCodec("test.flight/1", method), 0, 0, None, method.signature)
    decoding, taken = threading.Event(), threading.Event()
    numbers: list[int] = []

    def serve() -> None:
        while len(numbers) < 3:
            header = unpack_header(plugin.lane.receive_frame())
            if header.kind == REQUEST:
                numbers.append(header.call)
        answer(plugin, numbers[2], 2)

    def hold(n: int) -> None:
        if n == 0:
            decoding.set()
            assert taken.wait(SOON_S)

    built.append(hold)
    served = threading.Thread(target=serve)
    served.start()
    with deadline(after_s=SOON_S):
        results = Mapped(remote, (range(3),), 3, False, False)
        assert next(results).n == 2
        served.join(SOON_S)
        for n in (1, 0):
            answer(plugin, numbers[n], n)
        reader = threading.Thread(target=caller.drain)
        reader.start()
        assert decoding.wait(SOON_S)
        assert next(results).n == 1
        taken.set()
        assert [result.n for result in results] == [0]
    reader.join(SOON_S)
    assert not reader.is_alive()
