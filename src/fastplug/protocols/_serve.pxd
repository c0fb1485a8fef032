# The plugin's half of calls over a Link.

from libc.stdint cimport int64_t, uint32_t, uint64_t

from fastplug._wire cimport ArrayPort, Decoder, Encoder, FrameHeader, Link
from fastplug.shm._port cimport ArenaPort


cdef class Server:
    # One connection's serving side: runs handlers one after another on the thread that calls run().
    cdef readonly Link link
    cdef readonly ArrayPort port
    cdef ArenaPort arena_port
    cdef Encoder enc
    cdef Decoder dec
    cdef list interfaces                # index -> list of (MethodCodec, handler)
    cdef uint32_t mark                  # of the process that made it: a fork of that one must not answer
    cdef readonly uint64_t calls
    # The call whose handler runs, for contexts and cancellation. A context is made when the handler, or a cancellation, asks for one.
    cdef readonly uint64_t running      # its id; 0 when none runs (ids start at random and 0 is never met)
    cdef readonly unsigned long thread  # that runs handlers here
    cdef int64_t until_ns               # the caller's deadline, 0 without one
    cdef dict metadata
    cdef object context
    cdef dict cancelled                 # call -> None, in order of arrival: cancelled before their handlers began
    cdef object _check_begun(self, uint64_t call)
    cdef int _handle(self, FrameHeader* header) except -1
    cdef int _check_home(self) except -1
    cdef int _fail(self, FrameHeader* header, error) except -1
    cdef int _reply(self, FrameHeader* request, int kind) except -1
