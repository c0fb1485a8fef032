"""The arena: blocks of shared memory, lent to peers and taken back without a system call or a lock.

Theory. A block is named in frames; each naming is a lease that the receiver must give back once. The owner counts ``sent`` per peer in
its private memory; the receiver counts ``returned`` in a table segment of its own, which the owner maps read-only. The two are equal
when nothing is out. After a crash the owner drops what it had sent there; nothing shared needs repair.

A block that comes back to its owner in a frame (form HOME) is protected by the sender's lease until the owner's ``head`` is past that frame
(Lane.hold); by then the owner has a local lease of its own.

The GIL guards Arena, Ledger and Borrowed; leases may end on any thread.
"""

import collections

cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

from fastplug._wire cimport MESSAGE_MAX, ArrayPort, Codec, Decoder, Encoder
from fastplug.shm._lane cimport Lane
from fastplug.shm._segment cimport Segment

from fastplug.errors import ArenaExhausted, RemoteProtocolError
from fastplug.shm._segment import MAX_SEGMENT_BYTES
from fastplug.shm._segment import Segment as SegmentType

cdef extern from "_atomics.h" nogil:
    void fp_give_back(uint64_t*)
    uint64_t fp_load_returned(const uint64_t*)
    int fp_fork_init()
    uint32_t fp_mark()
    int fp_is_home(uint32_t)
    void fp_point(const char*)
    enum: FP_DEBUG

# fast-transport: an arena starts with one segment of this size, made before the first call.
FIRST_SEGMENT_BYTES = 4 << 20
# Later ones at least double what there is, up to this: few segments, few descriptors, little waste.
GROWTH_BYTES = 64 << 20
# A receiver keeps at most this many segments of one peer mapped: each costs a descriptor.
MAX_SEGMENTS = 256
# Slots of one table: 64 KiB of counters. Blocks lent at the same time to one peer; beyond it a further table is asked for.
TABLE_SLOTS = 8192
MAX_TABLES = 16
# How many of the oldest lent blocks are looked at before new memory is cut: bounds the cost of an allocation.
RECYCLE_LOOKS = 16

MIN_BLOCK_BYTES = 1024
PAGE_BYTES = 4096
cdef int _MIN_BITS = 10

if fp_fork_init():
    raise ImportError("MADV_WIPEONFORK is missing: shared memory needs Linux 4.14 or later")


