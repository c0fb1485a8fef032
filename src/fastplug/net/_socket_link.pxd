# Frames over a connected stream socket. One user at a time; peer_gone, finish and wake from any thread.
#
# Its state is the socket's: connected, shut down (what has come is still delivered, then EOFError), closed (fd is -1).

from libc.stdint cimport int64_t, uint64_t

from fastplug._wire cimport Decoder, FrameHeader, Link, Memory

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void* iov_base
        size_t iov_len

cdef enum:
    AHEAD_BYTES = 16 << 10
    BATCH_BYTES = 16 << 10


cdef class SocketLink(Link):
    cdef object sock
    cdef int fd                         # -1 when closed
    cdef int bell                       # an eventfd that wakes whoever waits for a frame; -1 when nobody will
    # How many frames went each way. Whoever is owed replies must be able to read while it waits to send.
    cdef uint64_t received
    cdef bytes rest                     # of a frame that was given up half-way; goes first, so that the peer finds the next one
    # Small frames that go out together, while `lazy` is set: [0, batched). They count as sent.
    cdef unsigned char batch[BATCH_BYTES]
    cdef Py_ssize_t batched
    cdef int batch_frames
    # What was read ahead: the bytes [start, end) belong to frames that are not taken yet.
    cdef unsigned char ahead[AHEAD_BYTES]
    cdef Py_ssize_t start
    cdef Py_ssize_t end
    # The frame whose payload is under way: its header, and a share in the memory of whichever decoder it was begun with.
    cdef FrameHeader header
    cdef Memory memory                  # None: none is
    cdef unsigned char* payload
    cdef Py_ssize_t got
    cdef object backlog                 # (header, Decoder) of frames that were read while waiting to send
    cdef Py_ssize_t backlog_bytes

    cdef int _send_parts(self, iovec* parts, int count, int64_t until_ns) except -1
    cdef Py_ssize_t _send_some(self, const iovec* parts, int count, int64_t until_ns, bint begun) except -1
    cdef int _put_in_batch(self, FrameHeader* header, const unsigned char* payload, int64_t until_ns) except -1
    cdef int _send_rest(self, int64_t until_ns, bint begun) except -1
    cdef int _wait_writable(self, int64_t until_ns, bint begun) except -1
    cdef int _drain(self) except -1
    cdef int _take(self, FrameHeader* header, Decoder dec, int64_t until_ns) except -1
    cdef int _begin(self, Decoder dec, int64_t until_ns) except -1
    cdef Py_ssize_t _receive_some(self, void* target, size_t n, int64_t until_ns) except -1
    cdef bint _was_stirred(self, int64_t wait_ns) except -1
    cdef bint _whole(self) noexcept
    cdef bint _ready(self) noexcept
    cdef int _poll(self, short events, int64_t wait_ns) except -1
