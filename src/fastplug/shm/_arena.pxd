# An arena: memory that one process owns and lends. Three parties:
#
#   Arena      the owner's allocator: segments cut into blocks, blocks recycled by size class, split and merged (_space.pyx)
#   Ledger     what one peer has of an arena (_loans.pyx)
#   Borrowed   the other side: a peer's segments mapped read-only, and our table of returned leases (_borrowed.pyx)

from libc.stdint cimport int64_t, uint32_t, uint64_t

# Declared there, and meant to be cimported from here.
from fastplug.shm._loans cimport Block, Ledger, Loan, OwnLease, Owner, own_lease
from fastplug.shm._segment cimport Segment
from fastplug.shm._space cimport Space


cdef class Arena(Owner):
    cdef readonly uint64_t limit_bytes
    cdef readonly uint64_t total_bytes
    cdef readonly uint64_t clock
    cdef readonly bint scarce           # over the high-water mark: what is lent now is to be copied by whoever receives it
    cdef readonly bint closed
    cdef list spaces                    # id -> Space; None for segments that are gone, or another process's
    cdef list blocks                    # id -> dict: offset -> Block; of another process's segments: key -> Block
    cdef list free_ids                  # of segments that are gone, here and at every peer
    cdef list shelves                   # size class -> Shelf
    cdef uint64_t lasting               # segments below this id are never given back
    cdef bint ahead                     # segments are made before they are needed, on a thread
    cdef object growing                 # Event while a thread makes one
    cdef int looks                      # until scarcity is looked at again
    cdef dict forwarded                 # id of a Lease -> Block that stands for it
    cdef dict foreign_ids               # id of another process's Segment -> its id here
    cdef set disowned                   # ids of such segments whose owner has given them up
    cdef OwnLease lease(self, uint64_t bytes)           # memory that is free again when the lease and all loans are gone; ArenaExhausted
    cdef Block take(self, uint64_t bytes)               # with one local lease, the caller's; ArenaExhausted
    cdef Block take_spare(self, uint64_t bytes)         # the same, but never from the last part of the limit: None then
    cdef int settle(self, Block block) except -1        # a local lease ended, or the block was named: put it where it belongs
    cdef Block forward(self, object lease, Segment segment)     # the same for memory that another process lent to this one
    cdef Block block_at(self, uint64_t address)         # our block that has this byte, or None
    cdef Block _given(self, Block block)
    cdef Block _cut(self, int size_class, uint64_t bytes)
    cdef int _dissolve(self, Block block) except -1
    cdef uint64_t _reclaim(self) except? 0xFFFFFFFFFFFFFFFF
    cdef uint64_t _free_bytes(self)
    cdef int _look_at_scarcity(self) except -1