cdef int _size_class(uint64_t bytes):
    """Four classes per doubling: at most a quarter of a block is unused."""
    cdef int bits = _MIN_BITS
    cdef uint64_t base, step
    if bytes <= <uint64_t>1 << _MIN_BITS:
        return 0
    while (<uint64_t>2 << bits) < bytes:
        bits += 1
    base = <uint64_t>1 << bits
    step = base >> 2
    return (bits - _MIN_BITS) * 4 + <int>((bytes - base + step - 1) // step)


cdef uint64_t _class_bytes(int size_class):
    cdef uint64_t base = <uint64_t>1 << (_MIN_BITS + size_class // 4)
    return base + (base >> 2) * (size_class % 4)


def size_class_bytes(bytes: int) -> int:
    """The size of the block that ``bytes`` bytes get."""
    return _class_bytes(_size_class(bytes))


cdef class Block:
    """A piece of an arena's segment."""

    def __cinit__(self):
        self.loans = []

    cdef bint idle(self):
        cdef Loan loan
        if self.local:
            return False
        for loan in self.loans:
            if loan.out():
                return False
        return True


cdef class Loan:
    """One block, one peer."""

    cdef bint out(self):
        # SYNC POINT LEASE: after this load the peer no longer reads the block.
        return not self.ledger.closed and fp_load_returned(self.returned) != self.sent


@cython.freelist(64)
@cython.no_gc
cdef class OwnLease:
    """A local lease of an own block; arrays over the block keep it alive."""

    def __dealloc__(self):
        if self.block is not None and fp_is_home(self.mark):
            self.block.local -= 1
            if self.block.local == 0:
                self.block.arena.settle(self.block)


cdef OwnLease own_lease(Block block):
    cdef OwnLease lease = OwnLease.__new__(OwnLease)
    lease.block = block
    lease.mark = fp_mark()
    block.local += 1
    return lease


cdef class Ledger:
    """What one peer has of an arena.

    Args:
        arena: ours.
        peer: its name, for error texts.
        announce: called with (segment id, Segment) before the peer sees a segment named for the first time.
    """

    def __init__(self, arena: Arena, peer: str, announce):
        self.arena = arena
        self.peer = peer
        self.announce = announce
        self.loans = []
        self.free_slots = []
        self.tables = []
        self.retired_counts = []
        self.announced = set()
        arena.ledgers.append(self)

    def add_table(self, table: Segment, slots: int) -> None:
        """The peer made a table of ``slots`` counters. Raises RemoteProtocolError when it cannot hold them."""
        if not 0 < slots <= TABLE_SLOTS * MAX_TABLES or table.bytes < slots * 8 or len(self.tables) >= MAX_TABLES or slots % 512:
            raise RemoteProtocolError(f"{self.peer} announced a table of {slots} slots in {table.bytes} bytes")
        if self.tables and slots != TABLE_SLOTS:
            raise RemoteProtocolError(f"{self.peer} announced a further table of {slots} slots instead of {TABLE_SLOTS}")
        self.tables.append((self.slots, slots, table))
        self.slots += slots

    def mark_announced(self, segment_id: int) -> None:
        """The segment travelled with HELLO."""
        self.announced.add(segment_id)

    cdef int tell(self, Block block) except -1:
        if block.segment_id not in self.announced:
            self.announce(block.segment_id, block.segment)
            self.announced.add(block.segment_id)
        return 0

    cdef Loan loan(self, Block block):
        """The loan of this block to this peer, made when there is none; None when all slots are in use."""
        cdef Loan loan
        for loan in block.loans:
            if loan.ledger is self:
                return loan
        if self.free_slots:
            slot = self.free_slots.pop()
        elif <uint64_t>len(self.loans) < self.slots:
            slot = len(self.loans)
            self.loans.append(None)
            self.retired_counts.append(0)
        else:
            return None
        loan = Loan.__new__(Loan)
        loan.block = block
        loan.ledger = self
        loan.slot = slot
        loan.sent = self.retired_counts[slot]
        for first, count, table in self.tables:
            if first <= slot < first + count:
                loan.returned = <const uint64_t*>(<Segment>table).base + <Py_ssize_t>(slot - first)
        self.loans[slot] = loan
        block.loans.append(loan)
        return loan

    cdef Loan at(self, uint64_t slot):
        """The loan that a peer names. RemoteProtocolError when nothing is lent there."""
        cdef Loan loan = self.loans[slot] if slot < <uint64_t>len(self.loans) else None
        if loan is None or not loan.out():
            raise RemoteProtocolError(f"{self.peer} names slot {slot}, where no block is lent to it")
        return loan

    cdef int _forget(self, Loan loan) except -1:
        """The block is idle and its segment goes: the slot is free for another one, its counter goes on."""
        self.loans[loan.slot] = None
        self.retired_counts[loan.slot] = loan.sent
        self.free_slots.append(loan.slot)
        return 0

    def close(self) -> None:
        """The peer is gone: what it had is back."""
        cdef Loan loan
        if self.closed:
            return
        self.closed = True
        for loan in self.loans:
            if loan is not None:
                loan.block.loans.remove(loan)
        self.loans = []
        self.tables = []
        if self in self.arena.ledgers:
            self.arena.ledgers.remove(self)
        for segment_id in list(self.arena.retiring):
            self.arena.retired(segment_id, self)

    @property
    def lent(self) -> int:
        """Blocks that are out at this moment."""
        return sum(1 for loan in self.loans if loan is not None and (<Loan>loan).out())


cdef class Arena:
    """Shared memory that this process owns and lends.

    Args:
        limit_bytes: most memory in segments; beyond it ArenaExhausted.
        first_bytes: size of the segment made at once.
        await_room: called with a number of bytes while peers are asked to give up segments; waits, bounded, until they fit.
    """

    def __init__(self, limit_bytes: int, first_bytes: int = FIRST_SEGMENT_BYTES, await_room=None):
        self.limit_bytes = limit_bytes
        self.segments = []
        self.used = []
        self.blocks = []
        self.free = []
        self.lent = []
        self.ledgers = []
        self.retiring = {}
        self.await_room = await_room
        self._grow(min(first_bytes, limit_bytes))

    # -- allocation

    cdef Block take(self, uint64_t bytes):
        cdef int size_class = _size_class(bytes)
        cdef Block block
        if bytes > <uint64_t>MAX_SEGMENT_BYTES:
            raise ArenaExhausted(f"{bytes} bytes are more than any segment can have ({MAX_SEGMENT_BYTES})")
        while len(self.free) <= size_class:
            self.free.append([])
            self.lent.append(collections.deque())
        block = self._recycle(size_class)
        if block is None:
            block = self._cut(size_class)
        self.clock += 1
        block.lent_at = self.clock
        return block

    cdef Block _recycle(self, int size_class):
        """A block of the class that nobody has any more: the last one freed, since its memory is warm, or one that came back meanwhile."""
        cdef list free = self.free[size_class]
        cdef Block block
        cdef Py_ssize_t looks
        while free:
            block = free.pop()
            block.queued = False
            if not block.dropped and block.idle():
                return block
            if not block.dropped:
                self.settle(block)
        queue = self.lent[size_class]
        for looks in range(min(RECYCLE_LOOKS, len(queue))):
            block = queue.popleft()
            block.queued = False
            if block.dropped or block.local:
                continue
            if block.idle():
                return block
            block.queued = True
            queue.append(block)
        return None

    cdef Block _cut(self, int size_class):
        """A new block: from the segment with room, else from a new segment."""
        cdef uint64_t bytes = _class_bytes(size_class)
        cdef uint64_t align = PAGE_BYTES if bytes >= <uint64_t>(4 * PAGE_BYTES) else 256
        cdef Block block
        cdef uint64_t at
        segment_id = self._room(bytes, align)
        if segment_id is None:
            segment_id = self._make_room(bytes)
        at = -(-<object>self.used[segment_id] // align) * align
        block = Block.__new__(Block)
        block.arena = self
        block.segment = self.segments[segment_id]
        block.segment_id = segment_id
        block.offset = at
        block.bytes = bytes
        block.size_class = size_class
        self.used[segment_id] = at + bytes
        self.blocks[segment_id].append(block)
        return block

    def _room(self, bytes, align):
        for segment_id in range(len(self.segments) - 1, -1, -1):
            segment = self.segments[segment_id]
            if segment is not None and -(-self.used[segment_id] // align) * align + bytes <= segment.bytes:
                return segment_id
        return None

    def _make_room(self, bytes):
        """A segment with room for ``bytes``: new while the limit allows, else one whose blocks are all idle."""
        wanted = max(bytes, min(GROWTH_BYTES, self.total_bytes))
        open_segments = sum(1 for segment in self.segments if segment is not None)
        for size in (wanted, bytes):
            if self.total_bytes + size <= self.limit_bytes and open_segments < MAX_SEGMENTS:
                return self._grow(size)
        for segment_id, segment in enumerate(self.segments):
            if segment is not None and self._segment_idle(segment_id) and segment.bytes >= bytes:
                self._empty(segment_id)
                return segment_id
        idle = [i for i, segment in enumerate(self.segments) if segment is not None and self._segment_idle(i)]
        to_spare = sum(self.segments[i].bytes for i in idle) + sum(entry[0] for entry in self.retiring.values())
        if self.total_bytes - to_spare + bytes > self.limit_bytes:
            raise ArenaExhausted(self._exhausted(bytes))
        for segment_id in idle:
            self._retire(segment_id)
        if self.retiring and self.await_room is not None:
            self.await_room(bytes)
        if self.total_bytes + bytes <= self.limit_bytes:
            return self._grow(bytes)
        raise ArenaExhausted(self._exhausted(bytes))

    def _exhausted(self, bytes):
        """Who has it: the oldest loans first."""
        out = [
            (<Block>block, (<Loan>loan).ledger.peer)
            for blocks in self.blocks for block in blocks for loan in (<Block>block).loans if (<Loan>loan).out()
        ]
        out.sort(key=_age)
        oldest = ", ".join(f"{(<Block>block).bytes} bytes lent to {peer} {self.clock - (<Block>block).lent_at} allocations ago" for block, peer in out[:3])
        local = sum((<Block>block).bytes for blocks in self.blocks for block in blocks if (<Block>block).local)
        return (
            f"{bytes} bytes of shared memory are not to be had: {self.total_bytes} of at most {self.limit_bytes} bytes are in segments, "
            f"{local} bytes are in arrays of this process, {len(out)} blocks are lent"
            + (f" (oldest: {oldest})" if oldest else "")
            + ". Drop arrays that are no longer needed on either side, or raise arena_limit_bytes."
        )

    def _grow(self, bytes):
        segment = SegmentType.create(bytes, "fastplug-arena")
        self.segments.append(segment)
        self.used.append(0)
        self.blocks.append([])
        self.total_bytes += segment.bytes
        return len(self.segments) - 1

    def _segment_idle(self, segment_id):
        return all((<Block>block).idle() for block in self.blocks[segment_id])

    def _empty(self, segment_id):
        """Forgets the cut of a segment whose blocks are all idle."""
        cdef Block block
        cdef Loan loan
        for block in self.blocks[segment_id]:
            block.dropped = True
            for loan in block.loans:
                loan.ledger._forget(loan)
            block.loans = []
        self.blocks[segment_id] = []
        self.used[segment_id] = 0

    def _retire(self, segment_id):
        """Gives an idle segment back to the system: sealed memory is freed when both sides have unmapped it."""
        self._empty(segment_id)
        segment = self.segments[segment_id]
        self.segments[segment_id] = None
        told = [ledger for ledger in self.ledgers if segment_id in (<Ledger>ledger).announced]
        if not told:
            self.total_bytes -= segment.bytes
            return
        self.retiring[segment_id] = [segment.bytes, told]
        for ledger in told:
            (<Ledger>ledger).announce(segment_id, None)

    def retired(self, segment_id: int, ledger: Ledger) -> None:
        """A peer has unmapped a retired segment (or is gone)."""
        entry = self.retiring.get(segment_id)
        if entry is None or ledger not in entry[1]:
            return
        entry[1].remove(ledger)
        if not entry[1]:
            self.total_bytes -= entry[0]
            del self.retiring[segment_id]

    cdef int settle(self, Block block) except -1:
        if block.queued or block.dropped or block.local:
            return 0
        block.queued = True
        if block.idle():
            self.free[block.size_class].append(block)
        else:
            self.lent[block.size_class].append(block)
        return 0

    # -- faces

    def first_segment(self) -> Segment:
        """The segment that travels with HELLO; its id is 0."""
        return self.segments[0]

    def allocate(self, bytes: int) -> OwnLease:
        """A block for ``bytes`` bytes, as a lease: its memory is free again when the lease and all loans are gone. Raises ArenaExhausted."""
        cdef Block block = self.take(max(bytes, 1))
        return own_lease(block)

    def close(self) -> None:
        """Nothing is taken from it any more: each segment goes with the last array over it."""
        cdef Block block
        for blocks in self.blocks:
            for block in blocks:
                block.dropped = True        # nobody looks for it in a free list again
        self.segments = []
        self.used = []
        self.blocks = []
        self.free = []
        self.lent = []
        self.total_bytes = 0
        self.limit_bytes = 0

    def stats(self) -> dict:
        """Segments, bytes and blocks at this moment."""
        blocks = [block for blocks in self.blocks for block in blocks]
        return {
            "segments": sum(1 for segment in self.segments if segment is not None),
            "bytes": self.total_bytes,
            "limit_bytes": self.limit_bytes,
            "blocks": len(blocks),
            "blocks_in_use": sum(1 for block in blocks if (<Block>block).local),
            "blocks_lent": sum(1 for block in blocks if not (<Block>block).local and not (<Block>block).idle()),
        }


def _age(entry):
    return (<Block>entry[0]).lent_at


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
    """

    def __init__(self, peer: str, missing):
        self.peer = peer
        self.missing = missing
        self.segments = []
        self.tables = []

    def make_table(self, slots: int = TABLE_SLOTS) -> Segment:
        """A further table of counters, to be announced to the peer."""
        table = SegmentType.create(slots * 8, "fastplug-table")
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
        self.missing = None

    cdef Segment segment(self, uint64_t segment_id):
        if segment_id < <uint64_t>len(self.segments) and self.segments[segment_id] is not None:
            return self.segments[segment_id]
        self.missing(segment_id)
        if segment_id < <uint64_t>len(self.segments) and self.segments[segment_id] is not None:
            return self.segments[segment_id]
        raise RemoteProtocolError(f"{self.peer} names segment {segment_id}, which it never announced (or its descriptor was lost on the way)")

    cdef uint64_t* counter(self, uint64_t slot) except NULL:
        for first, count, table in self.tables:
            if first <= slot < first + count:
                return <uint64_t*>(<Segment>table).base + <Py_ssize_t>(slot - first)
        raise RemoteProtocolError(f"{self.peer} names slot {slot}; there are {self.slots}")

    cdef int give_back(self, uint64_t slot) except -1:
        fp_give_back(self.counter(slot))
        return 0

    cdef Lease lease(self, uint64_t segment_id, uint64_t slot):
        cdef Segment segment = self.segment(segment_id)
        cdef uint64_t* counter = self.counter(slot)
        cdef Lease lease = Lease.__new__(Lease)
        lease.owner = self
        lease.segment = segment
        for first, count, table in self.tables:
            if first <= slot < first + count:
                lease.table = table
        lease.segment_id = segment_id
        lease.slot = slot
        lease.mark = fp_mark()
        lease.returned = counter
        return lease


cdef struct SpillReference:
    uint32_t segment
    uint32_t slot
    uint64_t offset
    uint64_t bytes


cdef class ArenaPort(ArrayPort):
    """How one connection's payloads and arrays go through shared memory."""

    def __init__(self, arena: Arena, ledger: Ledger, borrowed: Borrowed, lane: Lane, strict: bool = False):
        self.arena = arena
        self.ledger = ledger
        self.borrowed = borrowed
        self.lane = lane
        self.strict = strict
        self.lending = []
        self.committed = []

    def close(self) -> None:
        """Breaks the circle with what knows numpy, so that memory goes at once and not with the next garbage collection."""
        self.arrays = None

    cdef ArrayPort _arrays(self):
        if self.arrays is None:
            from fastplug.shm._ndarray import ArenaArrays

            self.arrays = ArenaArrays(self)
        return self.arrays

    cdef int put(self, Encoder enc, object array, Codec codec) except -1:
        return self._arrays().put(enc, array, codec)

    cdef object get(self, Decoder dec, Codec codec):
        return self._arrays().get(dec, codec)

    cdef int skip(self, Decoder dec) except -1:
        return self._arrays().skip(dec)

    cdef int lend(self, Block block, uint32_t* slot) except -1:
        """Notes that the payload names this block: 1, or 0 when the peer's table is full."""
        cdef Loan loan = self.ledger.loan(block)
        if loan is None:
            return 0
        self.ledger.tell(block)
        self.lending.append(loan)
        self.named += 1
        slot[0] = loan.slot
        return 1

    cdef int lend_taken(self, Block block, uint32_t* slot) except -1:
        """As ``lend``, for a block that was taken for this payload: it goes back when it cannot be lent."""
        cdef int lent = 0
        try:
            lent = self.lend(block, slot)
        finally:
            if not lent:
                self.arena.settle(block)
        return lent

    cdef int commit(self) except -1:
        cdef Loan loan
        if self.committed:
            self.committed.clear()
        if self.named:
            for loan in self.lending:
                loan.sent += 1
            for loan in self.lending:
                self.arena.settle(loan.block)
            self.committed, self.lending = self.lending, self.committed
            self.named = 0
            if FP_DEBUG:
                fp_point("blocks lent, not published")
        return 0

    cdef int rollback(self) except -1:
        cdef Loan loan
        for loan in self.lending:
            self.arena.settle(loan.block)
        self.lending.clear()
        self.named = 0
        self.lane.forget_unsent()
        return 0

    cdef int retract(self) except -1:
        cdef Loan loan
        for loan in self.committed:
            loan.sent -= 1
        self.committed.clear()
        self.lane.forget_unsent()
        return 0

    cdef int spill(self, Encoder enc) except -1:
        """Moves an encoded payload that is too long for the ring to a block; `enc` then holds the reference to it."""
        cdef Block block = self.arena.take(enc.size)
        cdef SpillReference reference
        cdef unsigned char* target = block.segment.base + block.offset
        cdef const unsigned char* source = enc.data
        cdef size_t n = enc.size
        cdef uint32_t slot
        with nogil:
            memcpy(target, source, n)
        if not self.lend_taken(block, &slot):
            raise ArenaExhausted(f"{self.ledger.peer} holds all {self.ledger.slots} leases that it has room for; let it drop arrays")
        reference.segment = block.segment_id
        reference.slot = slot
        reference.offset = block.offset
        reference.bytes = n
        enc.reset()
        memcpy(enc.take(sizeof(SpillReference)), &reference, sizeof(SpillReference))
        return 0

    cdef int unspill(self, Decoder dec) except -1:
        """Replaces a reference by a private copy of the payload that it names, and gives the block back."""
        cdef SpillReference reference
        cdef Lease lease
        cdef unsigned char* target
        cdef const unsigned char* source
        if dec.size != sizeof(SpillReference):
            raise RemoteProtocolError(f"the reference to a spilled payload has {dec.size} bytes")
        memcpy(&reference, dec.data, sizeof(SpillReference))
        lease = self.borrowed.lease(reference.segment, reference.slot)
        if reference.offset > lease.segment.bytes or reference.bytes > lease.segment.bytes - reference.offset:
            raise RemoteProtocolError(f"a spilled payload of {reference.bytes} bytes at {reference.offset} lies outside of its segment")
        if reference.bytes > <uint64_t>MESSAGE_MAX:
            raise RemoteProtocolError(f"a spilled payload has {reference.bytes} bytes; {MESSAGE_MAX} are allowed")
        target = dec.fill(reference.bytes)
        source = lease.segment.base + reference.offset
        with nogil:
            memcpy(target, source, reference.bytes)
        return 0


def lease_counts(arena: Arena) -> dict:
    """Local leases and loans out, by block offset: what the debug checks and tests look at."""
    return {
        (block.segment_id, block.offset): ((<Block>block).local, sum(1 for loan in (<Block>block).loans if (<Loan>loan).out()))
        for blocks in arena.blocks for block in blocks
    }
