from __future__ import annotations

import os
import struct
import threading
import time
from typing import Any

import pytest
from tests.twin import lane_twin as twin
from tests.unit.two_ends import NOW, RING_BYTES, SOON_S, attached, lanes

from fastplug._wire import pack_header
from fastplug.errors import DeadlineExceeded, LocalProtocolError, RemoteProtocolError
from fastplug.shm import _lane, _rings
from fastplug.shm._lane import Lane
from fastplug.shm._segment import Segment
from fastplug.shm.watcher import wake_until_awake

INLINE_LIMIT = RING_BYTES // _lane.INLINE_FRACTION
REQUEST, REPLY = 1, 2


def frame(payload: bytes, kind: int = REQUEST, call: int = 0, blocks: int = 0) -> bytes:
    return pack_header(len(payload), kind, call=call, blocks=blocks) + payload


def fill(lane: Lane) -> None:
    """Sends until the ring is full, and raises what says so."""
    while True:
        lane.send_frame(frame(bytes(INLINE_LIMIT)), NOW)


def soon_ns() -> int:
    return time.monotonic_ns() + int(SOON_S * 1e9)


# -- what goes in comes out


@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 95, 96, 97, INLINE_LIMIT - 1, INLINE_LIMIT])
def test_sizes(size: int) -> None:
    one, other = lanes()
    sent = frame(os.urandom(size), call=7)
    one.send_frame(sent)
    assert other.receive_frame(NOW) == sent
    assert other.receive_frame(NOW) is None
    taken = twin.rounded(size)
    assert one.positions == (taken, 0)
    assert other.positions == (0, taken)


def test_both_directions_are_apart() -> None:
    one, other = lanes()
    one.send_frame(frame(b"ping"))
    other.send_frame(frame(b"pong", REPLY))
    assert one.receive_frame(NOW) == frame(b"pong", REPLY)
    assert other.receive_frame(NOW) == frame(b"ping")


def test_a_payload_over_the_limit_is_not_sent() -> None:
    one, other = lanes()
    assert one.inline_limit == INLINE_LIMIT
    with pytest.raises(LocalProtocolError, match="spilled"):
        one.send_frame(frame(bytes(INLINE_LIMIT + 1)))
    assert other.receive_frame(NOW) is None


def test_a_header_without_its_payload_is_not_sent() -> None:
    one, _ = lanes()
    with pytest.raises(ValueError, match="32 bytes"):
        one.send_frame(b"short")


def test_many_times_around() -> None:
    one, other = lanes()
    for number in range(3000):
        sent = frame(bytes([number % 251]) * (number * 37 % (INLINE_LIMIT + 1)), call=number)
        one.send_frame(sent)
        assert other.receive_frame(NOW) == sent
    assert one.positions[0] > 20 * RING_BYTES


