# The header of _wire: frames, and the length-prefixed value codec. The layout is specified in docs/wire.md.
#
# Pure: bytes in, values out, and back. What a value needs from outside (memory for arrays, a way to send) comes in through
# two small base classes: ArrayPort (how an array leaves and arrives) and Link (how a frame leaves and arrives).

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t

# Declared there, and meant to be cimported from here.
from fastplug._wire_buffer cimport MESSAGE_MAX, ArrayPort, Codec, Decoder, Encoder, Memory, length, skip_array_data, skip_array_head, skip_rest, skip_value

cdef enum:
    HEADER_BYTES = 32

cdef enum FrameKind:
    FRAME_REQUEST = 1
    FRAME_REPLY = 2
    FRAME_ERROR = 3
    FRAME_PAD = 0xFFFF      # skip to the start of the ring; never leaves a lane

cdef enum FrameFlag:
    FLAG_SPILLED = 1        # the payload lies in an arena block; inline there is only its reference (wire.md, "Spilled payloads")
    FLAG_METADATA = 4       # REQUEST: the caller's metadata stands in front of the arguments

# wire.md, "Frames". All fields little-endian; a frame starts on a multiple of 64 bytes in a ring.
cdef packed struct FrameHeader:
    uint32_t size           # bytes of payload behind the header
    uint16_t kind
    uint16_t flags
    uint64_t call           # call id, chosen by the caller; a reply repeats it
    uint16_t interface      # index of the interface in the plugin's HELLO
    uint16_t method         # index of the method in that interface, as the plugin listed it
    uint32_t blocks         # how many arena blocks the payload names
    int64_t remaining_ns    # the caller's remaining time, 0 when it has no deadline


cdef int check_header(const FrameHeader* header) except -1  # RemoteProtocolError; PAD is the business of a lane


cdef int put_metadata(Encoder enc, bytes packed) except -1     # a dict of str, encoded already (contexts.METADATA)
cdef dict get_metadata(Decoder dec)                             # RemoteProtocolError


cdef class MethodCodec:
    # One method of an interface: binds and encodes arguments on one side, decodes and calls on the other.
    cdef readonly str interface
    cdef readonly str name
    cdef readonly str qualified         # "acme.dsp/1.total", for error texts
    cdef readonly tuple parameters      # names, in order
    cdef tuple codecs                   # Codec per parameter
    cdef tuple defaults                 # per parameter: _MISSING or the default value
    cdef tuple keyword_only             # names of the keyword-only tail
    cdef Py_ssize_t positional          # how many parameters may be given by position
    cdef Codec result
    cdef int encode_arguments(self, Encoder enc, tuple args, dict kwargs) except -1     # ArgumentError
    cdef tuple bound(self, tuple args, dict kwargs)
    cdef tuple decode_arguments(self, Decoder dec)                                      # RemoteProtocolError
    cdef object call(self, object function, tuple values)                              # what function raises
    cdef object decode_and_call(self, Decoder dec, object function)                    # the two in one
    cdef int encode_result(self, Encoder enc, object value) except -1                   # ResultError
    cdef object decode_result(self, Decoder dec)                                        # RemoteProtocolError


cdef int encode_error(Encoder enc, object error) except -1      # the payload of FRAME_ERROR (wire.md, "Errors")
cdef object decode_error(Decoder dec, str method)               # -> fastplug.errors.RemoteError (never raises it)


cdef class Link:
    # A two-way pipe of whole frames with one user on each side. Subclasses: the shared-memory lane, the socket's; HandoverLink, PyLink.
    cdef public Py_ssize_t inline_limit     # a longer payload must be spilled first; 0 when there is no limit
    # Sends one frame. Waits for space at most until `until_ns` (CLOCK_MONOTONIC, 0 = as long as the peer lives).
    # Raises DeadlineExceeded (nothing was sent), PluginDied, Closed, RemoteProtocolError.
    cdef int send(self, FrameHeader* header, const unsigned char* payload, int64_t until_ns) except -1
    # The same for a payload that is still in its encoder, and for the pieces that it only refers to, when `gathers` says so.
    cdef readonly bint gathers
    cdef int send_encoded(self, FrameHeader* header, Encoder enc, int64_t until_ns) except -1
    # Waits for the next frame: 1 with the header filled in and the payload copied to `dec`, 0 when the time is up.
    cdef int receive(self, FrameHeader* header, Decoder dec, int64_t until_ns) except -1
    # The frame received last has been decoded: whoever sent it may let go of the blocks that it names.
    cdef int consumed(self) except -1


cdef class HandoverLink(Link):
    # A Link between two threads, whose subclass is written in Python: send_frame(frame, until_s) -> None and receive_frame(until_s) -> frame
    # or None (the time is up). A frame is opaque to it; the payload's memory passes from the encoder to the decoder without a copy.
    pass


cdef class PyLink(Link):
    # A Link written in Python: subclasses define send_frame(frame: bytes | memoryview, until_s: float | None) -> None
    # and receive_frame(until_s: float | None) -> bytes | None   (None: the time is up).
    pass
