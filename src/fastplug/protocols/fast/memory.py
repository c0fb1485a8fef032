"""One connection's shared memory: its lane, its arena and what it borrows, from HELLO to the end. The same on both sides."""

from __future__ import annotations

import contextlib
import logging
import select
import time
from typing import Any

from fastplug.errors import ArenaExhausted, PluginError, RemoteProtocolError
from fastplug.protocols.fast.control import Body, Control, Message, close_all
from fastplug.shm import _lane
from fastplug.shm._arena import TABLE_SLOTS, Arena, Ledger
from fastplug.shm._borrowed import Borrowed
from fastplug.shm._port import ArenaPort
from fastplug.shm._segment import MAX_SEGMENT_BYTES, Segment
from fastplug.shm.budget import budget_bytes

__all__ = ["PeerLeft", "SharedMemory"]

_log = logging.getLogger("fastplug.fast")

# A peer answers RETIRE unless it is stopped or holds the GIL; then the error about memory comes this much later.
RETIRE_TIMEOUT_S = 1.0
RETIRE_LOOK_MS = 5


def _count(body: Body, key: str, most: int) -> int:
    """A number that the peer sent, checked."""
    value = body.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise RemoteProtocolError(f"the peer sent {key}={value!r} in a control message; wanted a number from 0 to {most}")
    return value


def _attached(body: Body, fds: list[int], sizes: dict[str, int]) -> list[Segment]:
    """A segment per descriptor; ``sizes``: which key of ``body`` has its size, and the most that this may be. Owns ``fds``."""
    waiting = list(fds)
    try:
        counts = [_count(body, key, most) for key, most in sizes.items()]
        return [Segment.attach(waiting.pop(0), count) for count in counts]
    finally:
        close_all(waiting)


class PeerLeft(PluginError, EOFError):
    """The peer went while memory was announced to it. An EOFError, as every other way to find that the peer is gone."""


