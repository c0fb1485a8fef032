# One memory segment: created here and sealed, or a peer's, mapped read-only. Other modules take `base` and keep the object.

from libc.stdint cimport uint64_t


cdef class Segment:
    cdef unsigned char* base
    cdef readonly uint64_t bytes
    cdef readonly int fd            # kept open (CLOEXEC) for announcing it, and for private copy-on-write views; -1: not kept
    cdef bint counted               # its descriptor counts among those that are kept
    cdef readonly bint writable     # ours
