"""One connection's way through shared memory: what it lends, what it borrows, and payloads that are too long for the ring."""

import contextvars
import sys

from cpython.object cimport PyObject
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from fastplug._wire cimport MESSAGE_MAX, ArrayPort, Codec, Decoder, Encoder
from fastplug.shm._arena cimport Arena, Block, Ledger, Loan
from fastplug.shm._borrowed cimport Borrowed, Lease
from fastplug.shm._lane cimport Lane
from fastplug.shm._loans cimport watch

from fastplug.errors import ArenaExhausted, RemoteProtocolError

cdef extern from "_atomics.h" nogil:
    void fp_point(const char*)
    enum: FP_DEBUG

SERVING = contextvars.ContextVar("fastplug.serving", default=None)


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

    def begin_serving(self) -> None:
        """Handlers run on this thread from now on: numpy allocates their large arrays in the arena, as soon as there is a numpy."""
        self.serving = True
        if "numpy" in sys.modules:
            self._arrays()

    def end_serving(self) -> None:
        """On the same thread, in the same context."""
        before, self.numpy_before, self.serving = self.numpy_before, None, False
        if before is not None:
            from fastplug.shm._ndarray_memory import restore

            restore(before)

    cdef ArrayPort _arrays(self):
        if self.arrays is None:
            from fastplug.shm._ndarray import ArenaArrays

            self.arrays = ArenaArrays(self)
            if self.serving:
                from fastplug.shm._ndarray_memory import allocate_from

                self.numpy_before = allocate_from(self.arena, True)
        return self.arrays

    cdef int offer(self, PyObject* result) except -1:
        return self.arrays.offer(result) if self.arrays is not None else 0

    cdef int put(self, Encoder enc, object array, Codec codec) except -1:
        return self._arrays().put(enc, array, codec)

    cdef object get(self, Decoder dec, Codec codec):
        return self._arrays().get(dec, codec)

    cdef int skip(self, Decoder dec) except -1:
        return self._arrays().skip(dec)

    cdef int lend(self, Block block, uint32_t* slot) except -1:
        """Notes that the payload names this block: 1, or 0 when the peer's table is full, or it has too many segments."""
        cdef Loan loan = self.ledger.loan(block)
        if loan is None:
            self.borrowed.missing(block.segment_id)     # a further table may have been announced: look
            loan = self.ledger.loan(block)
            if loan is None:
                return 0
        if not loan.told:
            if not self.ledger.tell(block):
                return 0
            loan.told = True
        if FP_DEBUG and block.foreign is None and not block.implicit:
            watch(block)
        self.lending.append(loan)
        block.local += 1                # until commit: another thread may drop the array meanwhile
        self.named += 1
        slot[0] = loan.slot
        return 1

    cdef int lend_taken(self, Block block, uint32_t* slot) except -1:
        """As ``lend``, for a block that was taken for this payload: nobody else has a lease of it."""
        try:
            return self.lend(block, slot)
        finally:
            self.arena.let_go(block)

    cdef int commit(self) except -1:
        cdef Loan loan
        while self.committed:
            self.committed.pop()        # mostly one: clear() is a call of a method
        if self.named:
            for loan in self.lending:
                loan.sent += 1
            for loan in self.lending:
                self.arena.let_go(loan.block)
            self.committed, self.lending = self.lending, self.committed
            self.named = 0
            self.exclusive = None
            if FP_DEBUG:
                fp_point("blocks lent, not published")
        return 0

    cdef int rollback(self) except -1:
        cdef Loan loan
        for loan in self.lending:
            self.arena.let_go(loan.block)
        self.lending.clear()
        self.named = 0
        self.exclusive = None
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
            raise ArenaExhausted(f"{self.ledger.peer} has all {self.ledger.slots} leases, or as many segments, as it has room for; let it drop arrays")
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
        if reference.offset > lease.bytes or reference.bytes > lease.bytes - reference.offset:
            raise RemoteProtocolError(f"a spilled payload of {reference.bytes} bytes at {reference.offset} lies outside of its segment")
        if reference.bytes > <uint64_t>MESSAGE_MAX:
            raise RemoteProtocolError(f"a spilled payload has {reference.bytes} bytes; {MESSAGE_MAX} are allowed")
        target = dec.fill(reference.bytes)
        if not reference.bytes:
            return 0
        lease.reach(reference.offset, reference.offset + reference.bytes)
        source = lease.base + reference.offset
        with nogil:
            memcpy(target, source, reference.bytes)
        return 0
