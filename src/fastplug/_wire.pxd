# The header of _wire: frames, and the length-prefixed value codec. The layout is specified in docs/wire.md.
#
# Pure: bytes in, values out, and back. What a value needs from outside (memory for arrays, a way to send) comes in through
# two small base classes: ArrayPort (how an array leaves and arrives) and Link (how a frame leaves and arrives).

cimport cython
from cpython.object cimport PyObject
from cpython.ref cimport Py_XDECREF
from cpython.tuple cimport PyTuple_GET_SIZE
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

# Declared there, and meant to be cimported from here.
from fastplug._wire_buffer cimport (
    MESSAGE_MAX, ArrayPort, Codec, Decoder, Encoder, Memory, References, length, skip_array_data, skip_array_head, skip_rest, skip_value,
)
from fastplug._wire_errors cimport decode_error, encode_error

cdef enum:
    HEADER_BYTES = 32

cdef enum FrameKind:
    FRAME_REQUEST = 1
    FRAME_REPLY = 2
    FRAME_ERROR = 3
    FRAME_ITEM = 4          # of a stream; either side sends the one that it makes
    FRAME_END = 5           # the sender's stream is complete
    FRAME_CREDIT = 6        # the sender of items may send as many more
    FRAME_CLOSE = 7         # the receiver of items wants no more
    FRAME_CANCEL = 8        # the caller has given the call up
    FRAME_CALLBACK = 9      # the plugin calls what was passed to it, and its answers
    FRAME_RETURN = 10
    FRAME_RAISE = 11
    FRAME_RELEASE = 12      # the plugin has dropped callbacks
    FRAME_REQUESTS = 13     # several requests for one method, and several results, in one frame
    FRAME_REPLIES = 14
    FRAME_PAD = 0xFFFF      # skip to the start of the ring; never leaves a lane

cdef enum FrameFlag:
    FLAG_WAITS = 2          # of a REQUEST: the caller waits on this lane, callbacks may come back on it
    FLAG_SPILLED = 1        # the payload lies in an arena block; inline there is only its reference (wire.md, "Spilled payloads")
    FLAG_METADATA = 4       # REQUEST: the caller's metadata stands in front of the arguments
    FLAG_PROMPT = 8         # ITEM: its sender has room for few as large as this one, and waits for credit soon

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


cdef inline int unknown_flags(const FrameHeader* header) noexcept:
    cdef int known = FLAG_SPILLED
    if header.kind == FRAME_REQUEST:
        known |= FLAG_WAITS | FLAG_METADATA
    elif header.kind == FRAME_ITEM:
        known |= FLAG_PROMPT
    return header.flags & ~known

cdef int bad_header(const FrameHeader* header) except -1
cdef inline int check_header(const FrameHeader* header) except -1:
    # RemoteProtocolError; PAD is the business of a lane.
    if not FRAME_REQUEST <= header.kind <= FRAME_REPLIES or header.size > MESSAGE_MAX or header.remaining_ns < 0:
        return bad_header(header)
    return bad_header(header) if unknown_flags(header) else 0


cdef int put_metadata(Encoder enc, bytes packed) except -1     # a dict of str, encoded already (contexts.METADATA)
cdef dict get_metadata(Decoder dec)                             # RemoteProtocolError


cdef enum:
    PACKED_MAX = 32                     # calls of one frame: half of what a map has under way, the peer works on the other half
    PACKED_BYTES = 8 << 10              # that they and their results take; what is larger travels by itself

cdef int count_packed(const FrameHeader* header, Decoder dec) except -1      # how many a frame has: RemoteProtocolError unless 1..PACKED_MAX


cdef enum:
    VALUES_MAX = 16                     # parameters; a method with more takes the longer road

cdef struct Values:
    # Arguments on the stack. The place in front of the first one belongs to whoever is called (PY_VECTORCALL_ARGUMENTS_OFFSET).
    PyObject* spare
    PyObject* items[VALUES_MAX]
    Py_ssize_t count                    # of those that are there
cdef inline void drop_values(Values* values) noexcept:
    while values.count:
        values.count -= 1
        Py_XDECREF(values.items[values.count])


