"""Two yamux sessions joined by a link that delivers what it likes of what is on the way, and a model of what has to come out.

The model knows no frames and no windows: each direction of each stream is a byte string, of which the other side has seen a beginning, and
which has an end or was cut off by a reset.
"""

from __future__ import annotations

import dataclasses
import random

from fastplug.yamux.events import (
    DataReceived,
    EndReceived,
    Event,
    PingAnswered,
    ResetReceived,
    SendWindowOpened,
    SessionConfig,
    StreamAccepted,
    StreamClosed,
    StreamOpened,
)
from fastplug.yamux.session import Session

__all__ = ["Link"]


@dataclasses.dataclass
class Direction:
    """What one side sent on a stream, and what the other has seen of it."""

    sent: bytearray = dataclasses.field(default_factory=bytearray)
    seen: bytearray = dataclasses.field(default_factory=bytearray)
    read: int = 0
    ended: bool = False  # by its sender
    end_seen: bool = False
    cut: bool = False  # by a reset of either side


class Side:
    """One session with what its user remembers."""

    def __init__(self, name: str, *, client: bool, config: SessionConfig) -> None:
        self.name = name
        self.session = Session(client=client, now_s=0.0, config=config)
        self.wire = bytearray()  # on the way to the other side
        self.usable: set[int] = set()  # streams that this user may send on
        self.waiting: list[int] = []
        self.pings: set[int] = set()


