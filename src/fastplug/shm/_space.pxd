# Sizes of blocks, and the free bytes of one segment.

from libc.stdint cimport int64_t, uint64_t

cdef enum:
    PAGE_BYTES = 4096
    MIN_BITS = 10               # the smallest block has 1 KiB: smaller arrays travel inline
    SMALL_BYTES = 64 << 10      # smaller blocks are cut from the low end of a segment, larger ones from the high end
    EXACT_BYTES = 16 << 20      # from here on a block is as long as what was asked for, in pages: a quarter of that is too much to waste

cdef int size_class_of(uint64_t bytes)
cdef uint64_t block_bytes(uint64_t bytes)       # what is cut for so many bytes


cdef class Space:
    cdef list starts                    # of free extents, ascending; no two touch
    cdef list ends
    cdef list cuts                      # where what was cut begins, ascending
    cdef readonly uint64_t bytes        # of the segment
    cdef readonly uint64_t free_bytes
    cdef uint64_t largest               # no extent is larger; may be more than the largest has
    cdef int64_t cut(self, uint64_t bytes, uint64_t align, bint from_end) except -2     # -1: there is none
    cdef int64_t begin_of(self, uint64_t offset)        # of what was cut at or in front of it; -1: nothing was
    cdef int give(self, uint64_t offset, uint64_t bytes) except -1
    cdef int _take(self, Py_ssize_t i, uint64_t start, uint64_t end, uint64_t at, uint64_t until) except -1
