"""What a peer has lent: its segments mapped read-only, our tables of returned leases, and the leases themselves."""

cimport cython
from libc.stdint cimport uint32_t, uint64_t

from fastplug.shm._segment cimport Segment

from fastplug.errors import RemoteProtocolError
from fastplug.shm._loans import MAX_SEGMENTS, MAX_TABLES, TABLE_SLOTS
from fastplug.shm._segment import Segment as SegmentType

cdef extern from "_atomics.h" nogil:
    void fp_give_back(uint64_t*)
    uint64_t fp_load_returned(const uint64_t*)
    int fp_fork_init()
    uint32_t fp_mark()
    int fp_is_home(uint32_t)

# An owner uses an id again once every peer has let go of it, so that it needs few; each costs a receiver eight bytes.
MAX_SEGMENT_IDS = 65_536

if fp_fork_init():
    raise ImportError("MADV_WIPEONFORK is missing: shared memory needs Linux 4.14 or later")


@cython.freelist(64)
@cython.no_gc
cdef class Lease:
    """One naming of a peer's block. Gives it back when the last array over it is gone: any thread, no system call."""

    def __dealloc__(self):
        if self.returned != NULL and fp_is_home(self.mark):
            fp_give_back(self.returned)

    cdef int reach(self, uint64_t start, uint64_t end) except -1:
        if self.base != NULL:
            return 0
        if self.owner.fetch is None:
            raise RemoteProtocolError(f"{self.owner.peer} names segment {self.segment_id}, whose descriptor was lost on the way")
        self.segment = self.owner.fetch(self.segment_id, start, end)
        self.base = <unsigned char*>(<uint64_t>self.segment.base - start)       # only [start, end) is there, and only that is used
        return 1


cdef class Borrowed:
    """A peer's arena as this process sees it: its segments, read-only, and our table of returned leases.

    Args:
        peer: its name, for error texts.
        missing: called with a segment id that a frame names and that is not mapped yet; reads the control socket.
        more_slots: called when most slots are in use; makes a further table and announces it.
        fetch: called with (segment id, start, end) for a part of a segment that was announced and is lost; returns it in private memory.
    """

    def __init__(self, peer: str, missing, more_slots=None, fetch=None):
        self.peer = peer
        self.missing = missing
        self.more_slots = more_slots
        self.fetch = fetch
        self.segments = []
        self.tables = []
        self.lost = {}

    def make_table(self, slots: int = TABLE_SLOTS) -> Segment:
        """A further table of counters, to be announced to the peer."""
        table = SegmentType.create(slots * 8, "fastplug-table")
        if not self.tables:
            self.first_table, self.first_slots = table, slots
        self.tables.append((self.slots, slots, table))
        self.slots += slots
        return table

    def add_segment(self, segment_id: int, segment: Segment) -> None:
        """The peer announced a segment. Raises RemoteProtocolError: the id is taken, or out of range."""
        self._admit(segment_id)
        self.segments[segment_id] = segment
        self.lost.pop(segment_id, None)

    def lose_segment(self, segment_id: int, bytes: int) -> None:
        """The peer announced a segment that cannot be mapped here. Raises RemoteProtocolError as ``add_segment`` does."""
        self._admit(segment_id)
        self.lost[segment_id] = bytes

    def _admit(self, segment_id):
        if not 0 <= segment_id < (1 << 31) or (segment_id < len(self.segments) and self.segments[segment_id] is not None):
            raise RemoteProtocolError(f"{self.peer} announced segment {segment_id} twice")
        known = sum(1 for known in self.segments if known is not None) + len(self.lost) - (segment_id in self.lost)
        if segment_id >= MAX_SEGMENT_IDS or known >= MAX_SEGMENTS:
            raise RemoteProtocolError(f"{self.peer} announced segment {segment_id}; at most {MAX_SEGMENTS} are mapped at once")
        while len(self.segments) <= segment_id:
            self.segments.append(None)

    @property
    def lost_segments(self) -> frozenset:
        """Ids of segments that were announced and cannot be mapped here."""
        return frozenset(self.lost)

    def drop_segment(self, segment_id: int) -> bool:
        """The peer will name it no more. True: there was one; it is unmapped with its last lease."""
        if self.lost.pop(segment_id, None) is not None:
            return True
        if not 0 <= segment_id < len(self.segments) or self.segments[segment_id] is None:
            return False
        self.segments[segment_id] = None
        return True

    def mapped(self) -> dict:
        """Segment by id, of those that are mapped."""
        return {segment_id: segment for segment_id, segment in enumerate(self.segments) if segment is not None}

    def stats(self) -> dict:
        """What this process has of the peer: segments, leases, segments that cannot be mapped, private views that had to be copies."""
        cdef uint64_t returned = 0, slot
        cdef Segment table
        for _, count, table in self.tables:
            for slot in range(count):
                returned += fp_load_returned(<const uint64_t*>table.base + slot)
        return {
            "segments": len(self.mapped()),
            "leases": self.taken - returned,
            "lost_segments": len(self.lost),
            "private_copies": self.private_copies,
        }

    def close(self) -> None:
        """The peer is gone: what no array uses is unmapped. Leases keep what they need."""
        self.segments = []
        self.tables = []
        self.first_table, self.first_slots = None, 0
        self.lost = {}
        self.missing = self.more_slots = self.fetch = self.fetch_file = None

    cdef int find(self, Lease lease, uint64_t segment_id) except -1:
        cdef Segment segment
        if segment_id >= <uint64_t>len(self.segments) or self.segments[segment_id] is None:
            self.missing(segment_id)
        if segment_id < <uint64_t>len(self.segments) and self.segments[segment_id] is not None:
            segment = self.segments[segment_id]
            lease.segment = segment
            lease.base = segment.base
            lease.bytes = segment.bytes
        elif segment_id in self.lost:
            lease.bytes = self.lost[segment_id]
        else:
            raise RemoteProtocolError(f"{self.peer} names segment {segment_id}, which it never announced")
        return 0

    cdef Segment table_of(self, uint64_t* slot):
        if slot[0] < self.first_slots:
            return self.first_table
        for first, count, table in self.tables:
            if first <= slot[0] < first + count:
                slot[0] -= <uint64_t>first
                return table
        raise RemoteProtocolError(f"{self.peer} names slot {slot[0]}; there are {self.slots}")

    cdef int give_back(self, uint64_t slot) except -1:
        cdef Segment table = self.table_of(&slot)
        fp_give_back(<uint64_t*>table.base + slot)
        self.taken += 1
        return 0

    cdef Lease lease(self, uint64_t segment_id, uint64_t slot):
        cdef uint64_t index = slot
        cdef Segment table = self.table_of(&index)
        cdef Lease lease = Lease.__new__(Lease)
        self.find(lease, segment_id)
        lease.owner = self
        lease.table = table
        lease.segment_id = <uint32_t>segment_id
        lease.slot = <uint32_t>slot
        lease.mark = fp_mark()
        lease.returned = <uint64_t*>table.base + index
        self.taken += 1
        # the peer takes the lowest free slot: three quarters in use announce that it will need more
        if slot >= self.slots - self.slots // 4 and self.more_slots is not None and len(self.tables) < MAX_TABLES:
            self.more_slots()
        return lease
