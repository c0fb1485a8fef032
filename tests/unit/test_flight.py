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


def answer_backwards(plugin: Any, calls: int) -> None:
    numbers = [unpack_header(got).call for got in (plugin.lane.receive_frame() for _ in range(calls)) if unpack_header(got).kind == REQUEST]
    for n in reversed(range(calls)):
        plugin.lane.send_frame(frame(REPLY, numbers[n], b"\x12\x01\0\0\0" + struct.pack("<Bq", 3, n)))


def test_a_result_is_taken_while_another_one_is_decoded(built: list[Callable[[int], object]]) -> None:
    host, plugin = two_ends()
    thread = threading.Thread(target=answer_backwards, args=(plugin, 3))
    thread.start()
    (method,) = interface_of(Slows).methods
    remote = Remote(Caller(host.lane, host.port, ConnectionError), MethodCodec("test.flight/1", method), 0, 0, None, method.signature)
    taken: list[int] = []
    with deadline(after_s=SOON_S):
        results = Mapped(remote, (range(3),), 3, False, False)
        built.append(lambda n: n == 0 and taken.append(next(results).n))
        taken += [result.n for result in results]
    assert sorted(taken) == [0, 1, 2]
    thread.join(SOON_S)
    assert not thread.is_alive()
