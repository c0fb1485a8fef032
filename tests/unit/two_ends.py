"""Both ends of a connection over shared memory in one process: what one end makes, the other attaches through a descriptor of its own."""

from __future__ import annotations

import os
from typing import Any

from fastplug.errors import RemoteProtocolError
from fastplug.shm import _lane
from fastplug.shm._arena import TABLE_SLOTS, Arena, Ledger
from fastplug.shm._borrowed import Borrowed
from fastplug.shm._lane import Lane
from fastplug.shm._port import ArenaPort
from fastplug.shm._segment import Segment

RING_BYTES = _lane.MIN_RING_BYTES
HEADER_BYTES = 32
# In the past for every clock: look, do not wait.
NOW = 1
# A watchdog, not a measure: what should come at once has this long on a busy machine.
SOON_S = 60.0


def attached(segment: Segment) -> Segment:
    """The peer's view of a segment."""
    return Segment.attach(os.dup(segment.fd), segment.bytes)


def lanes(ring_bytes: int = RING_BYTES, slice_ns: int = _lane.HOST_SLICE_NS) -> tuple[Lane, Lane]:
    """Two ends of one lane."""
    one, other = _lane.create_segment(ring_bytes), _lane.create_segment(ring_bytes)
    return Lane(one, attached(other), slice_ns), Lane(other, attached(one), slice_ns)


class End:
    """One end: lane, arena, ledger, borrowed, port."""

    lane: Lane
    port: ArenaPort
    ledger: Ledger

    def __init__(self, name: str, *, limit_bytes: int = 64 << 20, first_bytes: int = 1 << 20, slots: int = TABLE_SLOTS) -> None:
        self.name = name
        self.arena = Arena(limit_bytes, first_bytes)
        self.borrowed = Borrowed(name, self._missing)
        self.slots = slots
        self.table = self.borrowed.make_table(slots)
        self.segment = _lane.create_segment(RING_BYTES)
        self.asked_for: list[int] = []
        self.answers_retire = True

    def _missing(self, segment_id: int) -> None:
        self.asked_for.append(segment_id)

    def join(self, peer: End, *, strict: bool = False) -> None:
        self.peer = peer
        self.lane = Lane(self.segment, attached(peer.segment))
        self.ledger = Ledger(self.arena, peer.name, self._announce)
        self.ledger.add_table(attached(peer.table), peer.slots)
        self.port = ArenaPort(self.arena, self.ledger, self.borrowed, self.lane, strict)
        self._announce(0, self.arena.first_segment())
        self.ledger.mark_announced(0)

    def _announce(self, segment_id: int, segment: Segment | None) -> None:
        if segment is not None:
            self.peer.borrowed.add_segment(segment_id, attached(segment))
            return
        if not self.peer.borrowed.drop_segment(segment_id):
            raise RemoteProtocolError(f"segment {segment_id} was never announced")
        if self.answers_retire:
            self.arena.retired(segment_id, self.ledger)

    def lost(self, method: str | None) -> Exception:
        return EOFError(method)

    def in_use(self) -> dict[str, Any]:
        """What is lent or held at this moment; zeros when all came back."""
        stats = self.arena.stats()
        return {"in_use": stats["blocks_in_use"], "lent": stats["blocks_lent"], "out": self.ledger.lent, "held": self.lane.held}


NOTHING_OUT = {"in_use": 0, "lent": 0, "out": 0, "held": 0}


def two_ends(*, strict: bool = False, **sizes: int) -> tuple[End, End]:
    """A host and a plugin."""
    host, plugin = End("host", **sizes), End("plugin", **sizes)
    host.join(plugin, strict=strict)
    plugin.join(host, strict=strict)
    return host, plugin
