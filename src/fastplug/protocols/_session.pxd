# What both halves of a connection do with frames: encode, spill, lend, send, and read on while there is no room.

from libc.stdint cimport int64_t, uint32_t, uint64_t

from fastplug._wire cimport ArrayPort, Decoder, Encoder, FrameHeader, Link, MethodCodec
from fastplug.shm._port cimport ArenaPort


cdef enum:
    NEWEST_VERSION = 3      # handshake.environment.FAST_VERSIONS


cdef class Session:
    cdef readonly Link link
    cdef readonly ArrayPort port
    cdef ArenaPort arena_port           # the port, when it is one
    cdef Encoder enc
    cdef Decoder dec
    cdef uint32_t mark                  # of the process that made it: a fork of that one must neither call nor answer
    cdef bint sending                   # enc holds a frame that is being made or sent
    cdef Py_ssize_t stream_bytes        # of a stream that may be under way (Outgoing.limit)
    cdef Py_ssize_t packed_bytes        # that packed calls, or their results, take
    cdef public int version             # of the fast protocol that the peer speaks: 2 has many calls, streams and callbacks, 3 packs calls and says PROMPT
    cdef bint at_home(self) noexcept    # marks live per extension module, so only this one compares them
    # Sends what is in enc; the header's kind, call, method and so on are set. Raises what Link.send does, ArenaExhausted.
    cdef int transmit(self, FrameHeader* header, int64_t until) except -1
    # The frame of one item of a stream; what it counts for in Outgoing.limit.
    cdef Py_ssize_t make_item(self, FrameHeader* header, uint64_t call, MethodCodec codec, object value, bint result) except -1
    cdef bint prompts(self, const FrameHeader* header) noexcept     # an item's sender wants credit soon, or may do so
    cdef int spill(self, FrameHeader* header) except -1
    cdef int unspill(self, FrameHeader* header) except -1
    # A frame without values.
    cdef int signal(self, int kind, uint64_t call, const void* payload, uint32_t size, int64_t until) except -1
    cdef int credit(self, uint64_t call, uint32_t items) except -1
    # There is no room: takes in one frame, if one is there. Runs no user code but constructors.
    cdef int read_on(self) except -1
    cdef int absorb(self, FrameHeader* header) except -1
