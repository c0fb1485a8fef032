"""One connection's shared memory: its lane, its arena and what it borrows, from HELLO to the end. The same on both sides."""

from __future__ import annotations

import base64
import contextlib
import logging
import select
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from fastplug.errors import ArenaExhausted, PluginError, RemoteProtocolError
from fastplug.protocols.fast.control import Body, Control, Message, close_all
from fastplug.shm import _lane, _rings
from fastplug.shm._arena import Arena
from fastplug.shm._borrowed import Borrowed
from fastplug.shm._loans import TABLE_SLOTS, Ledger
from fastplug.shm._placement import HOST_PATIENCE
from fastplug.shm._port import ArenaPort
from fastplug.shm._segment import MAX_SEGMENT_BYTES, Segment
from fastplug.shm.budget import budget_bytes
from fastplug.shm.eventfd import Eventfd
from fastplug.shm.files import Naming

__all__ = ["PeerLeft", "SharedMemory"]

_log = logging.getLogger("fastplug.fast")

# A peer answers RETIRE unless it is stopped or holds the GIL; then the error about memory comes this much later.
RETIRE_TIMEOUT_S = 1.0
RETIRE_LOOK_MS = 5
# What one FETCH asks for at most: its answer fits into a socket's buffer whole, so that sending it waits for nobody.
FETCH_BYTES = 64 * 1024
# The peer's control thread answers at once, unless the peer is stopped or holds the GIL.
FETCH_TIMEOUT_S = 10.0
FETCH_LOOK_MS = 5


def _count(body: Body, key: str, most: int) -> int:
    """A number that the peer sent, checked."""
    value = body.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise RemoteProtocolError(f"the peer sent {key}={value!r} in a control message; wanted a number from 0 to {most}")
    return value


def _attached(body: Body, fds: list[int], sizes: dict[str, int], arrays: str = "") -> list[Segment]:
    """A segment per descriptor; ``sizes``: which key of ``body`` has its size, and the most that this may be. Owns ``fds``.

    ``arrays`` is the key of the one that arrays lie in: private views of them need its descriptor.
    """
    waiting = list(fds)
    try:
        counts = [(key, _count(body, key, most)) for key, most in sizes.items()]
        return [Segment.attach(waiting.pop(0), count, keep=key == arrays) for key, count in counts]
    finally:
        close_all(waiting)


