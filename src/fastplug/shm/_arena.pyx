"""The arena: shared memory that this process owns, cut into blocks, lent to peers and taken back without a system call or a lock.

A block that nobody has any more is given out again whole to whoever wants its size class: no cut, no page fault, and the memory is warm. When
none fits, one is cut from the free bytes of a segment (_space.pyx). When no segment has room, idle blocks are dissolved, which merges them with
their neighbours, so a mix of sizes does not use an arena up. Only then a new segment is made.

_loans.pyx has the books. The GIL guards Arena, Ledger and Borrowed: between two calls of Python code an arena is whole. Objects that the
garbage collector tracks are made before an arena is changed, because in Python 3.11 making one may run finalizers, which end leases.
"""

import logging
import threading

from libc.stdint cimport int64_t, uint32_t, uint64_t

from fastplug.shm._loans cimport Shelf, bare_lease, borrowers_of, watch
from fastplug.shm._segment cimport Segment
from fastplug.shm._space cimport PAGE_BYTES, SMALL_BYTES, Space, block_bytes, size_class_of

from fastplug.errors import ArenaExhausted
from fastplug.shm._loans import MAX_SEGMENTS
from fastplug.shm._segment import MAX_SEGMENT_BYTES
from fastplug.shm._segment import Segment as SegmentType

cdef extern from "_atomics.h" nogil:
    enum: FP_DEBUG

_log = logging.getLogger("fastplug.arena")

# An arena starts with one segment of this size, made before the first call.
FIRST_SEGMENT_BYTES = 4 << 20
# Later ones at least double what there is, up to this, or to a part of the limit: few segments, few descriptors, little waste.
GROWTH_BYTES = 64 << 20
GROWTH_FRACTION = 128
# Making a segment takes about 1 ms per MiB: 64 GiB in this time.
GROW_TIMEOUT_S = 60.0
# The next segment is made ahead of time when less than this part of the memory is free, up to half of the limit.
AHEAD_FRACTION = 8
# Less than this part of the limit is to be had: the high-water mark. While it lasts, this many allocations lie between two looks.
SCARCE_FRACTION = 4
SCARCE_LOOKS = 32


