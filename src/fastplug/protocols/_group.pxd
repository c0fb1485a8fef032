# Several lanes that one thread serves.

from fastplug.protocols._serve cimport Server
from fastplug.shm._lanes cimport Lanes


cdef class Group:
    cdef list servers                   # one per lane, in the order in which they were opened
    cdef Lanes lanes
    cdef readonly Server at             # whose handler runs, None when none does
    cdef int hot                        # the lane that was served last
    cpdef int step(self) except -1
    cpdef bint runs_handler(self) except -1
    cdef int serve(self, int place) except -1
