"""Credit of streams: who asks for it soon, how many frames say it, and that nobody waits long without having said it."""

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
from fastplug.protocols._remote import Remote
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


TEXTS, TOTAL = (frame(REQUEST, 5, b"\x01\0" + payload, method=n) for n, payload in enumerate((struct.pack("<Bq", 3, 0), b"\x15")))
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


@pytest.mark.parametrize(("flags", "given"), [(0, [GRANT_ITEMS]), (PROMPT, [1] * 20)])
def test_a_plugin_gives_credit_soon_to_who_asks_for_it(flags: int, given: list[int]) -> None:
    found = answered(TOTAL, *[frame(ITEM, 5, INT, flags=flags)] * 20, frame(END, 5))
    assert credit_given(found) == given
    assert unpack_header(found[-1]).kind == REPLY


class Thrifty(Hostile):
    """A plugin that answers a request with so many items, and ends the stream when credit for all of them has come."""

    def __init__(self, items: int, flags: int) -> None:
        self.items, self.flags = items, flags
        self.given: list[int] = []
        super().__init__(lambda call: [frame(ITEM, call, INT, flags=self.flags)] * self.items)

    def serve(self) -> None:
        try:
            while (got := self.plugin.lane.receive_frame()) is not None:
                head = unpack_header(got)
                if head.kind == REQUEST:
                    for one in self.answer(head.call):
                        self.plugin.lane.send_frame(one)
                self.given += credit_given([got])
                if sum(self.given) == self.items:
                    self.plugin.lane.send_frame(frame(END, head.call))
        except EOFError:
            return

    def texts(self) -> Remote:
        return Remote(self.caller, MethodCodec("test.credit/1", METHODS[1]), 0, 1, None, METHODS[1].signature)


@pytest.mark.parametrize("flags", [0, PROMPT])
@pytest.mark.parametrize("items", [1, 5, GRANT_ITEMS, WINDOW_ITEMS])
def test_a_host_gives_the_credit_that_it_owes_before_it_waits(items: int, flags: int) -> None:
    peer = Thrifty(items, flags)
    try:
        with deadline(after_s=SOON_S):
            assert list(peer.method("count")(1)) == [4] * items
        assert sum(peer.given) == items
        assert max(peer.given) <= GRANT_ITEMS + 1
    finally:
        peer.end()
