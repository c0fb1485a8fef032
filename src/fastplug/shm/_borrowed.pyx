"""What a peer has lent: its segments mapped read-only, our tables of returned leases, and the leases themselves."""

cimport cython
from libc.stdint cimport uint32_t, uint64_t

from fastplug.shm._segment cimport Segment

from fastplug.errors import RemoteProtocolError
from fastplug.shm._arena import MAX_SEGMENTS, MAX_TABLES, TABLE_SLOTS
from fastplug.shm._segment import Segment as SegmentType

cdef extern from "_atomics.h" nogil:
    void fp_give_back(uint64_t*)
    int fp_fork_init()
    uint32_t fp_mark()
    int fp_is_home(uint32_t)

if fp_fork_init():
    raise ImportError("MADV_WIPEONFORK is missing: shared memory needs Linux 4.14 or later")


@cython.freelist(64)
@cython.no_gc
cdef class Lease:
    """One naming of a peer's block. Gives it back when the last array over it is gone: any thread, no system call."""

    def __dealloc__(self):
        if self.returned != NULL and fp_is_home(self.mark):
            fp_give_back(self.returned)


cdef class Borrowed:
    """A peer's arena as this process sees it: its segments, read-only, and our table of returned leases.

    Args:
        peer: its name, for error texts.
        missing: called with a segment id that a frame names and that is not mapped yet; reads the control socket.
        more_slots: called when most slots are in use; makes a further table and announces it.
    """

    def __init__(self, peer: str, missing, more_slots=None):
        self.peer = peer
        self.missing = missing
        self.more_slots = more_slots
        self.segments = []
        self.tables = []

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
        if not 0 <= segment_id < (1 << 31) or (segment_id < len(self.segments) and self.segments[segment_id] is not None):
            raise RemoteProtocolError(f"{self.peer} announced segment {segment_id} twice")
        if segment_id > len(self.segments) + MAX_SEGMENTS or sum(1 for known in self.segments if known is not None) >= MAX_SEGMENTS:
            raise RemoteProtocolError(f"{self.peer} announced segment {segment_id}; at most {MAX_SEGMENTS} are mapped at once")
        while len(self.segments) <= segment_id:
            self.segments.append(None)
        self.segments[segment_id] = segment

    def drop_segment(self, segment_id: int) -> bool:
        """The peer will name it no more. True: there was one; it is unmapped with its last lease."""
        if not 0 <= segment_id < len(self.segments) or self.segments[segment_id] is None:
            return False
        self.segments[segment_id] = None
        return True

    def close(self) -> None:
        """The peer is gone: what no array uses is unmapped. Leases keep what they need."""
        self.segments = []
        self.tables = []
        self.first_table, self.first_slots = None, 0
        self.missing = self.more_slots = None

    cdef Segment segment(self, uint64_t segment_id):
        if segment_id < <uint64_t>len(self.segments) and self.segments[segment_id] is not None:
            return self.segments[segment_id]
        self.missing(segment_id)
        if segment_id < <uint64_t>len(self.segments) and self.segments[segment_id] is not None:
            return self.segments[segment_id]
        raise RemoteProtocolError(f"{self.peer} names segment {segment_id}, which it never announced (or its descriptor was lost on the way)")

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
        return 0

    cdef Lease lease(self, uint64_t segment_id, uint64_t slot):
        cdef Segment segment = self.segment(segment_id)
        cdef uint64_t index = slot
        cdef Segment table = self.table_of(&index)
        cdef Lease lease = Lease.__new__(Lease)
        lease.owner = self
        lease.segment = segment
        lease.table = table
        lease.segment_id = <uint32_t>segment_id
        lease.slot = <uint32_t>slot
        lease.mark = fp_mark()
        lease.returned = <uint64_t*>table.base + index
        # the peer takes the lowest free slot: three quarters in use announce that it will need more
        if slot >= self.slots - self.slots // 4 and self.more_slots is not None and len(self.tables) < MAX_TABLES:
            self.more_slots()
        return lease
