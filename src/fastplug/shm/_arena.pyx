"""The arena: blocks of shared memory, lent to peers and taken back without a system call or a lock.

Theory. A block is named in frames; each naming is a lease that the receiver must give back once. The owner counts ``sent`` per peer in
its private memory; the receiver counts ``returned`` in a table segment of its own, which the owner maps read-only. The two are equal
when nothing is out. After a crash the owner drops what it had sent there; nothing shared needs repair.

A block that comes back to its owner in a frame (form HOME) is protected by the sender's lease until the owner's ``head`` is past that frame
(Lane.hold); by then the owner has a local lease of its own.

This module is the owner's side; _borrowed.pyx is the reader's, _port.pyx joins the two to a connection. The GIL guards Arena, Ledger and
Borrowed; leases may end on any thread.
"""

import collections
import threading

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
    uint64_t fp_load_returned(const uint64_t*)
    int fp_fork_init()
    uint32_t fp_mark()
    int fp_is_home(uint32_t)

# An arena starts with one segment of this size, made before the first call.
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
            self.block.arena.let_go(self.block)


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
        self.announcing = threading.Lock()
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

    def announced_segment(self, segment_id: int) -> Segment | None:
        """The segment, when this peer was told of it and it is still there."""
        return self.arena.segments[segment_id] if segment_id in self.announced else None

    cdef int tell(self, Block block) except -1:
        if block.segment_id not in self.announced:
            self._announce(block.segment_id, block.segment)
        return 0

    def _announce(self, segment_id, segment):
        with self.announcing:           # whoever comes second goes on only when the message is in the socket
            if segment_id not in self.announced:
                self.announce(segment_id, segment)
                self.announced.add(segment_id)

    def announce_all(self) -> None:
        """Tells the peer of every segment that there is, so that it can map them before a frame names them."""
        for segment_id, segment in enumerate(list(self.arena.segments)):
            if segment is not None and not self.closed:
                self._announce(segment_id, segment)

    cdef Loan loan(self, Block block):
        """The loan of this block to this peer, made when there is none; None when all slots are in use."""
        cdef Loan loan
        for loan in block.loans:
            if loan.ledger is self:
                return loan
        if not self.free_slots and <uint64_t>len(self.loans) == self.slots:
            self._forget_idle()
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

    cdef int _forget_idle(self) except -1:
        """All slots are in use: those of blocks that the peer has given back are free for others."""
        cdef Loan loan
        for loan in list(self.loans):
            if loan is not None and not loan.out() and not loan.block.local:
                loan.block.loans.remove(loan)
                self._forget(loan)
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
    def tables_known(self) -> int:
        """How many tables of the peer are mapped."""
        return len(self.tables)

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
        block.local = 1                 # what is taken and not yet lent must not look idle to whoever needs room
        return block

    cdef int let_go(self, Block block) except -1:
        block.local -= 1
        if block.local == 0:
            self.settle(block)
        return 0

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
        try:
            return own_lease(block)
        finally:
            self.let_go(block)

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


def lease_counts(arena: Arena) -> dict:
    """Local leases and loans out, by block offset: what the debug checks and tests look at."""
    return {
        (block.segment_id, block.offset): ((<Block>block).local, sum(1 for loan in (<Block>block).loans if (<Loan>loan).out()))
        for blocks in arena.blocks for block in blocks
    }
