# How the waits of one connection ended, and where this process runs while it waits.

cimport cython
from libc.stdint cimport int64_t, uint64_t

cdef enum:
    # So many waits that ended while spinning, and all is well again.
    WELL_SPINS = 1024


@cython.final
cdef class Placement:
    cdef readonly uint64_t spins        # waits that ended while spinning, and that slept
    cdef readonly uint64_t sleeps
    cdef readonly uint64_t moves        # how often this side went to another CPU
    cdef readonly int patience          # with a peer on the same CPU: waits before that
    cdef int least
    cdef int shared                     # waits on one CPU in a row
    cdef int64_t shared_at              # when the last one was
    # The peer runs on our CPU: whether we do so no more.
    cdef bint leaves(self) noexcept
    cdef inline void spun(self) noexcept:
        self.spins += 1
        if not self.spins % WELL_SPINS:
            self.patience = self.least
