# The header of _wire.pyx: frames, and the length-prefixed value codec. The layout is specified in docs/wire.md.
#
# Pure: bytes in, values out, and back. What a value needs from outside (memory for arrays, a way to send) comes in through
# two small base classes: ArrayPort (how an array leaves and arrives) and Link (how a frame leaves and arrives).

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    HEADER_BYTES = 32

cdef enum FrameKind:
    FRAME_REQUEST = 1
    FRAME_REPLY = 2
    FRAME_ERROR = 3
    FRAME_PING = 6          # 6 to 8: in place of control messages, on sockets only
    FRAME_PONG = 7
    FRAME_SHUTDOWN = 8
    FRAME_PAD = 0xFFFF      # skip to the start of the ring; never leaves a lane

cdef enum FrameFlag:
    FLAG_SPILLED = 1        # the payload lies in an arena block; inline there is only its reference (wire.md, "Spilled payloads")

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


@cython.final
cdef class Encoder:
    # A growing private buffer. reset() before each message; an error leaves it unusable until the next reset().
    # A message over 1 MiB leaves a large buffer; the reset() after the next small message (or a second one in a row) shrinks it.
    cdef unsigned char* data
    cdef Py_ssize_t size
    cdef Py_ssize_t capacity
    cdef Py_ssize_t limit               # bytes; a larger message is refused
    cdef int depth
    cdef readonly ArrayPort port
    cdef void reset(self) noexcept
    cdef int grow(self, Py_ssize_t more) except -1
    cdef unsigned char* take(self, Py_ssize_t n) except NULL       # n more bytes, uninitialised


@cython.final
cdef class Decoder:
    # A private copy of one payload. fill(n) gives the memory to copy it to, and rewinds.
    cdef unsigned char* data
    cdef Py_ssize_t size                # of the payload in it
    cdef Py_ssize_t pos
    cdef Py_ssize_t capacity
    cdef int depth
    cdef readonly ArrayPort port
    cdef unsigned char* fill(self, Py_ssize_t n) except NULL
    cdef const unsigned char* need(self, Py_ssize_t n) except NULL  # the next n bytes, or RemoteProtocolError


cdef class ArrayPort:
    # How arrays leave and arrive. Subclasses: inline (socket, in-process) and arena (shared memory).
    # put: encodes one array value, tag included; raises Unfit(got) for what is not an array of the declared kind. get: the tag has been read. commit: the frame is about to be published.
    # rollback: it will not be. skip: passes over an array that nobody wants, tag read (its leases are given back).
    # The base class carries no arrays: put and get raise LocalProtocolError, skip knows the inline form.
    cdef public uint64_t copies         # copies made of array data, for stats()
    cdef public uint64_t copied_bytes
    cdef uint32_t named                 # blocks named since the last commit or rollback
    cdef int put(self, Encoder enc, object array, Codec codec) except -1
    cdef object get(self, Decoder dec, Codec codec)
    cdef int skip(self, Decoder dec) except -1
    cdef int commit(self) except -1
    cdef int rollback(self) except -1


cdef class Codec:
    # One resolved annotation (annotation.TypeNode), compiled. `kind` is annotation.Kind.
    cdef readonly int kind
    cdef readonly str canonical         # for error texts
    cdef readonly object cls            # enum, dataclass, Struct
    cdef readonly str dtype             # of an array: numpy's name, or None for any
    cdef tuple children                 # Codec: element(s), key and value, fields
    cdef tuple names                    # of the fields
    cdef tuple defaults                 # of the fields: _MISSING, or a callable that makes the default
    cdef object extra                   # per kind: enum name <-> member tables
    cdef object dtype_object            # set by the array port on first use: numpy.dtype, never touched by _wire
    cdef int setup(self, object node, dict memo) except -1
    cdef int encode(self, Encoder enc, object value) except -1
    cdef object decode(self, Decoder dec)


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
cdef int skip_value(Decoder dec) except -1                      # passes over one value of any tag; gives leases back through the port
# All values from where the decoder stands to its end; never raises RemoteProtocolError. For a reply that came too late (after fill), and
# after decode failed: what was decoded before belongs to Python objects by then, so this gives back exactly the leases that nobody holds.
cdef int skip_rest(Decoder dec) except -1


cdef class Link:
    # A two-way pipe of whole frames with one user on each side. Subclasses: the shared-memory lane; PyLink.
    cdef public Py_ssize_t inline_limit     # a longer payload must be spilled first; 0 when there is no limit
    # Sends one frame. Waits for space at most until `until_ns` (CLOCK_MONOTONIC, 0 = as long as the peer lives).
    # Raises DeadlineExceeded (nothing was sent), PluginDied, Closed, RemoteProtocolError.
    cdef int send(self, FrameHeader* header, const unsigned char* payload, int64_t until_ns) except -1
    # Waits for the next frame: 1 with the header filled in and the payload copied to `dec`, 0 when the time is up.
    cdef int receive(self, FrameHeader* header, Decoder dec, int64_t until_ns) except -1


cdef class PyLink(Link):
    # A Link written in Python: subclasses define send_frame(frame: bytes | memoryview, until_s: float | None) -> None
    # and receive_frame(until_s: float | None) -> bytes | None   (None: the time is up).
    pass
