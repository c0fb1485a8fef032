# The plugin's half of calls over a Link.

cimport cython
from libc.stdint cimport int64_t, uint64_t

from fastplug._wire cimport Decoder, FrameHeader
from fastplug.protocols._activity cimport Activation, PluginReferences
from fastplug.protocols._answering cimport Answering
from fastplug.protocols._served cimport Served


cdef enum Phase:        # of a plain request
    DECODING, RUNNING, ENCODING


@cython.final
cdef class Server(Answering):
    # One connection's serving side: runs handlers one after another on the thread that calls run().
    cdef PluginReferences references
    cdef object ready                   # Activations whose handler has not been run: a deque
    cdef bint kept                      # there may be some
    cdef readonly object tasks          # the event loop of the connection
    cdef readonly uint64_t calls
    # The call whose handler runs, for contexts and cancellation. A context is made when the handler, or a cancellation, asks for one.
    cdef readonly uint64_t running      # its id; 0 when none runs (ids start at random and 0 is never met)
    cdef readonly unsigned long thread  # that runs handlers here
    cdef int64_t until_ns               # the caller's deadline, 0 without one
    cdef dict metadata
    cdef object context
    cdef Activation current             # None for a plain call
    cdef dict below                     # call -> Context, of plain calls that wait while others run on top of them
    cdef dict cancelled                 # call -> None, in order of arrival: cancelled before their handlers began
    cdef int awaited                    # handlers on the stack whose callers wait on this lane
    cdef bint runnable(self) except -1  # step() would not wait
    cdef object own_context(self)
    cdef tuple suspend(self)
    cdef int resume(self, tuple outer) except -1
    cdef inline bint came(self, uint64_t call) except -1:
        # A call has: whether its cancellation was here before it. One that comes from now on finds it in `active`, or running.
        if call > self.last:
            self.last = call
        return len(self.cancelled) > 0 and self.given_up(call)
    cdef bint given_up(self, uint64_t call) except -1
    cdef int take(self, FrameHeader* header) except -1
    cdef Py_ssize_t next_kept(self) except -2
    cdef int go_on(self) except -1
    cdef Served served(self, FrameHeader* header)
    cdef Activation request(self, FrameHeader* header, bint last)
    cdef int keep(self, Activation call) except -1
    cdef int unpack(self, FrameHeader* header) except -1
    cdef int packed_requests(self, FrameHeader* header) except -1
    cdef int run_together(self, FrameHeader* one, Served served, Decoder dec, uint64_t end) except -1
    cdef int plain(self, FrameHeader* header, Served served, Decoder dec, bint last) except -1
    cdef object unbuilt(self, FrameHeader* header, object error)
    cdef int left(self, tuple outer) except -1
    cdef int run_one(self, Activation call) except -1
    cdef int launch(self, Activation call) except -1