@cython.final
cdef class MethodCodec:
    # One method of an interface: binds and encodes arguments on one side, decodes and calls on the other.
    #
    # For callers that handle errors anyhow there are forms without a `try` of their own, which costs a fiftieth of a call: put_arguments with
    # refused(), put_result with unfit_result(), decode_values and take_result with located().
    cdef readonly str interface
    cdef readonly str name
    cdef readonly str qualified         # "acme.dsp/1.total", for error texts
    cdef readonly tuple parameters      # names, in order
    cdef tuple codecs                   # Codec per parameter
    cdef tuple defaults                 # per parameter: _MISSING or the default value
    cdef tuple keyword_only             # names of the keyword-only tail
    cdef Py_ssize_t positional          # how many parameters may be given by position
    cdef Codec result
    cdef bint result_arrays             # there may be arrays in a result
    cdef readonly Codec item            # of the stream that it returns; None for a plain result
    cdef readonly Codec fed             # of the stream that it takes, or None
    cdef readonly bint callback         # the host runs it
    cdef readonly bint has_references   # a stream or a callback is among its parameters and its result
    cdef readonly bint packs            # its calls may share a frame: to decode them runs no code of anybody's, and lends nothing
    cdef int encode_arguments(self, Encoder enc, tuple args, dict kwargs) except -1     # ArgumentError
    cdef int put_arguments(self, Encoder enc, tuple args, dict kwargs, Py_ssize_t* at) except -1     # at: the parameter that is encoded
    cdef bint takes_one(self) noexcept                                                  # put_only: its value, not in a tuple
    cdef int put_only(self, Encoder enc, object value, Py_ssize_t* at) except -1
    # The same for one call after another, from values[next] on, as long as they take no more than `limit` bytes: `next` is the first one that does
    # not fit, or that raises, and `size` what those before it took.
    cdef int put_each(self, Encoder enc, list values, Py_ssize_t* next, Py_ssize_t end, Py_ssize_t* size, Py_ssize_t limit, Py_ssize_t* at) except -1
    cdef object refused(self, tuple args, dict kwargs, Py_ssize_t at, Exception error)  # the error to raise for one that put_arguments raised
    cdef bint fits(self, tuple args, dict kwargs) noexcept                              # all by position, nothing left out
    cdef tuple bound(self, tuple args, dict kwargs)
    cdef tuple decode_arguments(self, Decoder dec, bint last=*)                         # RemoteProtocolError, also if more follows the last ones
    cdef Py_ssize_t surplus(self, Decoder dec, Py_ssize_t count) except -1              # only raises
    cdef inline Py_ssize_t count_of(self, Decoder dec) except -1:
        # How many arguments the request has.
        cdef uint16_t count
        memcpy(&count, dec.need(2), 2)
        return count if count <= PyTuple_GET_SIZE(self.codecs) else self.surplus(dec, count)
    cdef object default_of(self, Decoder dec, Py_ssize_t i)                             # for one that it has not
    cdef int decode_values(self, Decoder dec, Values* values, bint last) except -1      # also what it came to before it raised
    cdef object call(self, object function, tuple values)                              # what function raises
    # The same of decode_values. owner: the object whose method it is, when function is what is under the bound method; or NULL.
    cdef object call_values(self, object function, PyObject* owner, Values* values)
    cdef PyObject* names(self) noexcept                                                 # of the keyword-only values, which come last
    cdef int encode_result(self, Encoder enc, object value) except -1                   # ResultError
    cdef int put_result(self, Encoder enc, object value) except -1
    cdef object unfit_result(self, object value, object error)                          # the error to raise for one that put_result raised
    cdef object decode_result(self, Decoder dec)                                        # RemoteProtocolError
    cdef object take_result(self, Decoder dec)
    cdef object located(self, object error)                                             # of the peer: with the method in its text
    cdef int encode_item(self, Encoder enc, object value) except -1                     # of the result: ResultError
    cdef object decode_item(self, Decoder dec)
    cdef int encode_fed(self, Encoder enc, object value) except -1                      # of the argument: ArgumentError
    cdef object decode_fed(self, Decoder dec)
    cdef object _decoded(self, Decoder dec, Codec codec)


cdef class Link:
    # A two-way pipe of whole frames with one user on each side. Subclasses: the shared-memory lane, the socket's; HandoverLink, PyLink.
    cdef public Py_ssize_t inline_limit     # a longer payload must be spilled first; 0 when there is no limit
    # Set by users who decode what has come when a send asks for it (below), and by those who have something under way, so that the peer may
    # be sending too.
    cdef public bint asks
    cdef public bint duplex
    # While set, up to LAZY_FRAMES frames may wait to be published together; flush() publishes, and every wait does so first.
    cdef public bint lazy
    cdef uint64_t sent                      # frames that the peer will see, where sending can end half-way
    cdef int flush(self) except -1
    cdef bint has_frame(self) except -1     # something can be received without waiting (a half frame may count)
    # Sends one frame: 1. Waits for space at most until `until_ns` (CLOCK_MONOTONIC, 0 = as long as the peer lives).
    # Raises DeadlineExceeded (nothing was sent), PluginDied, Closed, RemoteProtocolError.
    # 0, only when `asks` is set: nothing was sent; receive and decode what has come, then send again. Two full rings would wait for each
    # other otherwise.
    cdef int send(self, FrameHeader* header, const unsigned char* payload, int64_t until_ns) except -1
    # The same for a payload that is still in its encoder, and for the pieces that it only refers to, when `gathers` says so.
    cdef readonly bint gathers
    cdef int send_encoded(self, FrameHeader* header, Encoder enc, int64_t until_ns) except -1
    # Waits for the next frame: 1 with the header filled in and the payload copied to `dec`, 0 when the time is up.
    cdef int receive(self, FrameHeader* header, Decoder dec, int64_t until_ns) except -1
    # An event loop is about to sleep on descriptor(): True when there is something to receive already. Until disarm() the peer makes it readable.
    cdef bint arm(self) noexcept
    cdef void disarm(self) noexcept
    # No frame will come any more, which a receive that does not wait need not say.
    cdef bint ended(self) except -1
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
