# Which of a connection's lanes a call takes.

from libc.stdint cimport int64_t

from fastplug.protocols._call cimport Caller
from fastplug.protocols._waiting cimport Turnstile


cdef class Pool(Turnstile):
    cdef list callers                   # one per lane, in the order in which they were opened
    cdef readonly int limit             # lanes that may be open
    cdef bint spread                    # each lane has a worker of its own in the plugin
    cdef object opener                  # callable(index of the lane): asks for it; add() or refused() follows from another thread
    cdef bint opening
    # A lane that nobody has, or this thread's own when it is inside a call. Waits for one, at most until then.
    cdef Caller pick(self, int64_t until, str what)
    cdef Caller free(self, unsigned long me)
    cdef bint ask(self, unsigned long me) except -1
    cdef int relieve(self) except -1
    cdef Py_ssize_t asked               # the lane that was asked for last
    cdef int grow(self) except -1
