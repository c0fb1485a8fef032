# The books of lent memory, between an arena and its peers:
#
#   Block      a piece of a segment
#   Loan       one block and one peer: `sent` here, `returned` in the peer's own table
#   Ledger     what one peer has of an arena: a slot per loan
#   OwnLease   a use that this process itself has of a block
#
# A block is idle when no local lease is left and, for every loan, sent == returned. Nothing shared is ever written by two processes.

from libc.stdint cimport int64_t, uint32_t, uint64_t

from fastplug.shm._queue cimport Queue
from fastplug.shm._segment cimport Segment


cdef class Block:
    # A piece of a segment. In exactly one place: on its class's Shelf, or held (local > 0).
    cdef Owner arena
    cdef Segment segment
    cdef readonly uint32_t segment_id
    cdef readonly uint64_t offset
    cdef readonly uint64_t bytes
    cdef int size_class
    cdef int64_t local                  # local leases: arrays of this process over it, and messages under way that name it
    cdef list loans                     # Loan per peer that ever had it
    cdef uint64_t lent_at               # arena clock when it was last taken
    cdef bint queued                    # on its Shelf
    cdef bint dropped                   # it is no block any more: its bytes are free, or its arena is closed
    cdef object foreign                 # the Lease under which another process lent it to this one; None: it is our own
    cdef bint implicit                  # numpy itself allocated it, inside a handler
    cdef uint64_t seal                  # debug: a checksum of what it had when it was lent
    cdef bint sealed
    cdef bint idle(self)
    cdef bint out(self)                 # lent to somebody


cdef class Shelf:
    cdef list free                      # the last one freed at the end
    cdef Queue lent                     # the one lent first in front
    cdef int put(self, Block block) except -1
    cdef Block take(self, uint64_t bytes)
    cdef Block _come_back(self, uint64_t bytes)
    cdef list clear(self)


cdef class Owner:
    # What a Block and a Ledger need of an arena.
    cdef list segments                  # id -> Segment, or None
    cdef list ledgers
    cdef dict retiring                  # id -> [bytes, ledgers that have not answered]
    cdef int let_go(self, Block block) except -1        # the end of a local lease
    cpdef int retired(self, object segment_id, Ledger ledger) except -1    # a peer has unmapped a retired segment, or is gone


cdef class Loan:
    # One block and one peer. `sent` counts the frames that named it, `returned` is the peer's word for it.
    cdef Block block
    cdef Ledger ledger
    cdef uint32_t slot
    cdef bint told                      # the peer knows the block's segment
    cdef uint64_t sent
    cdef const uint64_t* returned
    cdef bint out(self)                 # not all returned


cdef class Ledger:
    cdef readonly Owner arena
    cdef readonly str peer              # name, for error texts
    cdef list loans                     # slot -> Loan, or None when the slot is unused
    cdef list free_slots
    cdef list tables                    # the peer's table segments
    cdef list retired_counts            # what a reused slot starts from: counters are never reset
    cdef uint64_t slots
    cdef set announced                  # ids of segments that the peer was told of
    cdef object announce                # callable(segment_id, Segment): sends SEGMENT
    cdef object announcing              # lock: each segment is announced once, and before anybody goes on to name it
    cdef object await_room              # callable(done) or None
    cdef bint closed
    cdef Loan loan(self, Block block)
    cdef Loan at(self, uint64_t slot)
    cdef int forget(self, Loan loan) except -1
    cdef int _forget_idle(self) except -1
    cdef int tell(self, Block block) except -1


cdef class OwnLease:
    # A local lease of an own block: the base of arrays over it.
    cdef Block block
    cdef uint32_t mark                  # of the process that made it


cdef OwnLease own_lease(Block block)
cdef OwnLease bare_lease()             # of no block yet

cdef list borrowers_of(Block block)     # names of the peers that have it
cdef int watch(Block block) except -1   # debug: it is about to be lent, or looked at; LocalProtocolError when it was overwritten while lent
