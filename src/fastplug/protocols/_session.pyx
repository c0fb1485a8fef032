"""What the caller's and the plugin's half have in common: a link, a port, an encoder and a decoder."""

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from fastplug._wire cimport FLAG_PROMPT, FLAG_SPILLED, FRAME_CREDIT, FRAME_ITEM, PACKED_BYTES, ArrayPort, Decoder, Encoder, FrameHeader, Link, MethodCodec
from fastplug.protocols._streams cimport WINDOW_ITEMS
from fastplug.shm._port cimport ArenaPort

from fastplug.errors import LocalProtocolError, RemoteProtocolError

cdef extern from "_atomics.h" nogil:
    int fp_fork_init()
    uint32_t fp_mark()
    int fp_is_home(uint32_t)

if fp_fork_init():
    raise ImportError("MADV_WIPEONFORK is missing: fastplug needs Linux 4.14 or later")

# Bytes of a stream that may be under way: a quarter of a ring (its inline limit is a sixteenth), and as much where there is none. A consumer
# that pauses must not fill the ring for everybody else.
cdef Py_ssize_t STREAM_LIMITS = 4
cdef Py_ssize_t STREAM_BYTES = 64 << 10


# An array that was copied to the arena counts with this part of its bytes: 4 MiB of copies may be under way. More would not be warm in any
# cache when their blocks are written again, and a copy then takes twice as long.
cdef int COPIED_SHIFT = 6


cdef class Session:
    """One end of one link."""

    def __init__(self, Link link not None, ArrayPort port not None):
        self.link = link
        self.link.asks = True
        self.port = port
        self.arena_port = port if isinstance(port, ArenaPort) else None
        self.enc = Encoder(port)
        self.enc.gathers = link.gathers
        self.dec = Decoder(port)
        self.mark = fp_mark()
        self.version = NEWEST_VERSION
        self.packed_bytes = min(PACKED_BYTES, link.inline_limit or PACKED_BYTES)
        self.stream_bytes = STREAM_LIMITS * link.inline_limit or STREAM_BYTES

    cdef bint at_home(self) noexcept:
        return fp_is_home(self.mark)

    cdef Py_ssize_t make_item(self, FrameHeader* header, uint64_t call, MethodCodec codec, object value, bint result) except -1:
        cdef uint64_t copied = self.port.copied_bytes
        cdef Py_ssize_t size
        memset(header, 0, sizeof(FrameHeader))
        header.kind = FRAME_ITEM
        header.call = call
        self.enc.reset()
        if result:
            codec.encode_item(self.enc, value)
        else:
            codec.encode_fed(self.enc, value)
        size = self.enc.size + self.enc.outside + (<Py_ssize_t>(self.port.copied_bytes - copied) >> COPIED_SHIFT)
        if size * WINDOW_ITEMS > self.stream_bytes and self.version >= 3:
            header.flags = FLAG_PROMPT
        self.spill(header)
        return size

    cdef bint prompts(self, const FrameHeader* header) noexcept:
        return header.flags & FLAG_PROMPT != 0 or self.version < 3

    cdef int spill(self, FrameHeader* header) except -1:
        if self.link.inline_limit and self.enc.size > self.link.inline_limit:
            self.arena_port.spill(self.enc)
            header.flags |= FLAG_SPILLED
        return 0

    cdef int unspill(self, FrameHeader* header) except -1:
        if header.flags & FLAG_SPILLED:
            if self.arena_port is None:
                raise RemoteProtocolError("a spilled payload came where there is no shared memory")
            self.arena_port.unspill(self.dec)
        return 0

    cdef int transmit(self, FrameHeader* header, int64_t until) except -1:
        header.size = <unsigned int>(self.enc.size + self.enc.outside)
        header.blocks = self.port.named
        if not header.blocks:
            while not self.link.send_encoded(header, self.enc, until):
                self.read_on()
            return 0
        # sent counts before the peer can see the frame: it may return the blocks at once
        self.port.commit()
        try:
            while not self.link.send_encoded(header, self.enc, until):
                self.read_on()
        except BaseException:           # Ctrl-C, too, while the ring is full
            if self.arena_port is not None:
                self.arena_port.retract()
            raise
        return 0

    cdef int signal(self, int kind, uint64_t call, const void* payload, uint32_t size, int64_t until) except -1:
        cdef FrameHeader header
        memset(&header, 0, sizeof(FrameHeader))
        header.kind = <uint16_t>kind
        header.call = call
        header.size = size
        while not self.link.send(&header, <const unsigned char*>payload, until):
            self.read_on()
        return 0

    cdef int credit(self, uint64_t call, uint32_t items) except -1:
        return self.signal(FRAME_CREDIT, call, &items, sizeof(items), 0) if items else 0

    cdef int read_on(self) except -1:
        cdef FrameHeader header
        if self.link.receive(&header, self.dec, 1):       # a time in the past: what is there
            self.absorb(&header)
        return 0

    cdef int absorb(self, FrameHeader* header) except -1:
        raise LocalProtocolError(f"{type(self).__name__} takes no frames")
