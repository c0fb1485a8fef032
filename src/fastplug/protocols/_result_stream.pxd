# What a call gives that is declared to return a stream.

from fastplug.protocols._turn cimport Pending


cdef class ResultStream:
    # What a call gives that returns a stream.
    cdef Pending call
    cdef bint closed
    cdef bint iterated                  # somebody waits for an item
    cdef int check_free(self) except -1
    cdef int leave(self) except -1
    cdef object fetch(self, bint* found)
    cdef object take(self, bint* found)
    cdef int give_up(self) except -1


cdef object stream_of(Pending call)