class Link:
    """Does one random thing after another. Raises AssertionError when the model is broken."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        window = rng.choice((256 * 1024, 300_000, 1 << 20))
        config = SessionConfig(
            accept_backlog=rng.choice((1, 3, 256)), window_bytes=window, write_limit_bytes=rng.choice((100, 5000, 1 << 20))
        )
        self.window = window
        self.sides = (Side("client", client=True, config=config), Side("server", client=False, config=config))
        self.directions: dict[tuple[int, int], Direction] = {}  # (stream, sending side)
        self.now_s = 0.0

    def step(self) -> None:
        """One thing on one side."""
        index = self.rng.randrange(2)
        act = self.rng.choice((self.open, self.accept, self.send, self.send, self.send, self.read, self.deliver, self.deliver, self.rare))
        act(index)

    def rare(self, index: int) -> None:
        """What happens seldom, or nothing would ever get far."""
        self.rng.choice((self.close, self.close, self.reset, self.ping, self.wait))(index)

    def open(self, index: int) -> None:
        side = self.sides[index]
        if side.session.can_open:
            stream = side.session.open(self.now_s)
            assert (stream, 0) not in self.directions
            self.directions[stream, 0], self.directions[stream, 1] = Direction(), Direction()
            side.usable.add(stream)

    def accept(self, index: int) -> None:
        side = self.sides[index]
        if side.waiting:
            stream = side.waiting.pop(self.rng.randrange(len(side.waiting)))
            side.session.accept(stream)
            if not self.directions[stream, 0].cut:
                side.usable.add(stream)

    def send(self, index: int) -> None:
        side = self.sides[index]
        if not side.usable:
            return
        stream = self.rng.choice(sorted(side.usable))
        direction = self.directions[stream, index]
        size = self.rng.choice((1, 10, 1000, 20_000, 400_000))
        start = len(direction.sent)
        payload = bytes((start + at) * 31 + stream & 255 for at in range(min(size, 64))) + bytes(max(0, size - 64))
        before = side.session.sendable_bytes(stream)
        taken = side.session.send(stream, payload)
        assert taken == min(before, size)
        direction.sent += payload[:taken]

    def read(self, index: int) -> None:
        """The user of a side is done with some of what it was given."""
        waiting = [(stream, one) for (stream, sender), one in self.directions.items() if sender != index and one.read < len(one.seen)]
        if waiting:
            stream, one = self.rng.choice(waiting)
            count = self.rng.randint(1, len(one.seen) - one.read)
            one.read += count
            self.sides[index].session.consumed(stream, count)

    def close(self, index: int) -> None:
        side = self.sides[index]
        if side.usable:
            stream = self.rng.choice(sorted(side.usable))
            side.session.close(stream, self.now_s)
            side.usable.discard(stream)
            self.directions[stream, index].ended = True

    def reset(self, index: int) -> None:
        side = self.sides[index]
        if side.usable:
            stream = self.rng.choice(sorted(side.usable))
            side.session.reset(stream)
            self.cut(stream)

    def cut(self, stream: int) -> None:
        for sender in (0, 1):
            self.directions[stream, sender].cut = True
            self.sides[sender].usable.discard(stream)
            if stream in self.sides[sender].waiting:
                self.sides[sender].waiting.remove(stream)

    def ping(self, index: int) -> None:
        side = self.sides[index]
        side.pings.add(side.session.ping(self.now_s))

    def wait(self, index: int) -> None:
        """A little: nothing may time out as long as both sides live."""
        self.now_s += self.rng.random() / 1000
        for side in self.sides:
            assert side.session.poll(self.now_s) == []

    def deliver(self, index: int) -> None:
        """Moves some bytes from a side to the wire, and some from the wire to the other side."""
        side, other = self.sides[index], self.sides[1 - index]
        pieces = b"".join(side.session.outgoing(self.rng.randint(1, 8)))
        count = self.rng.randint(0, len(pieces))
        side.wire += pieces[:count]
        side.session.sent(count)
        size = self.rng.choice((1, 5, 12, 100, 10_000, len(side.wire)))
        data = bytes(side.wire[:size])
        del side.wire[:size]
        for event in other.session.receive(data, self.now_s):
            self.take(1 - index, event)

    def take(self, index: int, event: Event) -> None:
        side = self.sides[index]
        match event:
            case StreamOpened(stream):
                side.waiting.append(stream)
            case DataReceived(stream, data):
                one = self.directions[stream, 1 - index]
                assert not one.end_seen
                at = len(one.seen)
                assert one.sent[at : at + len(data)] == data
                one.seen += data
                assert len(one.seen) - one.read <= self.window
            case EndReceived(stream):
                one = self.directions[stream, 1 - index]
                assert one.ended
                assert one.seen == one.sent
                one.end_seen = True
            case ResetReceived(stream):
                self.cut(stream)
            case PingAnswered(ping_id, _):
                side.pings.remove(ping_id)
            case StreamAccepted() | SendWindowOpened() | StreamClosed(timed_out=False):
                pass
            case _:
                raise AssertionError(f"{side.name} was told {event}")

    def settle(self) -> None:
        """Delivers and reads everything: all that was sent and not cut off has arrived, and nothing is left over."""
        for side in self.sides:
            while side.waiting:
                self.accept(self.sides.index(side))
        while self.move():
            pass
        for (stream, sender), one in self.directions.items():
            assert one.cut or one.seen == one.sent, f"stream {stream} of {self.sides[sender].name}"
            assert one.cut or one.end_seen == one.ended
        over = {
            stream
            for stream, _ in self.directions
            if self.directions[stream, 0].cut or (self.directions[stream, 0].ended and self.directions[stream, 1].ended)
        }
        for side in self.sides:
            assert not side.pings
            assert side.session.ended is None
            assert side.session.stream_count == len({stream for stream, _ in self.directions} - over)

    def move(self) -> bool:
        moved = False
        for index, side in enumerate(self.sides):
            pieces = b"".join(side.session.outgoing(10**6))
            side.session.sent(len(pieces))
            side.wire += pieces
            moved = moved or bool(side.wire)
            data = bytes(side.wire)
            side.wire.clear()
            for event in self.sides[1 - index].session.receive(data, self.now_s):
                self.take(1 - index, event)
            for stream in list(self.sides[1 - index].waiting):
                self.sides[1 - index].waiting.remove(stream)
                self.sides[1 - index].session.accept(stream)
        for (stream, sender), one in self.directions.items():
            count = len(one.seen) - one.read
            one.read += count
            self.sides[1 - sender].session.consumed(stream, count)
        return moved
