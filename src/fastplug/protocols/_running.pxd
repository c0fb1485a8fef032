# The call whose handler runs.

from libc.stdint cimport int64_t, uint64_t

from fastplug.protocols._activity cimport Activation
from fastplug.protocols._answering cimport Answering


cdef class Running(Answering):
    # For contexts and cancellation. A context is made when the handler, or a cancellation, asks for one.
    cdef readonly uint64_t running      # its id; 0 when none runs (ids start at random and 0 is never met)
    cdef readonly unsigned long thread  # that runs handlers here
    cdef int64_t until_ns               # the caller's deadline, 0 without one
    cdef dict metadata
    cdef object context
    cdef Activation current             # None for a plain call
    cdef dict below                     # call -> Context, of plain calls that wait while others run on top of them
    cdef dict cancelled                 # call -> None, in order of arrival: cancelled before their handlers began
    cdef int awaited                    # handlers on the stack whose callers wait on this lane
    cdef object own_context(self)
    cdef tuple suspend(self)
    cdef int resume(self, tuple outer) except -1
    cdef inline int left(self, tuple outer) except -1:
        # A handler has come back: what ran before it goes on.
        self.depth -= 1
        self.running = 0
        self.context = None
        return 0 if outer is None else self.resume(outer)
    cdef inline bint came(self, uint64_t call) except -1:
        # A call has: whether its cancellation was here before it. One that comes from now on finds it in `active`, or running.
        if call > self.last:
            self.last = call
        return len(self.cancelled) > 0 and self.given_up(call)
    cdef bint given_up(self, uint64_t call) except -1
