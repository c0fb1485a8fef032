# The plugin's half of calls over a Link.

from libc.stdint cimport uint32_t, uint64_t

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
    cdef int _handle(self, FrameHeader* header) except -1
    cdef int _check_home(self) except -1
    cdef int _fail(self, FrameHeader* header, error) except -1
    cdef int _reply(self, FrameHeader* request, int kind) except -1
