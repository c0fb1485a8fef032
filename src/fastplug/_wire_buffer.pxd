# What all of _wire stands on: the two buffers, the way an array takes (ArrayPort), the base of the codecs, and the primitives of
# docs/wire.md, section 3. Whoever is not part of _wire cimports these from _wire.

cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

cdef enum Tag:
    NONE = 0x00
    FALSE = 0x01
    TRUE = 0x02
    INT64 = 0x03
    INT = 0x04
    FLOAT = 0x05
    COMPLEX = 0x06
    STR = 0x07
    BYTES = 0x08
    LIST = 0x09
    TUPLE = 0x0A
    DICT = 0x0B
    DATETIME = 0x0C
    DATE = 0x0D
    TIMEDELTA = 0x0E
    DECIMAL = 0x0F
    UUID = 0x10
    ENUM = 0x11
    STRUCT = 0x12
    ARRAY = 0x13
    CALLBACK = 0x14
    STREAM = 0x15

cdef enum:
    MESSAGE_MAX = 1 << 30           # bytes; wire.md, "Limits"
    DEPTH_MAX = 64


cdef extern from *:
    # Of a borrowed pointer: to pass an attribute as an object takes a reference of its own, and each message would get new memory.
    Py_ssize_t Py_REFCNT(PyObject*)

cdef enum:
    BUFFER_BYTES_FIRST = 512
    # Memory larger than KEPT is given back after SMALL_MAX messages in a row that needed less than a quarter of it: to get it anew for each
    # of several large messages takes longer than to copy them. Larger than KEPT_LONG: after the first such message.
    BUFFER_BYTES_KEPT = 1 << 20
    BUFFER_BYTES_KEPT_LONG = 256 << 20
    # Larger payloads start where their array will lie aligned, at a line of the cache.
    PLACED_BYTES = 16 << 10
    LINE_BYTES = 64

cdef enum:
    PIECES_MAX = 8                  # more large arrays in one message are copied to the payload

cdef struct Piece:
    Py_ssize_t before               # how much of the payload comes first
    const unsigned char* data
    Py_ssize_t bytes


@cython.final
cdef class Memory:
    # Bytes, uninitialised, that messages lie in. Who has them from a buffer below holds a reference (an array that is a view of them, a
    # frame on its way), and a buffer whose memory has another owner takes a new one for its next message: nobody sees them change.
    cdef unsigned char* data
    cdef Py_ssize_t bytes
    cdef int resize(self, Py_ssize_t n) except -1


@cython.final
cdef class Encoder:
    # A growing private buffer. reset() before each message; an error leaves it unusable until the next reset().
    cdef Memory memory
    cdef unsigned char* data            # where the message starts in it
    cdef Py_ssize_t size
    cdef Py_ssize_t room                # what `size` may become before grow() has to look
    cdef Py_ssize_t limit               # bytes; a larger message is refused
    cdef int depth
    cdef int small                      # messages in a row that were small for the memory
    cdef Py_ssize_t phase               # as in Decoder, for a decoder that takes the memory over
    # Large arrays that are sent from where they lie: only over a Link that gathers. The payload has `size + outside` bytes.
    cdef bint gathers
    cdef Py_ssize_t outside
    cdef int piece_count
    cdef Piece pieces[PIECES_MAX]
    cdef list owners                    # of the pieces
    cdef readonly ArrayPort port
    cdef References references          # None: no streams, no callbacks
    cdef int renew(self) except -1      # what reset() does besides, for memory that is large or has another owner
    cdef inline int reset(self) except -1:
        if self.piece_count or self.memory.bytes > BUFFER_BYTES_KEPT or Py_REFCNT(<PyObject*>self.memory) > 1:
            self.renew()
        self.data = self.memory.data + (-self.phase & LINE_BYTES - 1)
        self.room = min(self.memory.bytes - (-self.phase & LINE_BYTES - 1), self.limit)
        self.size = 0
        self.depth = 0
        return 0
    cdef int grow(self, Py_ssize_t more) except -1
    cdef void use(self, Memory memory, Py_ssize_t start) noexcept
    cdef bint refer(self, object owner, const void* data, Py_ssize_t n) except -1       # False: copy it instead
    cdef void let_go(self) noexcept     # of the pieces
    cdef inline unsigned char* take(self, Py_ssize_t n) except NULL:     # n more bytes, uninitialised
        cdef unsigned char* place
        if n > self.room - self.size:
            self.grow(n)
        place = self.data + self.size
        self.size += n
        return place


@cython.final
cdef class Decoder:
    # A private copy of one payload. fill(n) gives the memory to copy it to, and rewinds.
    cdef Memory memory
    cdef unsigned char* data            # where the payload starts in it
    cdef Py_ssize_t size                # of the payload
    cdef Py_ssize_t pos
    cdef int depth
    cdef int small                      # as in Encoder
    # Where in the payload, modulo 64, the last large array was that did not come to lie aligned. The next payload starts so that one in the
    # same place does: whoever calls the same method again gets arrays that need no copy.
    cdef Py_ssize_t phase
    cdef readonly ArrayPort port
    cdef References references
    cdef unsigned char* refill(self, Py_ssize_t n) except NULL      # fill() for what is large, or has no room
    cdef inline unsigned char* fill(self, Py_ssize_t n) except NULL:
        if n >= PLACED_BYTES or n > self.memory.bytes or self.memory.bytes > BUFFER_BYTES_KEPT or Py_REFCNT(<PyObject*>self.memory) > 1:
            return self.refill(n)
        self.data = self.memory.data
        self.size = n
        self.pos = 0
        self.depth = 0
        return self.data
    cdef void adopt(self, Memory memory, unsigned char* data, Py_ssize_t n) noexcept    # the payload is there already
    cdef inline const unsigned char* need(self, Py_ssize_t n) except NULL:      # the next n bytes, or RemoteProtocolError
        cdef const unsigned char* place
        if n > self.size - self.pos:
            ends_early(self, n)
        place = self.data + self.pos
        self.pos += n
        return place