class SharedMemory:
    """Made before HELLO is sent; ``accept`` takes the peer's HELLO. The GIL and the control's lock guard it.

    Args:
        control: where descriptors go and come.
        peer: name for error texts.
        limit_bytes: of our arena; None takes half of what the machine allows.
        strict: CopyRequired instead of copies.
        slice_ns: longest sleep of a waiter.
    """

    def __init__(self, control: Control, peer: str, *, limit_bytes: int | None, strict: bool, slice_ns: int) -> None:
        self.control = control
        self.peer = peer
        self.arena = Arena(budget_bytes() if limit_bytes is None else limit_bytes, await_room=self._await_room)
        self._strict = strict
        self._slice_ns = slice_ns
        self._lane_segment: Segment | None = _lane.create_segment()
        self.borrowed = Borrowed(peer, self._missing, self._more_slots)
        self._table: Segment | None = self.borrowed.make_table()
        self.ledger: Ledger | None = None
        self.lane: _lane.Lane | None = None
        self.port: ArenaPort | None = None

    def hello(self) -> tuple[Body, list[int]]:
        """What HELLO says of this side's memory, and the descriptors."""
        first = self.arena.first_segment()
        assert self._lane_segment is not None
        assert self._table is not None
        body = {"lane": self._lane_segment.bytes, "table": TABLE_SLOTS, "table_bytes": self._table.bytes, "segment": first.bytes}
        return body, [self._lane_segment.fd, self._table.fd, first.fd]

    def accept(self, body: Body, fds: list[int]) -> None:
        """Maps what the peer's HELLO brought. Takes over ``fds``. Raises RemoteProtocolError, ArenaExhausted."""
        assert self._lane_segment is not None
        if len(fds) != 3:
            close_all(fds)
            raise RemoteProtocolError(f"{self.peer} sent HELLO with {len(fds)} descriptors instead of 3 (is a descriptor limit reached?)")
        lane_segment, table, first = _attached(body, fds, {"lane": 1 << 30, "table_bytes": 1 << 30, "segment": MAX_SEGMENT_BYTES})
        self.lane = _lane.Lane(self._lane_segment, lane_segment, self._slice_ns)
        self.ledger = Ledger(self.arena, self.peer, self._announce)
        self.ledger.add_table(table, _count(body, "table", 1 << 20))
        self.ledger.mark_announced(0)
        self.borrowed.add_segment(0, first)
        self.port = ArenaPort(self.arena, self.ledger, self.borrowed, self.lane, self._strict)

    def _announce(self, segment_id: int, segment: Segment | None) -> None:
        """Before a frame names a new segment; None: it will be named no more."""
        try:
            if segment is None:
                self.control.send(Message.RETIRE, {"segment": segment_id})
            else:
                self.control.send(Message.SEGMENT, {"segment": segment_id, "bytes": segment.bytes}, [segment.fd])
        except TimeoutError as error:
            raise RemoteProtocolError(f"{self.peer} does not take part any more: {error}") from error
        except OSError as error:
            raise PeerLeft(f"{self.peer} has closed the control socket") from error

    def _await_room(self, size_bytes: int) -> None:
        """The peer's control thread answers RETIRE at once; only then is the memory of an old segment free for a new one."""
        poller = select.poll()
        poller.register(self.control.fileno(), select.POLLIN)
        until, arena = time.monotonic() + RETIRE_TIMEOUT_S, self.arena
        while arena.total_bytes + size_bytes > arena.limit_bytes and time.monotonic() < until:
            poller.poll(RETIRE_LOOK_MS)  # the watcher's thread may have read the answer meanwhile
            if not self.control.pump(self.handle):
                return

    def _more_slots(self) -> None:
        """Most slots of our tables are in use: one more, before the peer runs out of them."""
        table = self.borrowed.make_table()
        with contextlib.suppress(OSError):  # a peer that is gone needs none
            self.control.send(Message.TABLE, {"slots": TABLE_SLOTS, "bytes": table.bytes}, [table.fd])

    def _missing(self, segment_id: int) -> None:
        """A frame names a segment that is not here yet: its message is in the socket, or was handled by another thread meanwhile."""
        self.control.pump(self.handle)

    def handle(self, kind: int, body: Body, fds: list[int]) -> None:
        """Control messages about memory; others are passed over. Owns ``fds``."""
        if kind == Message.SEGMENT:
            self._segment(body, fds)
        elif kind == Message.TABLE:
            self._table_announced(body, fds)
        elif kind == Message.RETIRE:
            segment_id = _count(body, "segment", 1 << 31)
            self.borrowed.drop_segment(segment_id)
            self.control.send(Message.RETIRED, {"segment": segment_id})
        elif kind == Message.RETIRED and self.ledger is not None:
            self.arena.retired(_count(body, "segment", 1 << 31), self.ledger)
        else:
            close_all(fds)

    def _segment(self, body: Body, fds: list[int]) -> None:
        if len(fds) != 1:
            _log.warning("a memory segment of %s lost its descriptor on the way; calls that need it will fail", self.peer)
            return
        try:
            (segment,) = _attached(body, fds, {"bytes": MAX_SEGMENT_BYTES})
        except ArenaExhausted as error:
            _log.warning("a memory segment of %s cannot be mapped: %s", self.peer, error)
            return
        self.borrowed.add_segment(_count(body, "segment", 1 << 31), segment)

    def _table_announced(self, body: Body, fds: list[int]) -> None:
        if len(fds) == 1 and self.ledger is not None:
            (table,) = _attached(body, fds, {"bytes": 1 << 30})
            self.ledger.add_table(table, _count(body, "slots", 1 << 20))
        else:
            close_all(fds)

    def close(self) -> None:
        """The peer is gone, or not wanted any more: memory goes back, also while handles live on. Arrays stay while referenced."""
        if self.ledger is not None:
            self.ledger.close()
        if self.port is not None:
            self.port.close()
        self.borrowed.close()
        self.arena.close()
        self.ledger = self.port = self.lane = self._lane_segment = self._table = None

    def stats(self) -> dict[str, Any]:
        """Memory at this moment."""
        lane = self.lane
        found: dict[str, Any] = {"arena": self.arena.stats()}
        if lane is not None:
            found |= {"spins": lane.spins, "sleeps": lane.sleeps}
        if self.ledger is not None:
            found["lent"] = self.ledger.lent
        return found
