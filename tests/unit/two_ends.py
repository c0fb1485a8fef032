"""Both ends of a connection over shared memory in one process: what one end makes, the other attaches through a descriptor of its own."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from fastplug._wire import MethodCodec
from fastplug.errors import RemoteProtocolError
from fastplug.interfaces import Interface
from fastplug.protocols._call import Caller
from fastplug.protocols._remote import Remote
from fastplug.protocols._serve import Server
from fastplug.shm import _lane, _rings
from fastplug.shm._arena import Arena
from fastplug.shm._borrowed import Borrowed
from fastplug.shm._lane import Lane
from fastplug.shm._loans import TABLE_SLOTS, Ledger
from fastplug.shm._port import ArenaPort
from fastplug.shm._segment import Segment
from fastplug.shm.watcher import wake_until_awake

RING_BYTES = _rings.MIN_RING_BYTES
HEADER_BYTES = 32
# In the past for every clock: look, do not wait.
NOW = 1
# A watchdog, not a measure: what should come at once has this long on a busy machine.
SOON_S = 60.0


def attached(segment: Segment) -> Segment:
    """The peer's view of a segment."""
    return Segment.attach(os.dup(segment.fd), segment.bytes, keep=True)


def lanes(ring_bytes: int = RING_BYTES, slice_ns: int = _lane.HOST_SLICE_NS) -> tuple[Lane, Lane]:
    """Two ends of one lane."""
    one, other = _rings.create_segment(ring_bytes), _rings.create_segment(ring_bytes)
    return Lane(one, attached(other), slice_ns), Lane(other, attached(one), slice_ns)


class End:
    """One end: lane, arena, ledger, borrowed, port."""

    lane: Lane
    port: ArenaPort
    ledger: Ledger

    def __init__(
        self, name: str, *, limit_bytes: int = 64 << 20, first_bytes: int = 1 << 20, slots: int = TABLE_SLOTS, arena: Arena | None = None
    ) -> None:
        self.name = name
        self.arena = arena or Arena(limit_bytes, first_bytes)
        self.borrowed = Borrowed(name, self._missing)
        self.slots = slots
        self.table = self.borrowed.make_table(slots)
        self.segment = _rings.create_segment(RING_BYTES)
        self.answers_retire = True
        self.on_missing: Callable[[int], None] | None = None  # None: segments are announced at once
        self.announced: dict[int, Segment] = {}
        self.mapped: list[Segment] = []  # own segments of the arena, and the peer's as they are seen here

    def _missing(self, segment_id: int) -> None:
        """A frame names a segment that is not mapped yet: what was announced is read now."""
        if self.on_missing is not None:
            self.on_missing(segment_id)
        waiting, self.announced = self.announced, {}
        for announced_id, segment in waiting.items():
            self.borrowed.add_segment(announced_id, segment)

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
            theirs = attached(segment)
            self.mapped.append(segment)
            self.peer.mapped.append(theirs)
            if self.peer.on_missing is None:
                self.peer.borrowed.add_segment(segment_id, theirs)
            else:
                self.peer.announced[segment_id] = theirs
            return
        if not self.peer.borrowed.drop_segment(segment_id):
            raise RemoteProtocolError(f"segment {segment_id} was never announced")
        if self.answers_retire:
            self.arena.retired(segment_id, self.ledger)

    def leave(self) -> None:
        """The peer is gone, for this end."""
        self.lane.peer_gone()
        self.ledger.close()
        self.port.close()
        self.borrowed.close()

    def close(self) -> None:
        """Lets go of everything, for a test whose fixtures outlive it."""
        self.leave()
        self.arena.close()
        vars(self).clear()

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


class Called:
    """Calls from one end to the other: a Caller here, a Server on a thread of its own."""

    def __init__(self, host: End, plugin: End, interface: Interface, implementation: object) -> None:
        self.caller = Caller(host.lane, host.port, self._lost)
        codecs = [MethodCodec(interface.name, method) for method in interface.methods]
        handlers: list[tuple[MethodCodec, Callable[..., Any] | None]] = [(codec, getattr(implementation, codec.name)) for codec in codecs]
        self.server = Server(plugin.lane, plugin.port, [handlers])
        self.methods = {
            codec.name: Remote(self.caller, codec, 0, index, None, method.signature)
            for index, (codec, method) in enumerate(zip(codecs, interface.methods, strict=True))
        }
        self._plugin = plugin
        self._thread = threading.Thread(target=self.server.run)
        self._thread.start()

    def __getattr__(self, name: str) -> Remote:
        return self.methods[name]

    def _lost(self, method: str | None) -> Exception:
        return ConnectionError(method)

    def end(self) -> None:
        """The server finishes what it has."""
        self._plugin.lane.finish()
        wake_until_awake(self._plugin.lane)
        self._thread.join(SOON_S)
        assert not self._thread.is_alive()