cdef class ArrayPort:
    # How arrays leave and arrive. Subclasses: inline (socket, in-process) and arena (shared memory).
    # put: encodes one array value, tag included; raises Unfit(got) for what is not an array of the declared kind. get: the tag has been read. commit: the frame is about to be published.
    # rollback: it will not be. skip: passes over an array that nobody wants, tag read (its leases are given back).
    # The base class carries no arrays: put and get raise LocalProtocolError, skip knows the inline form.
    cdef public uint64_t copies         # copies made of array data, for stats()
    cdef public uint64_t copied_bytes
    cdef uint32_t named                 # blocks named since the last commit or rollback
    # offer: a result is about to be encoded, and the caller's variable is the only one that has to have it.
    cdef int offer(self, PyObject* result) except -1
    cdef int put(self, Encoder enc, object array, Codec codec) except -1
    cdef object get(self, Decoder dec, Codec codec)
    cdef int skip(self, Decoder dec) except -1
    cdef int commit(self) except -1
    cdef int rollback(self) except -1


cdef class References:
    # How streams and callbacks leave and arrive: what stays where it is. The base class refuses them.
    cdef uint64_t put_callback(self, object value, Codec codec) except? 0     # the number it gets; Unfit
    cdef object get_callback(self, uint64_t number, Codec codec)
    cdef int drop_callback(self, uint64_t number) except -1                 # nobody here wants it
    cdef int put_stream(self, object value, Codec codec) except -1           # Unfit
    cdef object get_stream(self, Codec codec)


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


# RemoteProtocolError about what the peer sent, and where; confused() steps back to the tag, so that skip_rest() can go on.
cdef object broken(Decoder dec, str what)
cdef int ends_early(Decoder dec, Py_ssize_t n) except -1        # these three only raise
cdef Py_ssize_t too_long(Decoder dec, Py_ssize_t n) except -1
cdef int bytes_behind(Decoder dec) except -1
cdef object confused(Decoder dec, str expected, int tag)
cdef int load(Decoder dec, object data) except -1               # fills the decoder with a bytes-like
cdef tuple tuple_of(Decoder dec, tuple codecs, Py_ssize_t n)    # the next n values, each of the kind of its codec
cdef int too_deep(Encoder enc) except -1
cdef int skip_value(Decoder dec) except -1                      # passes over one value of any tag; gives leases back through the port
# All values from where the decoder stands to its end; never raises RemoteProtocolError. For a reply that came too late (after fill), and
# after decode failed: what was decoded before belongs to Python objects by then, so this gives back exactly the leases that nobody holds.
cdef int skip_rest(Decoder dec) except -1
# For the ports: an array's head and shape, up to its place (the form comes back), and the data of an inline one.
cdef int skip_array_head(Decoder dec) except -1
cdef int skip_array_data(Decoder dec) except -1


cdef inline int finish(Decoder dec) except -1:
    # RemoteProtocolError unless the payload is used up.
    return 0 if dec.pos == dec.size else bytes_behind(dec)


cdef inline int tag_of(Decoder dec) except -1:
    if dec.pos >= dec.size:
        dec.need(1)
    dec.pos += 1
    return dec.data[dec.pos - 1]


cdef inline int expect(Decoder dec, Codec codec, int tag) except -1:
    cdef int found = tag_of(dec)
    if found != tag:
        raise confused(dec, codec.canonical, found)
    return 0


cdef inline Py_ssize_t length(Decoder dec) except -1:
    # A number of bytes or of values: a value takes a byte at least, so neither can be more than what is left.
    cdef uint32_t n
    memcpy(&n, dec.need(4), 4)
    if n > dec.size - dec.pos:
        return too_long(dec, n)
    return n


cdef inline int put_head(Encoder enc, int tag, Py_ssize_t n) except -1:
    cdef unsigned char* p = enc.take(5)
    cdef uint32_t count = <uint32_t>n
    p[0] = <unsigned char>tag
    memcpy(p + 1, &count, 4)
    return 0


cdef inline int put_sized(Encoder enc, int tag, const char* text, Py_ssize_t n) except -1:
    cdef unsigned char* p
    cdef uint32_t count = <uint32_t>n                     # take() refuses what does not fit in 32 bits
    p = enc.take(5 + n)
    p[0] = <unsigned char>tag
    memcpy(p + 1, &count, 4)
    memcpy(p + 5, text, n)
    return 0


cdef inline int enter(Encoder enc) except -1:
    enc.depth += 1
    if enc.depth > DEPTH_MAX:
        too_deep(enc)
    return 0


cdef inline int enter_decoder(Decoder dec) except -1:
    dec.depth += 1
    if dec.depth > DEPTH_MAX:
        raise broken(dec, f"a value nested deeper than {DEPTH_MAX} levels")
    return 0
