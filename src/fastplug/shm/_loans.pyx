"""The books of lent memory: blocks, what each peer has of them, and the leases of this process itself.

Theory. A block is named in frames; each naming is a lease that the receiver must give back once. The owner counts ``sent`` per peer in
its private memory; the receiver counts ``returned`` in a table segment of its own, which the owner maps read-only. The two are equal
when nothing is out. After a crash the owner drops what it had sent there; nothing shared needs repair.

A block that comes back to its owner in a frame (form HOME) is protected by the sender's lease until the owner's ``head`` is past that frame
(Lane.hold); by then the owner has a local lease of its own. The GIL guards all of this; leases may end on any thread.
"""

import threading

cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t

from fastplug.shm._segment cimport Segment

from fastplug.errors import LocalProtocolError, RemoteProtocolError

cdef extern from "_atomics.h" nogil:
    uint64_t fp_load_returned(const uint64_t*)
    int fp_fork_init()
    uint32_t fp_mark()
    int fp_is_home(uint32_t)

# Slots of one table: 64 KiB of counters. Blocks lent at the same time to one peer; beyond it a further table is asked for.
TABLE_SLOTS = 8192
MAX_TABLES = 16
# A receiver keeps at most this many segments of one peer mapped: each costs a descriptor.
MAX_SEGMENTS = 256
# What is lent on from elsewhere leaves room for an arena's own, of which there are about as many (GROWTH_FRACTION).
MAX_FOREIGN = MAX_SEGMENTS // 2
cdef enum:
    RECYCLE_LOOKS = 16      # blocks that are looked at before memory is cut: bounds the cost of an allocation
    SAMPLES = 64            # words of a lent block that debug builds compare

if fp_fork_init():
    raise ImportError("MADV_WIPEONFORK is missing: shared memory needs Linux 4.14 or later")


cdef class Block:
    """A piece of an arena's segment."""

    def __cinit__(self):
        self.loans = []

    cdef bint idle(self):
        return not self.local and not self.out()

    cdef bint out(self):
        cdef Loan loan
        for loan in self.loans:
            if loan.out():
                return True
        return False


cdef class Shelf:
    """Blocks of one size class that this process does not use: those that are free, and those that peers still have or had."""

    def __cinit__(self):
        self.free = []
        self.lent = Queue()

    cdef int put(self, Block block) except -1:
        block.queued = True
        if block.idle():
            self.free.append(block)
        else:
            self.lent.put(block)
        return 0

    cdef Block take(self, uint64_t bytes):
        """A block that nobody has any more, the warmest first: one that just came back, then the last one freed. None: there is none."""
        cdef Block block = self._come_back(bytes)
        cdef Py_ssize_t i, looks
        if block is not None:
            return block
        for i in range(len(self.free) - 1, max(-1, len(self.free) - 1 - RECYCLE_LOOKS), -1):
            block = self.free[i]
            if block.bytes < bytes and not block.dropped:
                continue                # of the class, but shorter: they are exact there
            del self.free[i]
            block.queued = False
            if block.dropped:
                continue
            if block.idle():
                return block
            self.put(block)
        for looks in range(min(RECYCLE_LOOKS, self.lent.count())):
            self.lent.put(self.lent.take())     # the one in front may be kept for long
            block = self._come_back(bytes)
            if block is not None:
                return block
        return None

    cdef Block _come_back(self, uint64_t bytes):
        """Of the lent blocks in front that came back, the one lent last; the others are free. So a stream goes round as few as are under way."""
        cdef Block block, found = None
        cdef Py_ssize_t looks
        for looks in range(min(RECYCLE_LOOKS, self.lent.count())):
            block = self.lent.front()
            if block.out():
                break
            self.lent.take()
            block.queued = False
            if block.dropped or block.local:
                continue
            if found is not None:
                self.put(found)
            found = block
        if found is not None and found.bytes < bytes:
            self.put(found)
            return None
        return found

    cdef list clear(self):
        """Everything that is on it."""
        cdef list found, free = []
        cdef Block block
        cdef Queue lent = Queue()
        free, self.free = self.free, free               # both were made before: see Arena
        lent, self.lent = self.lent, lent
        found = free + lent.all()
        for block in found:
            block.queued = False
        return found


cdef list borrowers_of(Block block):
    return [(<Loan>loan).ledger.peer for loan in block.loans if (<Loan>loan).out()]


cdef uint64_t _checksum(Block block):
    """Of words all over the block: FNV-1a."""
    cdef const uint64_t* words = <const uint64_t*>(block.segment.base + block.offset)
    cdef uint64_t count = block.bytes // 8, found = 14695981039346656037u, step = max(<uint64_t>1, count // SAMPLES), i
    for i in range(0, count, step):
        found = (found ^ words[i]) * 1099511628211u
    return found


cdef int watch(Block block) except -1:
    """Nothing but what is lent now and was lent when it had another checksum has been overwritten: who gives it back ends the watch."""
    cdef uint64_t found = _checksum(block)
    if block.sealed and found != block.seal and block.out():
        block.sealed = False            # said once
        raise LocalProtocolError(
            f"a block of {block.bytes} bytes was overwritten while it was lent to {', '.join(borrowers_of(block))}: "
            "whoever has it sees the change. Use client.blocks(), which waits, or a new array."
        )
    if not block.out():
        block.seal = found
        block.sealed = True
    return 0


cdef class Owner:
    """What blocks and ledgers know of their arena."""

    cdef int let_go(self, Block block) except -1:
        raise NotImplementedError

    cpdef int retired(self, object segment_id, Ledger ledger) except -1:
        raise NotImplementedError


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


cdef OwnLease bare_lease():
    cdef OwnLease lease = OwnLease.__new__(OwnLease)
    lease.mark = fp_mark()
    return lease


cdef OwnLease own_lease(Block block):
    cdef OwnLease lease = bare_lease()
    lease.block = block
    block.local += 1
    return lease


cdef class Ledger:
    """What one peer has of an arena.

    Args:
        arena: ours.
        peer: its name, for error texts.
        announce: called with (segment id, Segment) before the peer sees a segment named for the first time, and with (id, None) when
            it will be named no more.
        await_room: called with a function while the peer is asked to give up segments; returns when that says True, or after a while.
    """

    def __init__(self, arena: Owner, peer: str, announce, await_room=None):
        self.arena = arena
        self.peer = peer
        self.announce = announce
        self.await_room = await_room
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
        """1: the peer has the block's segment now; 0: it has as many as it takes, with one more it would end the connection."""
        if block.segment_id in self.announced:
            return 1
        return self._announce(block.segment_id, block.segment, MAX_SEGMENTS if block.foreign is None else MAX_FOREIGN)

    def _announce(self, segment_id, segment, most):
        with self.announcing:           # whoever comes second goes on only when the message is in the socket
            if segment_id not in self.announced:
                if len(self.announced) >= most:
                    return 0
                self.announce(segment_id, segment)
                self.announced.add(segment_id)
        return 1

    def announce_all(self) -> None:
        """Tells the peer of every segment that there is and that it can have, so that it can map them before a frame names them."""
        for segment_id, segment in enumerate(list(self.arena.segments)):
            if segment is not None and not self.closed:
                self._announce(segment_id, segment, MAX_FOREIGN)

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

    cdef int forget(self, Loan loan) except -1:
        """The block is idle and goes: the slot is free for another one, its counter goes on."""
        if not self.closed:
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
                self.forget(loan)
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