cdef class Arena(Owner):
    """Shared memory that this process owns and lends.

    Args:
        limit_bytes: most memory in segments; beyond it ArenaExhausted.
        first_bytes: size of the segment made at once.
        ahead: the next segment is made, and announced, on a thread before this one is used up.
        lasting: the first segment is never given back to the system: connections that come later get it with HELLO.
    """

    def __init__(self, limit_bytes: int, first_bytes: int = FIRST_SEGMENT_BYTES, *, ahead: bool = False, lasting: bool = False):
        self.limit_bytes = limit_bytes
        self.ahead = ahead
        self.lasting = 1 if lasting else 0
        self.segments = []
        self.spaces = []
        self.blocks = []
        self.free_ids = []
        self.shelves = []
        self.ledgers = []
        self.retiring = {}
        self.forwarded = {}
        self.foreign_ids = {}
        self.disowned = set()
        self._grow(min(first_bytes, limit_bytes))

    # -- allocation

    cdef OwnLease lease(self, uint64_t bytes):
        cdef OwnLease lease = bare_lease()
        lease.block = self.take(bytes or 1)      # whose local lease is this one
        return lease

    cdef Block take(self, uint64_t bytes):
        cdef int size_class
        cdef Block block
        if bytes > <uint64_t>MAX_SEGMENT_BYTES:
            raise ArenaExhausted(f"{bytes} bytes are more than any segment can have ({MAX_SEGMENT_BYTES})")
        size_class = size_class_of(bytes)
        while len(self.shelves) <= size_class:
            self.shelves.append(Shelf())
        if self.scarce:
            self._look_at_scarcity()
        block = (<Shelf>self.shelves[size_class]).take(bytes)
        if block is not None:
            self._given(block)
        else:
            bytes = block_bytes(bytes)
            block = self._cut(size_class, bytes)
            while block is None:
                self._make_room(bytes)
                block = self._cut(size_class, bytes)
        self.clock += 1
        block.lent_at = self.clock
        return block

    cdef Block take_spare(self, uint64_t bytes):
        cdef uint64_t kept = bytes + self.limit_bytes // SCARCE_FRACTION
        if self.scarce or kept > self.limit_bytes:
            return None
        if self.limit_bytes - min(self.total_bytes, self.limit_bytes) + self._free_bytes() < kept:
            self._reclaim()
            if self.limit_bytes - min(self.total_bytes, self.limit_bytes) + self._free_bytes() < kept:
                return None
        return self.take(bytes)

    cdef int let_go(self, Block block) except -1:
        block.local -= 1
        if block.local == 0:
            self.settle(block)
        return 0

    cdef Block _given(self, Block block):
        block.local = 1                 # what is taken and not yet lent must not look idle to whoever needs room
        block.sealed = block.implicit = False
        return block

    cdef Block _cut(self, int size_class, uint64_t bytes):
        """A new block, from a segment with room; None when there is none. Later ones tend to be larger."""
        cdef uint64_t align = PAGE_BYTES if bytes >= <uint64_t>(4 * PAGE_BYTES) else 256
        cdef Block block = Block.__new__(Block)
        cdef Space space
        cdef int64_t at
        cdef Py_ssize_t segment_id
        for segment_id in range(len(self.spaces) - 1, -1, -1):
            space = self.spaces[segment_id]
            if space is None:
                continue
            at = space.cut(bytes, align, bytes >= SMALL_BYTES)
            if at >= 0:
                break
        else:
            return None
        block.arena = self
        block.segment = self.segments[segment_id]
        block.segment_id = segment_id
        block.offset = at
        block.bytes = bytes
        block.size_class = size_class
        self.blocks[segment_id][at] = block
        self._given(block)
        self._room_changed()
        return block

    cdef Block block_at(self, uint64_t address):
        cdef Block block
        cdef uint64_t start
        for space, segment, blocks in zip(self.spaces, self.segments, self.blocks):
            start = <uint64_t>(<Segment>segment).base if space is not None else address + 1
            if start <= address < start + (<Segment>segment).bytes:
                block = blocks.get((<Space>space).begin_of(address - start))
                return block if block is not None and address - start < block.offset + block.bytes else None
        return None

    cdef int _dissolve(self, Block block) except -1:
        """An idle block is no block any more: its bytes are free."""
        cdef Loan loan
        block.dropped = True
        for loan in block.loans:
            loan.ledger.forget(loan)
        block.loans = []
        if block.foreign is None:
            (<Space>self.spaces[block.segment_id]).give(block.offset, block.bytes)
            del self.blocks[block.segment_id][block.offset]
        else:
            key = id(block.foreign)
            del self.forwarded[key]
            del self.blocks[block.segment_id][key]
            block.foreign = None
        return 0

    cdef uint64_t _reclaim(self) except? 0xFFFFFFFFFFFFFFFF:
        """Dissolves every idle block; how many bytes that made free. Looks at all that are not in use here."""
        cdef uint64_t found = 0
        cdef Block block
        cdef Shelf shelf
        self._settle_forwarded()
        for shelf in self.shelves:
            for block in shelf.clear():
                if block.dropped or block.local:
                    continue
                if block.idle():
                    found += block.bytes
                    self._dissolve(block)
                else:
                    shelf.put(block)
        return found

    cdef int settle(self, Block block) except -1:
        if block.queued or block.dropped or block.local or block.foreign is not None:
            return 0
        return (<Shelf>self.shelves[block.size_class]).put(block)

    # -- room

    cdef uint64_t _free_bytes(self):
        cdef uint64_t found = 0
        cdef Space space
        for space in self.spaces:
            if space is not None:
                found += space.free_bytes
        return found

    def _room_changed(self):
        """Something was cut: is there enough left, and will there be?"""
        cdef uint64_t free = self._free_bytes()
        if self.ahead and self.growing is None and free < self.total_bytes // AHEAD_FRACTION:
            bytes = min(self._growth_bytes(), self.total_bytes)
            if self.total_bytes + bytes <= self.limit_bytes // 2:
                self._grow_ahead(bytes)
        if not self.scarce and self.limit_bytes - min(self.total_bytes, self.limit_bytes) + free < self.limit_bytes // SCARCE_FRACTION:
            self.looks = 0
            self._look_at_scarcity()

    cdef int _look_at_scarcity(self) except -1:
        self.looks -= 1
        if self.looks > 0:
            return 0
        self.looks = SCARCE_LOOKS
        self._reclaim()
        free = self._free_bytes()
        self.scarce = self.limit_bytes - min(self.total_bytes, self.limit_bytes) + free < self.limit_bytes // SCARCE_FRACTION
        return 0

    def _growth_bytes(self):
        return max(GROWTH_BYTES, self.limit_bytes // GROWTH_FRACTION)

    def _make_room(self, bytes):
        """One step towards room for ``bytes``: idle blocks, a segment on its way, a new one, one in place of idle ones. Or ArenaExhausted."""
        if self._reclaim():
            return
        growing = self.growing
        if growing is not None:
            return growing.wait(GROW_TIMEOUT_S)
        open_segments = sum(1 for segment in self.segments if segment is not None)
        for size in (max(bytes, min(self._growth_bytes(), self.total_bytes)), bytes):
            if self.total_bytes + size <= self.limit_bytes and open_segments < MAX_SEGMENTS:
                return self._grow(size)
        idle = [i for i, blocks in enumerate(self.blocks) if i >= self.lasting and self.spaces[i] is not None and not blocks]
        to_spare = sum(self.segments[i].bytes for i in idle) + sum(entry[0] for entry in self.retiring.values())
        if self.total_bytes - to_spare + bytes > self.limit_bytes:
            raise ArenaExhausted(self._exhausted(bytes))
        for segment_id in idle:
            self._retire(segment_id)
        self._await_room(bytes)
        if self.total_bytes + bytes > self.limit_bytes:
            raise ArenaExhausted(self._exhausted(bytes))
        self._grow(bytes)

    def _await_room(self, bytes):
        """Peers answer RETIRE at once, unless they hang; only then the memory is free for a new segment."""
        for ledger in {ledger for _, told in self.retiring.values() for ledger in told}:
            if (<Ledger>ledger).await_room is not None:
                (<Ledger>ledger).await_room(lambda: self.total_bytes + bytes <= self.limit_bytes)

    def _grow(self, bytes):
        self.total_bytes += (size := -(-bytes // PAGE_BYTES) * PAGE_BYTES)      # before the GIL is released in create()
        try:
            segment = SegmentType.create(size, "fastplug-arena")
            if self.closed:
                raise ArenaExhausted("the arena was closed meanwhile")
        except BaseException:
            self.total_bytes -= min(size, self.total_bytes)
            raise
        self._enter(segment, Space(size))

    def _enter(self, segment, space):
        """Returns the segment's id: one that no peer has any more, so that ids, and what is looked through for each, stay few."""
        blocks = {}
        if not self.free_ids:
            self.free_ids.append(len(self.segments))
            for column in (self.segments, self.spaces, self.blocks):
                column.append(None)
        at = self.free_ids.pop()
        self.blocks[at], self.segments[at], self.spaces[at] = blocks, segment, space
        return at

    def _grow_ahead(self, bytes):
        done = self.growing = threading.Event()
        try:
            threading.Thread(target=self._grow_on_thread, args=(bytes, done), name="fastplug arena", daemon=True).start()
        except RuntimeError:            # no thread to be had, or the interpreter ends
            self.growing = None

    def _grow_on_thread(self, bytes, done):
        try:
            self._grow(bytes)
            for ledger in list(self.ledgers):
                ledger.announce_all()   # so that the peer maps it ahead of time, too
        except Exception as error:
            _log.debug("no segment was made ahead of time: %s", error)
        finally:
            self.growing = None
            done.set()

    def _retire(self, segment_id):
        """Gives a segment without blocks back to the system: sealed memory is freed when both sides have unmapped it."""
        segment, own = self.segments[segment_id], self.spaces[segment_id] is not None
        self.segments[segment_id] = self.spaces[segment_id] = None
        told = [ledger for ledger in self.ledgers if segment_id in (<Ledger>ledger).announced]
        for ledger in told:
            (<Ledger>ledger).announced.discard(segment_id)
        if not own:
            self.foreign_ids.pop(id(segment), None)
        self.retiring[segment_id] = [segment.bytes if own else 0, told]
        self.retired(segment_id, None)
        for ledger in list(told):
            (<Ledger>ledger).announce(segment_id, None)

    cpdef int retired(self, object segment_id, Ledger ledger) except -1:
        if segment_id not in self.retiring:
            return 0
        size, told = self.retiring[segment_id]
        if ledger in told:
            told.remove(ledger)
        if not told:
            self.total_bytes -= min(size, self.total_bytes)
            del self.retiring[segment_id]
            self.free_ids.append(segment_id)
        return 0

    # -- memory of another process that is lent on

    cdef Block forward(self, object lease, Segment segment):
        cdef Block block = self.forwarded.get(id(lease))
        if block is None:
            self._settle_forwarded()
            block = Block.__new__(Block)
            segment_id = self.foreign_ids.get(id(segment))
            if segment_id is None:
                segment_id = self.foreign_ids[id(segment)] = self._enter(segment, None)
            block.arena = self
            block.segment = segment
            block.segment_id = segment_id
            block.bytes = segment.bytes
            block.foreign = lease
            self.forwarded[id(lease)] = self.blocks[segment_id][id(lease)] = block
        self.clock += 1
        block.lent_at = self.clock
        block.local += 1
        return block

    def _settle_forwarded(self):
        cdef Block block
        for block in list(self.forwarded.values()):
            if block.idle():
                self._dissolve(block)
        for segment_id in list(self.disowned):
            if not self.blocks[segment_id]:
                self.disowned.discard(segment_id)
                self._retire(segment_id)

    def disown(self, segment: Segment | None) -> None:
        """Another process's segment goes: its owner gives it up or is gone. What was lent on of it stays until it comes back."""
        segment_id = self.foreign_ids.get(id(segment))
        if segment_id is not None:
            self.disowned.add(segment_id)
            self._settle_forwarded()

    # -- faces

    @property
    def watches(self) -> bool:
        """A debug build: what is lent is looked at now and then."""
        return FP_DEBUG != 0

    def check_lent(self) -> None:
        """Debug builds: raises LocalProtocolError when a block was overwritten while it was lent."""
        cdef Block block
        for blocks in list(self.blocks):
            for block in list(blocks.values()):
                if block.sealed and block.foreign is None:
                    watch(block)

    def first_segment(self) -> Segment:
        """The segment that travels with HELLO; its id is 0."""
        return self.segments[0]

    def allocate(self, bytes: int) -> OwnLease:
        """A block for ``bytes`` bytes, as a lease: its memory is free again when the lease and all loans are gone. Raises ArenaExhausted."""
        return self.lease(bytes)

    def close(self) -> None:
        """Nothing is taken from it any more: each segment goes with the last array over it."""
        cdef Block block
        self.closed = True
        for blocks in self.blocks:
            for block in blocks.values():
                block.dropped = True        # nobody looks for it in a free list again
                block.foreign = None
        self.segments = []
        self.spaces = []
        self.blocks = []
        self.free_ids = []
        self.shelves = []
        self.forwarded = {}
        self.foreign_ids = {}
        self.disowned = set()
        self.total_bytes = 0
        self.limit_bytes = 0

    # -- what it says of itself

    def _all_blocks(self):
        return [block for blocks in self.blocks for block in blocks.values()]

    def _oldest(self):
        """(block, names of its borrowers), the one first that was lent first."""
        out = [block for block in self._all_blocks() if (<Block>block).out()]
        return [(block, borrowers_of(block)) for block in sorted(out, key=_age)]

    def _exhausted(self, bytes):
        out = self._oldest()
        oldest = ", ".join(
            f"{(<Block>block).bytes} bytes lent to {' and '.join(peers)} {self.clock - (<Block>block).lent_at} allocations ago" for block, peers in out[:3]
        )
        local = sum((<Block>block).bytes for block in self._all_blocks() if (<Block>block).local)
        return (
            f"{bytes} bytes of shared memory are not to be had: {self.total_bytes} of at most {self.limit_bytes} bytes are in segments, "
            f"{local} bytes are in arrays of this process, {len(out)} blocks are lent"
            + (f" (oldest: {oldest})" if oldest else "")
            + ". Drop arrays that are no longer needed on either side, or raise arena_limit_bytes."
        )

    def stats(self) -> dict:
        """Segments, bytes and blocks at this moment; ``oldest_lent``: who has the block that was lent first, or None."""
        blocks = self._all_blocks()
        out = self._oldest()
        oldest = None
        if out:
            block, peers = out[0]
            oldest = {"peers": peers, "bytes": (<Block>block).bytes, "allocations_ago": self.clock - (<Block>block).lent_at}
        return {
            "segments": sum(1 for segment in self.segments if segment is not None),
            "bytes": self.total_bytes,
            "limit_bytes": self.limit_bytes,
            "free_bytes": self._free_bytes(),
            "scarce": bool(self.scarce),
            "blocks": len(blocks),
            "blocks_in_use": sum(1 for block in blocks if (<Block>block).local),
            "blocks_lent": sum(1 for block in blocks if not (<Block>block).local and (<Block>block).out()),
            "oldest_lent": oldest,
        }


def _age(block):
    return (<Block>block).lent_at


def lease_counts(arena: Arena) -> dict:
    """Local leases and loans out, by block offset: what the debug checks and tests look at."""
    return {
        ((<Block>block).segment_id, (<Block>block).offset): ((<Block>block).local, len(borrowers_of(block)))
        for block in arena._all_blocks()
    }