@pytest.mark.parametrize("together", [3, 7, 16, 23])
@pytest.mark.parametrize("size", [0, 30, 90, 300, INLINE_LIMIT])
def test_many_together_times_around(together: int, size: int) -> None:
    """Frames that are published together come to lie at the end of the ring and at its start, with padding between and without."""
    one, other = lanes()
    number = 0
    while one.positions[0] < 3 * RING_BYTES:
        sent = [
            frame(bytes([n % 251]) * size, call=n) for n in range(number, number + min(together, RING_BYTES // (3 * twin.rounded(size))))
        ]
        number += len(sent)
        one.lazy = True
        for each in sent[:-1]:
            one.send_frame(each, NOW)
        one.lazy = False
        one.send_frame(sent[-1], NOW)
        assert [other.receive_frame(NOW) for _ in sent] == sent
        assert other.receive_frame(NOW) is None


def test_full_ring_and_deadline() -> None:
    one, other = lanes()
    sent = []
    payload = frame(bytes(INLINE_LIMIT))

    def fill_slowly() -> None:
        while True:
            one.send_frame(payload, time.monotonic_ns() + 1_000_000)
            sent.append(payload)

    with pytest.raises(DeadlineExceeded, match="nothing was sent"):
        fill_slowly()
    assert len(sent) == RING_BYTES // twin.rounded(INLINE_LIMIT)
    assert [other.receive_frame(NOW) for _ in sent] == sent
    assert other.receive_frame(NOW) is None
    one.send_frame(payload, soon_ns())
    assert other.receive_frame(NOW) == payload


def test_a_deadline_that_is_over_does_not_wait_even_when_there_is_nothing() -> None:
    one, other = lanes()
    before = other.placement.spins, other.placement.sleeps
    assert other.receive_frame(NOW) is None
    assert (other.placement.spins, other.placement.sleeps) == before
    one.send_frame(frame(b"x"))
    assert other.receive_frame(NOW) == frame(b"x"), "what is there is delivered, whatever the time"


# -- waiting


def test_two_threads_in_lockstep() -> None:
    one, other = lanes()
    rounds = 2000

    def echo() -> None:
        for _ in range(rounds):
            got = other.receive_frame(soon_ns())
            assert got is not None
            other.send_frame(got, soon_ns())

    thread = threading.Thread(target=echo)
    thread.start()
    for number in range(rounds):
        sent = frame(number.to_bytes(8, "little") * (number % 50), call=number)
        one.send_frame(sent, soon_ns())
        assert one.receive_frame(soon_ns()) == sent
    thread.join(SOON_S)
    assert not thread.is_alive()


def test_two_threads_as_fast_as_each_can() -> None:
    """The sender waits for space, the receiver for data; all arrives in order."""
    one, other = lanes()
    count = 3000
    got: list[bytes | None] = []
    thread = threading.Thread(target=lambda: got.extend(other.receive_frame(soon_ns()) for _ in range(count)))
    thread.start()
    sent = [frame(bytes([n % 256]) * (n * 131 % INLINE_LIMIT), call=n) for n in range(count)]
    for each in sent:
        one.send_frame(each, soon_ns())
    thread.join(SOON_S)
    assert got == sent


def test_both_rings_full_at_once() -> None:
    """Who waits for space drains what comes: two senders do not wait for each other for ever."""
    one, other = lanes()
    count = 300
    got: dict[Lane, list[bytes | None]] = {one: [], other: []}

    def talk(lane: Lane) -> None:
        for number in range(count):
            lane.send_frame(frame(bytes(INLINE_LIMIT // 2), call=number), soon_ns())
        got[lane].extend(lane.receive_frame(soon_ns()) for _ in range(count))

    threads = [threading.Thread(target=talk, args=(lane,)) for lane in (one, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON_S)
    for lane in (one, other):
        assert got[lane] == [frame(bytes(INLINE_LIMIT // 2), call=number) for number in range(count)]


def test_a_waiter_sleeps_and_is_woken() -> None:
    _lane.set_spin(holding_gil_ns=0, released_ns=0)
    try:
        one, other = lanes(slice_ns=int(SOON_S * 1e9))
        got: list[bytes | None] = []
        for number in range(50):
            thread = threading.Thread(target=lambda: got.append(other.receive_frame()))
            thread.start()
            while not other.wake():  # a sleeper can be woken for nothing; it sleeps on
                time.sleep(0)
            one.send_frame(frame(b"wake", call=number))
            thread.join(SOON_S)
            assert not thread.is_alive()
        assert got == [frame(b"wake", call=number) for number in range(50)]
        assert other.placement.sleeps >= 50
        assert not other.wake()
    finally:
        _lane.set_spin(holding_gil_ns=_lane.SPIN_HOLDING_GIL_NS, released_ns=_lane.SPIN_NS)


def test_what_is_there_comes_before_the_end() -> None:
    one, other = lanes()
    for number in range(3):
        one.send_frame(frame(b"last words", call=number))
    other.peer_gone()
    for number in range(3):
        assert other.receive_frame() == frame(b"last words", call=number)
    with pytest.raises(EOFError):
        other.receive_frame()


@pytest.mark.parametrize("waits_for", ["data", "space"])
def test_the_end_wakes_a_waiter(waits_for: str) -> None:
    one, _other = lanes(slice_ns=int(SOON_S * 1e9))
    ended = threading.Event()

    def wait() -> None:
        try:
            if waits_for == "data":
                one.receive_frame()
            else:
                while True:
                    one.send_frame(frame(bytes(INLINE_LIMIT)))
        except EOFError:
            ended.set()

    thread = threading.Thread(target=wait)
    thread.start()
    while not one.wake():
        time.sleep(0)
    one.peer_gone()
    wake_until_awake(one)
    thread.join(SOON_S)
    assert ended.is_set()


# -- a peer that breaks the rules


class Hostile:
    """A peer whose segment the test writes itself."""

    def __init__(self, ring_bytes: int = RING_BYTES) -> None:
        self.segment = _rings.create_segment(ring_bytes)
        self.writer = twin.Writer(self.segment.write, ring_bytes)
        self.mine = _rings.create_segment()
        self.lane = Lane(self.mine, attached(self.segment))

    def word(self, name: str, value: int) -> None:
        self.segment.write(twin.OFFSETS[name], twin.packed(name, value))

    def refused(self) -> None:
        with pytest.raises(RemoteProtocolError):
            self.lane.receive_frame(NOW)


@pytest.mark.parametrize("tail", [1, 32, 63, RING_BYTES + 64, RING_BYTES * 2, 2**63, 2**64 - 64, 2**64 - 1])
def test_tail_out_of_range(tail: int) -> None:
    hostile = Hostile()
    hostile.word("tail", tail)
    hostile.refused()


def test_tail_that_goes_back() -> None:
    hostile = Hostile()
    hostile.writer.send(frame(bytes(100)))
    assert hostile.lane.receive_frame(NOW) is not None
    hostile.word("tail", 64)
    hostile.refused()


@pytest.mark.parametrize("size", [33, 64, 1000, RING_BYTES - 32, RING_BYTES, 2**31, 2**32 - 32, 2**32 - 1])
def test_size_larger_than_what_is_published(size: int) -> None:
    hostile = Hostile()
    hostile.writer.send(struct.pack("<I", size) + frame(b"")[4:])
    hostile.word("tail", 64)
    hostile.refused()


def test_a_frame_that_reaches_over_the_end_of_the_ring() -> None:
    hostile = Hostile()
    while hostile.writer.tail < RING_BYTES - 64:
        hostile.writer.send(frame(b""))
        assert hostile.lane.receive_frame(NOW) == frame(b"")
    hostile.segment.write(twin.RING_OFFSET + RING_BYTES - 64, frame(bytes(32)))
    hostile.segment.write(twin.RING_OFFSET + RING_BYTES - 64, struct.pack("<I", 100))
    hostile.word("tail", RING_BYTES + 128)
    hostile.refused()


@pytest.mark.parametrize("at_start", [True, False])
def test_padding_only_fills_the_end_of_the_ring(at_start: bool) -> None:
    hostile = Hostile()
    if not at_start:
        hostile.writer.send(frame(b""))
        assert hostile.lane.receive_frame(NOW) is not None
    hostile.writer.send(frame(b"", kind=REQUEST)[:4] + struct.pack("<H", twin.PAD) + frame(b"")[6:])
    hostile.refused()


def test_padding_for_ever_is_refused() -> None:
    hostile = Hostile()
    hostile.segment.write(twin.RING_OFFSET, twin.HEADER.pack(RING_BYTES - 32, twin.PAD, 0, 0, 0, 0, 0, 0))
    hostile.word("tail", RING_BYTES)
    hostile.refused()


@pytest.mark.parametrize(
    ("kind", "flags", "remaining_ns"), [(0, 0, 0), (15, 0, 0), (99, 0, 0), (0xFFFE, 0, 0), (1, 8, 0), (1, 0x8000, 0), (1, 0, -1)]
)
def test_header_fields(kind: int, flags: int, remaining_ns: int) -> None:
    hostile = Hostile()
    hostile.writer.send(twin.HEADER.pack(0, kind, flags, 1, 0, 0, 0, remaining_ns))
    hostile.refused()


@pytest.mark.parametrize("head", [1 << 30, 2**63, 2**64 - 64])
def test_head_ahead_of_what_was_written(head: int) -> None:
    hostile = Hostile()
    hostile.word("head", head)
    with pytest.raises(RemoteProtocolError, match="head"):
        fill(hostile.lane)


def test_any_noise_in_the_segment_is_refused_or_read() -> None:
    """Bytes drawn at random over header and ring: a frame, nothing, or RemoteProtocolError."""
    import random

    rng = random.Random(5)
    for _ in range(300):
        hostile = Hostile()
        for _ in range(rng.randrange(1, 6)):
            hostile.writer.send(frame(rng.randbytes(rng.randrange(200))))
        for _ in range(rng.randrange(1, 4)):
            at = rng.choice(
                [twin.OFFSETS["tail"], twin.OFFSETS["tail"] + 1, twin.RING_OFFSET + rng.randrange(256), rng.randrange(128, 768)]
            )
            hostile.segment.write(at, bytes([rng.randrange(256)]))
        try:
            while hostile.lane.receive_frame(NOW) is not None:
                pass
        except RemoteProtocolError:
            pass


@pytest.mark.parametrize(
    ("at", "data"),
    [
        (0, b"FPLANE02"),
        (8, struct.pack("<I", 2)),
        (12, struct.pack("<I", 0)),
        (12, struct.pack("<I", 1)),
        (12, struct.pack("<I", RING_BYTES * 2)),
        (12, struct.pack("<I", RING_BYTES - 64)),
        (12, struct.pack("<I", 1 << 31)),
    ],
)
def test_a_segment_that_is_no_lane(at: int, data: bytes) -> None:
    mine, theirs = _rings.create_segment(RING_BYTES), _rings.create_segment(RING_BYTES)
    theirs.write(at, data)
    with pytest.raises(RemoteProtocolError):
        Lane(mine, attached(theirs))


def test_a_segment_that_is_too_small_for_a_ring() -> None:
    with pytest.raises(RemoteProtocolError, match="4096 bytes"):
        Lane(_rings.create_segment(RING_BYTES), attached(Segment.create(4096)))


def test_a_lane_needs_a_segment_of_its_own() -> None:
    mine, theirs = _rings.create_segment(RING_BYTES), _rings.create_segment(RING_BYTES)
    with pytest.raises(LocalProtocolError):
        Lane(attached(mine), attached(theirs))


@pytest.mark.parametrize("ring_bytes", [0, 4096, RING_BYTES + 64, 100_000, 1 << 40])
def test_sizes_of_rings(ring_bytes: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        _rings.create_segment(ring_bytes)


# -- the twin


def test_what_the_lane_writes_the_twin_reads() -> None:
    mine, theirs = _rings.create_segment(RING_BYTES), _rings.create_segment(RING_BYTES)
    lane = Lane(mine, attached(theirs))
    head = 0
    for number in range(600):
        sent = frame(bytes([number % 256]) * (number * 101 % (INLINE_LIMIT + 1)), call=number)
        lane.send_frame(sent, NOW)
        assert mine.read(0, 8) == twin.MAGIC
        found = list(twin.frames(mine.read, head))
        assert [each for _, each in found] == [sent]
        head = found[0][0]
        assert twin.word(mine.read, "tail") == head == lane.positions[0]
        theirs.write(twin.OFFSETS["head"], twin.packed("head", head))


def test_what_the_twin_writes_the_lane_reads() -> None:
    hostile = Hostile()
    hostile.writer.begin()
    lane = Lane(hostile.mine, attached(hostile.segment))
    told = 0
    for number in range(600):
        sent = frame(bytes([number % 256]) * (number * 103 % (INLINE_LIMIT + 1)), call=number, blocks=number % 2)
        hostile.writer.send(sent)
        assert lane.receive_frame(NOW) == sent
        head = twin.word(hostile.mine.read, "head")
        assert told <= head <= lane.positions[1]
        assert head == lane.positions[1] or number % 2 == 0, "a frame that names blocks is told at once"
        told = head
    assert lane.positions[1] == hostile.writer.tail


def test_flags_are_down_when_nobody_waits() -> None:
    hostile = Hostile()
    assert hostile.lane.receive_frame(time.monotonic_ns() + 1_000_000) is None
    for name in ("waiting_data", "waiting_space"):
        assert twin.word(hostile.mine.read, name) == 0


def test_the_frame_of_a_failed_send_is_not_there() -> None:
    one, other = lanes()
    with pytest.raises(DeadlineExceeded):
        fill(one)
    before = one.positions
    with pytest.raises(DeadlineExceeded):
        one.send_frame(frame(b"x" * INLINE_LIMIT), NOW)
    assert one.positions == before
    seen: list[Any] = []
    while (got := other.receive_frame(NOW)) is not None:
        seen.append(got)
    assert frame(b"x" * INLINE_LIMIT) not in seen