@contextlib.contextmanager
def _closed_on_error(fds: list[int]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        close_all(fds)
        raise


class PeerLeft(PluginError, EOFError):
    """The peer went while memory was announced to it. An EOFError, as every other way to find that the peer is gone."""


class SharedMemory:
    """Made before HELLO is sent; ``accept`` takes the peer's HELLO. The GIL and the control's lock guard it.

    Args:
        control: where descriptors go and come.
        peer: name for error texts.
        limit_bytes: of our arena; None takes half of what the machine allows.
        shared: an arena that other connections lend from, too, instead of an own one.
        strict: CopyRequired instead of copies.
        slice_ns: longest sleep of a waiter.
        loops: event loops of this side wait for frames (a host's do): it takes eventfds that the peer writes.
        patience: waits on one CPU with the peer before this side leaves it.
    """

    def __init__(
        self,
        control: Control,
        peer: str,
        *,
        limit_bytes: int | None,
        strict: bool,
        slice_ns: int,
        shared: Arena | None = None,
        loops: bool = False,
        patience: int = HOST_PATIENCE,
    ) -> None:
        self.control = control
        self.peer = peer
        self.arena = shared or Arena(budget_bytes() if limit_bytes is None else limit_bytes, ahead=True)
        self._shared = shared is not None
        self._strict = strict
        self._slice_ns = slice_ns
        self._patience = patience
        self._loops = loops
        self._peer_loops = False
        self._lane_segment: Segment | None = _rings.create_segment()
        self.borrowed = Borrowed(peer, self._missing, self._more_slots, self._fetch)
        self._tables: list[Segment] = [self.borrowed.make_table()]
        self._fetching = threading.Lock()
        self._wanted: Body | None = None  # what the answer to the FETCH under way says of itself
        self._fetched: bytes | None = None
        self._table_lost = False
        self._asked: set[int] = set()  # segments whose LOST is not answered yet
        self.ledger: Ledger | None = None
        self.lane: _lane.Lane | None = None
        self.port: ArenaPort | None = None
        self._further: list[ArenaPort] = []

    def hello(self) -> tuple[Body, list[int]]:
        """What HELLO says of this side's memory, and the descriptors."""
        first = self.arena.first_segment()
        assert self._lane_segment is not None
        (table,) = self._tables
        body: Body = {"lane": self._lane_segment.bytes, "table": TABLE_SLOTS, "table_bytes": table.bytes, "segment": first.bytes}
        if self._loops:
            body["eventfd"] = True
        return body, [self._lane_segment.fd, table.fd, first.fd]

    def add_eventfd(self, lane: _lane.Lane, body: Body, fds: list[int]) -> None:
        """One that this side writes for the peer's event loops, if it has such; it goes with our half of the lane."""
        if self._peer_loops:
            with contextlib.suppress(OSError):  # no descriptor is left: a thread waits for the loops
                made = Eventfd.create()
                lane.watch_by(None, made)
                body["eventfd"] = True
                fds.append(made.fd)

    def _take_eventfd(self, lane: _lane.Lane, body: Body, fds: list[int]) -> None:
        if fds:
            if len(fds) != 1 or not self._loops or body.get("eventfd") is not True:
                close_all(fds)
                raise RemoteProtocolError(f"{self.peer} sent {len(fds)} descriptors that belong to nothing")
            lane.watch_by(Eventfd.accept(fds[0], self.peer), None)

    def accept(self, body: Body, fds: list[int]) -> None:
        """Maps what the peer's HELLO brought. Takes over ``fds``. Raises RemoteProtocolError, ArenaExhausted."""
        assert self._lane_segment is not None
        if len(fds) < 3:
            close_all(fds)
            raise RemoteProtocolError(f"{self.peer} sent HELLO with {len(fds)} descriptors instead of 3 (is a descriptor limit reached?)")
        further = fds[3:]
        with _closed_on_error(further):
            self._map(body, fds[:3])
        assert self.lane is not None
        self._peer_loops = not self._loops and body.get("eventfd") is True
        self._take_eventfd(self.lane, body, further)

    def _map(self, body: Body, fds: list[int]) -> None:
        assert self._lane_segment is not None
        lane_segment, table, first = _attached(
            body, fds, {"lane": 1 << 30, "table_bytes": 1 << 30, "segment": MAX_SEGMENT_BYTES}, "segment"
        )
        self.lane = _lane.Lane(self._lane_segment, lane_segment, self._slice_ns, None, self._patience)
        self.ledger = Ledger(self.arena, self.peer, self._announce, self._await_room)
        self.ledger.add_table(table, _count(body, "table", 1 << 20))
        self.ledger.mark_announced(0)
        self.borrowed.add_segment(0, first)
        self.borrowed.lent_on = self.arena if self._shared else None
        self.port = ArenaPort(self.arena, self.ledger, self.borrowed, self.lane, self._strict)

    def further_lane(self, mine: Segment, body: Body, fds: list[int]) -> tuple[_lane.Lane, ArenaPort]:
        """One more lane, with ``mine`` on this side and what LANE brought on the other. Takes over ``fds``. Raises as ``accept``."""
        if self.ledger is None or not fds:
            close_all(fds)
            raise RemoteProtocolError(f"{self.peer} sent LANE with {len(fds)} descriptors, or after the end")
        further = fds[1:]
        with _closed_on_error(further):
            (theirs,) = _attached(body, fds[:1], {"bytes": 1 << 30})
            lane = _lane.Lane(mine, theirs, self._slice_ns, self.lane)
        self._take_eventfd(lane, body, further)
        port = ArenaPort(self.arena, self.ledger, self.borrowed, lane, self._strict)
        if self.port is not None:
            port.naming, port.opens_files = self.port.naming, self.port.opens_files
        self._further.append(port)
        return lane, port

    def name_files(self) -> None:
        """The peer opens files: arrays over mapped ones go to it by name. After ``accept``."""
        assert self.port is not None
        self.port.naming = Naming()

    def open_files(self) -> None:
        """The peer may name files. After ``accept``."""
        assert self.port is not None
        self.port.opens_files = True
        self.borrowed.fetch_file = self._fetch_file

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

    def _await_room(self, there_is_room: Callable[[], bool]) -> None:
        """The peer's control thread answers RETIRE at once; only then is the memory of an old segment free for a new one."""
        poller = select.poll()
        poller.register(self.control.fileno(), select.POLLIN)
        until = time.monotonic() + RETIRE_TIMEOUT_S
        while not there_is_room() and time.monotonic() < until:
            poller.poll(RETIRE_LOOK_MS)  # the watcher's thread may have read the answer meanwhile
            if not self.control.pump(self.handle):
                return

    def _more_slots(self) -> None:
        """Most slots of our tables are in use: one more, before the peer runs out of them."""
        self._tables.append(self.borrowed.make_table())
        with contextlib.suppress(OSError):  # a peer that is gone needs none
            self._send_table(len(self._tables) - 1)

    def _send_table(self, index: int) -> None:
        table = self._tables[index]
        self.control.send(Message.TABLE, {"table": index, "slots": TABLE_SLOTS, "bytes": table.bytes}, [table.fd])

    def _missing(self, segment_id: int) -> None:
        """A frame names a segment that is not here yet: its message is in the socket, or was handled by another thread meanwhile."""
        self.control.pump(self.handle)
        if self._table_lost and self.ledger is not None:
            self._table_lost = False
            with contextlib.suppress(OSError):
                self.control.send(Message.LOST, {"table": self.ledger.tables_known})

    # -- what was lost on the way (wire.md, "Lost descriptors")

    def _fetch(self, segment_id: int, start: int, end: int) -> Segment:
        """[start, end) of a segment of the peer that is not mapped here, in private memory."""
        found = self._fetched_range({"segment": segment_id}, start, end)
        # Each LOST is answered: a second one, or one for a segment that came meanwhile, would have it announced twice.
        if segment_id not in self._asked and segment_id in self.borrowed.lost_segments:
            self._asked.add(segment_id)
            self._tell_lost({"segment": segment_id})
        return found

    def _fetch_file(self, device: int, inode: int, start: int, end: int, why: Exception) -> Segment:
        """The same of a file that the host named and that cannot be opened here. The host names it no more."""
        if end - start > MAX_SEGMENT_BYTES:
            raise RemoteProtocolError(f"{self.peer} names {end - start} bytes of a file") from why
        found = self._fetched_range({"device": device, "inode": inode}, start, end)
        self._tell_lost({"device": device, "inode": inode})
        _log.warning("%s. What lies there is copied.", why)
        return found

    def _tell_lost(self, what: Body) -> None:
        with contextlib.suppress(OSError):  # a peer that is gone need not know
            self.control.send(Message.LOST, what)

    def _fetched_range(self, what: Body, start: int, end: int) -> Segment:
        found = Segment.private(end - start)
        for offset in range(start, end, FETCH_BYTES):
            count = min(FETCH_BYTES, end - offset)
            with self._fetching:  # one question at a time: handlers may run on several threads
                found.write(offset - start, self._fetch_part(what | {"offset": offset, "bytes": count}))
        return found

    def _fetch_part(self, asked: Body) -> bytes:
        poller = select.poll()
        poller.register(self.control.fileno(), select.POLLIN)
        until, count, data = time.monotonic() + FETCH_TIMEOUT_S, asked["bytes"], None
        self._wanted = {key: asked[key] for key in asked if key != "bytes"}
        try:
            self.control.send(Message.FETCH, asked)
            while (data := self._fetched) is None:
                if time.monotonic() > until:
                    raise RemoteProtocolError(f"{self.peer} did not send a part of lost memory within {FETCH_TIMEOUT_S:g} s")
                poller.poll(FETCH_LOOK_MS)  # the watcher's thread may have read the answer meanwhile
                if not self.control.pump(self.handle):
                    break
        except OSError as error:
            raise PeerLeft(f"{self.peer} has closed the control socket") from error
        finally:
            self._wanted = self._fetched = None
        if data is None:
            raise PeerLeft(f"{self.peer} has closed the control socket")
        if len(data) != count:
            raise RemoteProtocolError(f"{self.peer} sent {len(data)} bytes of lost memory instead of {count}")
        return data

    def _on_bytes(self, body: Body, fds: list[int]) -> None:
        data = body.pop("data", "")
        if self._wanted is None or body != self._wanted:  # nobody waits for it any more
            return
        try:
            self._fetched = base64.b64decode(data, validate=True)
        except (TypeError, ValueError) as error:
            raise RemoteProtocolError(f"{self.peer} sent bytes of lost memory that are no base64") from error

    def _on_fetch(self, body: Body, fds: list[int]) -> None:
        offset, count = _count(body, "offset", MAX_SEGMENT_BYTES), _count(body, "bytes", FETCH_BYTES)
        what = {key: _count(body, key, (1 << 64) - 1) for key in (("segment",) if "segment" in body else ("device", "inode"))}
        data = self._lent_part(what, offset, count)
        if data is None:
            raise RemoteProtocolError(f"{self.peer} asks for {count} bytes at {offset} of {what}, which it was not told of")
        self.control.send(Message.BYTES, what | {"offset": offset, "data": base64.b64encode(data).decode()})

    def _lent_part(self, what: Body, offset: int, count: int) -> bytes | None:
        if "segment" not in what:
            naming = self.port.naming if self.port is not None else None
            return naming.part(what["device"], what["inode"], offset, count) if naming is not None else None
        segment = self.ledger.announced_segment(what["segment"]) if self.ledger is not None else None
        return segment.read(offset, count) if segment is not None and offset + count <= segment.bytes else None

    def _on_lost(self, body: Body, fds: list[int]) -> None:
        if "table" in body:
            index = _count(body, "table", len(self._tables) - 1)
            if index == 0:
                raise RemoteProtocolError(f"{self.peer} lost the table that it got with HELLO")
            self._send_table(index)
            return
        if "inode" in body:
            device, inode = (_count(body, key, (1 << 64) - 1) for key in ("device", "inode"))
            if self.port is not None and self.port.naming is not None:
                self.port.naming.refuse(device, inode)
            return
        segment_id = _count(body, "segment", 1 << 31)
        segment = self.ledger.announced_segment(segment_id) if self.ledger is not None else None
        if segment is not None:
            self._announce(segment_id, segment)

    # -- what comes

    def handle(self, kind: int, body: Body, fds: list[int]) -> None:
        """Control messages about memory; others are passed over. Owns ``fds``."""
        handler = _HANDLERS.get(kind)
        if handler is None:
            close_all(fds)
        else:
            handler(self, body, fds)

    def _on_retire(self, body: Body, fds: list[int]) -> None:
        segment_id = _count(body, "segment", 1 << 31)
        if self._shared:
            self.arena.disown(self.borrowed.mapped().get(segment_id))
        self.borrowed.drop_segment(segment_id)
        self.control.send(Message.RETIRED, {"segment": segment_id})

    def _on_retired(self, body: Body, fds: list[int]) -> None:
        if self.ledger is not None:
            self.arena.retired(_count(body, "segment", 1 << 31), self.ledger)

    def _on_segment(self, body: Body, fds: list[int]) -> None:
        try:
            segment_id, size = _count(body, "segment", 1 << 31), _count(body, "bytes", MAX_SEGMENT_BYTES)
        except RemoteProtocolError:
            close_all(fds)
            raise
        self._asked.discard(segment_id)
        why = "its descriptor was lost on the way; this process is at its limit of descriptors (RLIMIT_NOFILE)"
        try:
            for segment in _attached(body, fds, {"bytes": MAX_SEGMENT_BYTES}, "bytes") if len(fds) == 1 else ():
                self.borrowed.add_segment(segment_id, segment)
                return
        except ArenaExhausted as error:
            why = str(error)
        if segment_id not in self.borrowed.lost_segments:  # once, not with each further try
            self.borrowed.lose_segment(segment_id, size)
            _log.warning("segment %d of %s cannot be mapped: %s. What lies there is copied over a socket.", segment_id, self.peer, why)

    def _on_table(self, body: Body, fds: list[int]) -> None:
        if self.ledger is None or len(fds) != 1 or body.get("table") != self.ledger.tables_known:
            self._table_lost = not fds or self._table_lost  # their slots are counted on: none of a later table before this one's
            return close_all(fds)
        (table,) = _attached(body, fds, {"bytes": 1 << 30})
        self.ledger.add_table(table, _count(body, "slots", 1 << 20))
        return None

    def close(self) -> None:
        """The peer is gone, or not wanted any more: memory goes back, also while handles live on. Arrays stay while referenced."""
        if self.ledger is not None:
            self.ledger.close()
        for port in (*self._further, self.port):
            if port is not None:
                port.close()
        self._further = []
        mapped = self.borrowed.mapped() if self._shared else {}
        self.borrowed.close()
        for segment in mapped.values():
            with contextlib.suppress(PluginError):  # another peer that is told of it may be gone, too
                self.arena.disown(segment)
        if not self._shared:
            self.arena.close()
        self.ledger = self.port = self.lane = self._lane_segment = None
        self._tables = []

    def stats(self) -> dict[str, Any]:
        """Memory at this moment."""
        lane = self.lane
        found: dict[str, Any] = {"arena": self.arena.stats(), "borrowed": self.borrowed.stats()}
        if lane is not None:
            found |= {"spins": lane.placement.spins, "sleeps": lane.placement.sleeps, "moves": lane.placement.moves}
        if self.ledger is not None:
            found["lent"] = self.ledger.lent
        return found


_HANDLERS: dict[int, Callable[[SharedMemory, Body, list[int]], None]] = {
    Message.SEGMENT: SharedMemory._on_segment,
    Message.TABLE: SharedMemory._on_table,
    Message.RETIRE: SharedMemory._on_retire,
    Message.RETIRED: SharedMemory._on_retired,
    Message.LOST: SharedMemory._on_lost,
    Message.FETCH: SharedMemory._on_fetch,
    Message.BYTES: SharedMemory._on_bytes,
}
