# An arena: memory that one process owns and lends. Three parties:
#
#   Arena      the owner's allocator: segments cut into blocks, recycled by size class
#   Ledger     what one peer has of an arena: a slot per lent block, `sent` here, `returned` in the peer's own table
#   Borrowed   the other side: a peer's segments mapped read-only, and our table of returned leases
#
# A block is free when no local lease is left and, for every loan, sent == returned. Nothing shared is ever written by two processes.

from libc.stdint cimport int64_t, uint32_t, uint64_t

from fastplug.shm._segment cimport Segment


cdef class Block:
    # A piece of a segment, for ever of one size class. In exactly one place: the free list, the lent queue, or held (local > 0).
    cdef Arena arena
    cdef Segment segment
    cdef readonly uint32_t segment_id
    cdef readonly uint64_t offset
    cdef readonly uint64_t bytes
    cdef int size_class
    cdef int64_t local                  # local leases: arrays of this process over it, and messages under way that name it
    cdef list loans                     # Loan per peer that ever had it
    cdef uint64_t lent_at               # arena clock when it was last taken
    cdef bint queued                    # in the free list or the lent queue
    cdef bint dropped                   # its segment was reset or retired
    cdef bint idle(self)


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
    cdef readonly Arena arena
    cdef readonly str peer              # name, for error texts
    cdef list loans                     # slot -> Loan, or None when the slot is unused
    cdef list free_slots
    cdef list tables                    # the peer's table segments
    cdef list retired_counts            # what a reused slot starts from: counters are never reset
    cdef uint64_t slots
    cdef set announced                  # ids of segments that the peer was told of
    cdef object announce                # callable(segment_id, Segment): sends SEGMENT
    cdef object announcing              # lock: each segment is announced once, and before anybody goes on to name it
    cdef bint closed
    cdef Loan loan(self, Block block)
    cdef Loan at(self, uint64_t slot)
    cdef int _forget(self, Loan loan) except -1
    cdef int _forget_idle(self) except -1
    cdef int tell(self, Block block) except -1


cdef class OwnLease:
    # A local lease of an own block: the base of arrays over it.
    cdef Block block
    cdef uint32_t mark                  # of the process that made it


cdef OwnLease own_lease(Block block)


cdef class Arena:
    cdef readonly uint64_t limit_bytes
    cdef readonly uint64_t total_bytes
    cdef readonly uint64_t clock
    cdef list segments                  # id -> Segment, or None
    cdef list used                      # id -> bytes cut off so far
    cdef list blocks                    # id -> list of Block
    cdef list free                      # size class -> list of Block
    cdef list lent                      # size class -> deque of Block, oldest first
    cdef list ledgers
    cdef object await_room              # callable(bytes) or None
    cdef dict retiring                  # id -> [bytes, ledgers that have not answered]
    cdef Block take(self, uint64_t bytes)               # with one local lease, the caller's; ArenaExhausted
    cdef int let_go(self, Block block) except -1        # the end of a local lease
    cdef int settle(self, Block block) except -1        # a local lease ended, or the block was named: put it where it belongs
    cdef Block _recycle(self, int size_class)
    cdef Block _cut(self, int size_class)
