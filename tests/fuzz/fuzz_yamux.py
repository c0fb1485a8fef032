# Invariant: whatever a yamux peer sends, however it is split, and whatever this side does meanwhile, nothing is raised but
# LocalProtocolError for this side's own faults; what is to be sent is whole frames; a stream is never given more than its window, nothing
# after its end, and what waits to be sent is bounded; a violation ends the session with GO_AWAY (protocol error) as the last frame, told
# once. Between two sessions every byte arrives in order, once, and nothing is left over.
from __future__ import annotations

import contextlib
import random

from tests.twin.yamux_link import Link

from fastplug.errors import LocalProtocolError
from fastplug.yamux.events import DataReceived, EndReceived, Event, ResetReceived, SessionConfig, SessionEnded, StreamClosed, StreamOpened
from fastplug.yamux.frames import HEADER, HEADER_BYTES, LENGTH_MAX, FrameType, GoAwayCode, header
from fastplug.yamux.session import ANSWERS_MAX, Session

LENGTHS = (0, 0, 0, 1, 5, 11, 12, 13, 100, 5000, 262_144, 262_145, LENGTH_MAX)
# A payload that is said to be longer is announced, but not sent: the frame stays unfinished.
PAYLOAD_BYTES_MAX = 300_000
WRITE_LIMIT_BYTES = 50_000


def hostile(rng: random.Random) -> bytes:
    """Frames, most of them almost right."""
    sent = bytearray()
    for _ in range(rng.choice((1, 5, 30))):
        kind = rng.choice((0, 0, 0, 1, 1, 1, 2, 3, 4, 255)) if rng.random() < 0.1 else rng.choice((0, 1, 1, 2))
        flags = rng.choice((0, 0, 1, 1, 2, 4, 8, 5, 3, 9, rng.randrange(65536)))
        stream = rng.choice((0, 1, 1, 2, 2, 3, 4, 5, rng.randrange(2**32)))
        length = rng.choice(LENGTHS)
        sent += header(kind, flags, stream, length)
        if kind == FrameType.DATA:
            sent += bytes(min(length, PAYLOAD_BYTES_MAX))
        if rng.random() < 0.02:
            sent[rng.randrange(len(sent))] = rng.randrange(256)
    return bytes(sent)


def frames(sent: bytes) -> list[tuple[int, int, int, int]]:
    """(type, flags, stream, length) of each frame; they are whole."""
    found, at = [], 0
    while at < len(sent):
        version, kind, flags, stream, length = HEADER.unpack_from(sent, at)
        assert version == 0
        found.append((kind, flags, stream, length))
        at += HEADER_BYTES + (length if kind == FrameType.DATA else 0)
    assert at == len(sent)
    return found


def merged(events: list[Event]) -> list[Event]:
    """Pieces of the same payload as one: how they are cut is not part of the meaning."""
    found: list[Event] = []
    for event in events:
        last = found[-1] if found else None
        if isinstance(event, DataReceived) and isinstance(last, DataReceived) and last.stream_id == event.stream_id:
            found[-1] = DataReceived(event.stream_id, bytes(last.data) + bytes(event.data))
        else:
            found.append(DataReceived(event.stream_id, bytes(event.data)) if isinstance(event, DataReceived) else event)
    return found


def check_splits(rng: random.Random) -> None:
    """Events and answers do not depend on how the bytes are cut."""
    sent = hostile(rng)
    client = rng.random() < 0.5
    whole, cut = Session(client=client, now_s=0.0), Session(client=client, now_s=0.0)
    expected = whole.receive(sent, 0.0)
    got: list[Event] = []
    at = 0
    while at < len(sent):
        size = rng.choice((1, 3, 12, 13, 1000, 10**6))
        got += cut.receive(sent[at : at + size], 0.0)
        at += size
    assert merged(got) == merged(expected)
    assert b"".join(cut.outgoing(10**6)) == b"".join(whole.outgoing(10**6))


class Watched:
    """A session with the invariants beside it."""

    def __init__(self, rng: random.Random) -> None:
        self.config = SessionConfig(accept_backlog=rng.choice((1, 4, 256)), write_limit_bytes=WRITE_LIMIT_BYTES)
        self.session = Session(client=rng.random() < 0.5, now_s=0.0, config=self.config)
        self.unread: dict[int, int] = {}
        self.over: set[int] = set()
        self.end: SessionEnded | None = None
        self.sent = bytearray()

    def take(self, events: list[Event]) -> None:
        for event in events:
            assert self.end is None
            match event:
                case StreamOpened(stream):
                    self.over.discard(stream)
                    self.unread[stream] = 0
                case DataReceived(stream, data):
                    assert stream not in self.over
                    self.unread[stream] = self.unread.get(stream, 0) + len(data)
                    assert self.unread[stream] <= self.config.window_bytes
                case EndReceived(stream) | ResetReceived(stream) | StreamClosed(stream):
                    self.over.add(stream)
                case SessionEnded():
                    self.end = event
        assert (self.session.ended is None) == (self.end is None)
        assert self.session.outgoing_bytes <= WRITE_LIMIT_BYTES + HEADER_BYTES * (ANSWERS_MAX + 200)

    def flush(self, rng: random.Random) -> None:
        pieces = b"".join(self.session.outgoing(rng.randint(1, 100)))
        count = rng.randint(0, len(pieces))
        self.session.sent(count)
        self.sent += pieces[:count]


def act(rng: random.Random, watched: Watched, now_s: float) -> None:
    """One thing that this side may do, right or wrong."""
    session, stream = watched.session, rng.choice((0, 1, 2, 3, 4, 5, rng.randrange(2**32)))
    with contextlib.suppress(LocalProtocolError):
        match rng.randrange(8):
            case 0:
                watched.over.discard(session.open(now_s))
            case 1:
                session.accept(stream)
            case 2:
                session.send(stream, bytes(rng.choice((1, 1000, 100_000))))
            case 3:
                count = rng.choice((1, watched.unread.get(stream, 0)))
                session.consumed(stream, count)
                watched.unread[stream] = watched.unread.get(stream, 0) - count
            case 4:
                session.close(stream, now_s)
            case 5:
                session.reset(stream)
                watched.over.add(stream)
            case 6:
                session.ping(now_s)
            case 7:
                session.go_away()


def check_hostile(rng: random.Random) -> None:
    """A peer that does anything, and a user of this side that does anything."""
    watched, now_s = Watched(rng), 0.0
    for _ in range(rng.choice((3, 10, 30))):
        sent = hostile(rng)
        at = 0
        while at < len(sent):
            size = rng.choice((1, 12, 1000, 10**6))
            watched.take(watched.session.receive(sent[at : at + size], now_s))
            at += size
            act(rng, watched, now_s)
            watched.flush(rng)
        now_s += rng.choice((0.0, 0.1, 5.0, 40.0))
        left_s = watched.session.next_timeout_s(now_s)
        assert left_s is None or left_s >= 0
        watched.take(watched.session.poll(now_s))
    watched.take(watched.session.receive_end())
    watched.sent += b"".join(watched.session.outgoing(10**6))
    told = frames(bytes(watched.sent))
    goodbye = (FrameType.GO_AWAY, 0, 0, GoAwayCode.PROTOCOL_ERROR)
    assert watched.end is not None
    assert (told[-1:] == [goodbye]) is watched.end.violation
    assert told.count(goodbye) <= 1


def check_pair(rng: random.Random) -> None:
    """Two honest sides."""
    link = Link(rng)
    for _ in range(rng.choice((10, 100, 400))):
        link.step()
    link.settle()


CHECKS = (check_splits, check_hostile, check_pair)
