# The part of a caller that reads for calls that nobody waits in.

from libc.stdint cimport int64_t

from fastplug.protocols._reading cimport Reading
from fastplug.protocols._turn cimport Pending


cdef class Told(Reading):
    cdef object reader                  # the thread that reads for Calls with done-callbacks; None: there is none
    cdef Py_ssize_t watched             # how many there are
    cdef object wanted                  # an Event: there is one
    cdef int watch(self, Pending call, object function) except -1
    cdef object farewell                # the thread that learns why the link has ended, for loops; None: there is none
    cdef int read_some(self, int64_t until, int frames, bint on_loop) except -1
    cdef int fail_soon(self, object error) except -1
