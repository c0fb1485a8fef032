"""Credit of streams: who asks for it soon, how many frames say it, and that nobody waits for some that is not due."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Protocol

import pytest
from tests.unit.test_call_frames import CREDIT, END, INT, ITEM, REPLY, REQUEST, Hostile, frame
from tests.unit.two_ends import NOW, SOON_S, two_ends

from fastplug._wire import MethodCodec, pack_header, unpack_header
from fastplug.deadlines import deadline
from fastplug.interfaces import interface, interface_of
from fastplug.protocols._serve import Server

PROMPT = 8
WINDOW_ITEMS, GRANT_ITEMS = 32, 16


@interface("test.credit/1")
class Streams(Protocol):
    def texts(self, size: int) -> Iterator[bytes]: ...
    def total(self, values: Iterator[int]) -> int: ...


class PlainStreams(Streams):
    def texts(self, size: int) -> Iterator[bytes]:
        for _ in range(4):
            yield bytes(size)

    def total(self, values: Iterator[int]) -> int:
        return sum(values)


TOTAL = frame(REQUEST, 5, b"\x01\0\x15", method=1)
METHODS = interface_of(Streams).methods


def answered(*frames: bytes, version: int = 3) -> list[bytes]:
    """What a plugin sends for frames that are all there when it begins."""
    host, plugin = two_ends()
    for one in frames:
        host.lane.send_frame(one)
    plugin.lane.finish()
    implementation = PlainStreams()
    server = Server(plugin.lane, plugin.port, [[(MethodCodec("test.credit/1", one), getattr(implementation, one.name)) for one in METHODS]])
    server.version = version
    server.run()
    found = []
    while (got := host.lane.receive_frame(NOW)) is not None:
        found.append(got)
    return found


def texts_of(size: int) -> bytes:
    return frame(REQUEST, 5, b"\x01\0" + struct.pack("<Bq", 3, size), method=0)


@pytest.mark.parametrize(("size", "version", "flags"), [(40, 3, 0), (3000, 3, PROMPT), (3000, 2, 0)])
def test_who_has_room_for_few_items_asks_for_credit_soon(size: int, version: int, flags: int) -> None:
    found = [unpack_header(one) for one in answered(texts_of(size), version=version)]
    assert [(one.kind, one.flags) for one in found] == [(ITEM, flags)] * 4 + [(END, 0)]


def credit_given(frames: list[bytes]) -> list[int]:
    return [struct.unpack_from("<I", one, len(pack_header(0, CREDIT)))[0] for one in frames if unpack_header(one).kind == CREDIT]


@pytest.mark.parametrize(("flags", "version", "given"), [(0, 3, [GRANT_ITEMS]), (PROMPT, 3, [1] * 20), (0, 2, [1] * 20)])
def test_a_plugin_gives_credit_soon_to_who_asks_for_it(flags: int, version: int, given: list[int]) -> None:
    """And to all before version 3, who cannot ask."""
    found = answered(TOTAL, *[frame(ITEM, 5, INT, flags=flags)] * 20, frame(END, 5), version=version)
    assert credit_given(found) == given
    assert unpack_header(found[-1]).kind == REPLY


class Thrifty(Hostile):
    """A plugin that answers a request with so many items, and ends the stream when so much credit has come."""

    def __init__(self, items: int, flags: int, awaited: int) -> None:
        self.awaited = awaited
        self.given: list[int] = []
        super().__init__(lambda call: [frame(ITEM, call, INT, flags=flags)] * items)

    def serve(self) -> None:
        try:
            while (got := self.plugin.lane.receive_frame()) is not None:
                head = unpack_header(got)
                if head.kind == REQUEST:
                    for one in self.answer(head.call):
                        self.plugin.lane.send_frame(one)
                self.given += credit_given([got])
                if sum(self.given) == self.awaited:
                    self.plugin.lane.send_frame(frame(END, head.call))
        except EOFError:
            return


@pytest.mark.parametrize(
    ("items", "flags", "awaited"),
    [
        (1, 0, 0),
        (1, PROMPT, 1),
        (5, PROMPT, 5),
        (GRANT_ITEMS, 0, GRANT_ITEMS),
        (WINDOW_ITEMS, 0, WINDOW_ITEMS),
        (WINDOW_ITEMS, PROMPT, WINDOW_ITEMS),
    ],
)
def test_a_host_that_has_taken_all_has_given_the_credit_that_is_due(items: int, flags: int, awaited: int) -> None:
    peer = Thrifty(items, flags, awaited)
    try:
        with deadline(after_s=SOON_S):
            assert list(peer.method("count")(1)) == [4] * items
        assert sum(peer.given) == awaited
        assert flags or set(peer.given) <= {GRANT_ITEMS}
    finally:
        peer.end()


def test_one_large_item_among_those_that_were_not_told_is_enough() -> None:
    """Its sender may be at its limit behind a small one, too."""
    peer = Thrifty(0, 0, 2)
    peer.answer = lambda call: [frame(ITEM, call, INT, flags=PROMPT), frame(ITEM, call, INT)]
    try:
        with deadline(after_s=SOON_S):
            assert list(peer.method("count")(1)) == [4, 4]
    finally:
        peer.end()
