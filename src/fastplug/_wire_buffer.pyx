# Buffers, errors of decoding, and passing over values. Nothing here knows more of a value than its tag.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_New, PyTuple_SET_ITEM
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy

from fastplug import _wire_words as words
from fastplug._wire_words import Unfit
from fastplug.errors import LocalProtocolError, RemoteProtocolError

__all__ = ["ArrayPort", "Codec", "Decoder", "Encoder", "live"]

cdef extern from *:
    """
    #if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
    #error "fastplug copies integers to the wire as they lie in memory, and the wire is little-endian"
    #endif
    #define fastplug_count(counter, n) __atomic_add_fetch(&(counter), (n), __ATOMIC_RELAXED)
    """
    void fastplug_count(Py_ssize_t counter, int n) noexcept nogil

cdef enum:
    BUFFER_BYTES_FIRST = 512
    # A buffer that one large message made larger than this shrinks again at the next small one.
    BUFFER_BYTES_KEPT = 1 << 20

cdef dict TAG_NAMES = {
    Tag.NONE: "None", Tag.FALSE: "bool", Tag.TRUE: "bool", Tag.INT64: "int", Tag.INT: "int", Tag.FLOAT: "float", Tag.COMPLEX: "complex", Tag.STR: "str", Tag.BYTES: "bytes",
    Tag.LIST: "list", Tag.TUPLE: "tuple", Tag.DICT: "dict", Tag.DATETIME: "datetime", Tag.DATE: "date", Tag.TIMEDELTA: "timedelta", Tag.DECIMAL: "Decimal",
    Tag.UUID: "UUID", Tag.ENUM: "enum member", Tag.STRUCT: "dataclass", Tag.ARRAY: "array",
}

cdef Py_ssize_t live_encoders = 0
cdef Py_ssize_t live_decoders = 0


def live():
    """How many Encoder and Decoder objects exist in this process: 0 each when nothing leaks and every connection is closed."""
    return {"encoders": live_encoders, "decoders": live_decoders}


cdef class Encoder:
    def __cinit__(self, ArrayPort port=None, *, Py_ssize_t limit=MESSAGE_MAX):
        if not 0 < limit <= MESSAGE_MAX:
            raise LocalProtocolError(f"Encoder: limit must be 1..{MESSAGE_MAX} bytes, got {limit}")
        self.data = <unsigned char*>malloc(BUFFER_BYTES_FIRST)
        if self.data == NULL:
            raise MemoryError
        self.capacity = BUFFER_BYTES_FIRST
        self.limit = limit
        self.port = port
        fastplug_count(live_encoders, 1)

    def __dealloc__(self):
        if self.data != NULL:
            free(self.data)
            fastplug_count(live_encoders, -1)

    cdef void reset(self) noexcept:
        cdef unsigned char* smaller
        if self.capacity > BUFFER_BYTES_KEPT and self.size <= BUFFER_BYTES_KEPT:
            smaller = <unsigned char*>realloc(self.data, BUFFER_BYTES_KEPT)
            if smaller != NULL:
                self.data = smaller
                self.capacity = BUFFER_BYTES_KEPT
        self.size = 0
        self.depth = 0

    cdef int grow(self, Py_ssize_t more) except -1:
        cdef Py_ssize_t wanted
        cdef unsigned char* larger
        if more > self.limit - self.size:
            raise Unfit(f"a value that makes the message larger than {self.limit} bytes", final=True)
        wanted = self.size + more
        if wanted <= self.capacity:
            return 0
        wanted = max(wanted, 2 * self.capacity)
        larger = <unsigned char*>realloc(self.data, wanted)
        if larger == NULL:
            raise MemoryError
        self.data = larger
        self.capacity = wanted
        return 0

    def encode(self, Codec codec not None, value):
        """The bytes of one value. Raises ArgumentError when it does not fit. For tests and tools; not thread-safe."""
        self.reset()
        try:
            codec.encode(self, value)
        except Exception as error:
            raise words.argument_error("", "value", codec.canonical, value, error)
        return PyBytes_FromStringAndSize(<char*>self.data, self.size)


cdef class Decoder:
    def __cinit__(self, ArrayPort port=None):
        self.data = <unsigned char*>malloc(BUFFER_BYTES_FIRST)
        if self.data == NULL:
            raise MemoryError
        self.capacity = BUFFER_BYTES_FIRST
        self.port = port
        fastplug_count(live_decoders, 1)

    def __dealloc__(self):
        if self.data != NULL:
            free(self.data)
            fastplug_count(live_decoders, -1)

    cdef unsigned char* fill(self, Py_ssize_t n) except NULL:
        cdef unsigned char* other
        cdef Py_ssize_t capacity = self.capacity
        self.size = self.pos = 0
        self.depth = 0
        if n > capacity:
            capacity = n if n > BUFFER_BYTES_KEPT else max(n, 2 * capacity)
        elif n <= BUFFER_BYTES_KEPT and capacity > BUFFER_BYTES_KEPT:
            capacity = BUFFER_BYTES_KEPT
        if capacity != self.capacity:
            other = <unsigned char*>malloc(capacity)      # not realloc: the old message is of no use, so it is not copied
            if other == NULL:
                raise MemoryError
            free(self.data)
            self.data = other
            self.capacity = capacity
        self.size = n
        return self.data

    def decode(self, Codec codec not None, data):
        """The one value that ``data`` holds. Raises RemoteProtocolError. For tests and tools; not thread-safe."""
        load(self, data)
        value = codec.decode(self)
        finish(self)
        return value


cdef int load(Decoder dec, object data) except -1:
    cdef bytes copy = data if type(data) is bytes else bytes(data)
    memcpy(dec.fill(PyBytes_GET_SIZE(copy)), PyBytes_AS_STRING(copy), PyBytes_GET_SIZE(copy))
    return 0


cdef int finish(Decoder dec) except -1:
    if dec.pos != dec.size:
        raise broken(dec, f"{dec.size - dec.pos} bytes behind the last value")
    return 0


cdef int too_deep(Encoder enc) except -1:
    raise Unfit(f"a value nested deeper than {DEPTH_MAX} levels (does it contain itself?)", final=True)


cdef object broken(Decoder dec, str what):
    return RemoteProtocolError(f"the peer sent {what} (at byte {dec.pos} of {dec.size}); its side of the connection has a bug, open a new one")


cdef object confused(Decoder dec, str expected, int tag):
    dec.pos -= 1                                          # back to the tag, where skip_rest() can go on
    return broken(dec, f"{TAG_NAMES.get(tag) or f'the unknown tag {tag:#04x}'} where {expected} is declared")


cdef class ArrayPort:
    cdef int put(self, Encoder enc, object array, Codec codec) except -1:
        raise LocalProtocolError("this connection carries no arrays; it was made without an array port")

    cdef object get(self, Decoder dec, Codec codec):
        raise LocalProtocolError("this connection carries no arrays; it was made without an array port")

    cdef int skip(self, Decoder dec) except -1:
        return skip_inline_array(dec)

    cdef int commit(self) except -1:
        self.named = 0
        return 0

    cdef int rollback(self) except -1:
        self.named = 0
        return 0


cdef class Codec:
    def __repr__(self):
        return f"<Codec {self.canonical}>"

    cdef int setup(self, object node, dict memo) except -1:
        # What the kind needs .
        self.children = ()
        return 0

    cdef int encode(self, Encoder enc, object value) except -1:
        raise LocalProtocolError("a Codec is made by compile_node()")

    cdef object decode(self, Decoder dec):
        raise LocalProtocolError("a Codec is made by compile_node()")


cdef Py_ssize_t skip_token(Decoder dec) except -1:
    # One tag and what belongs to it but other values: how many of these follow.
    cdef int tag = tag_of(dec)
    cdef Py_ssize_t n
    if tag <= Tag.TRUE:
        return 0
    if tag == Tag.LIST or tag == Tag.TUPLE or tag == Tag.STRUCT:
        return length(dec)
    if tag == Tag.DICT:
        return 2 * length(dec)
    if tag == Tag.INT or tag == Tag.STR or tag == Tag.BYTES or tag == Tag.DECIMAL or tag == Tag.ENUM:
        n = length(dec)
    elif tag == Tag.INT64 or tag == Tag.FLOAT:
        n = 8
    elif tag == Tag.COMPLEX or tag == Tag.UUID:
        n = 16
    elif tag == Tag.DATETIME:
        n = 17
    elif tag == Tag.DATE:
        n = 4
    elif tag == Tag.TIMEDELTA:
        n = 12
    elif tag == Tag.ARRAY:
        return skip_inline_array(dec) if dec.port is None else dec.port.skip(dec)
    else:
        raise confused(dec, "a value", tag)
    dec.need(n)
    return 0


cdef int skip_value(Decoder dec) except -1:
    # Without recursion: what is passed over has no limit of depth, it is only counted.
    cdef int64_t pending = 1
    while pending:
        pending += skip_token(dec) - 1
    return 0


cdef int skip_rest(Decoder dec) except -1:
    try:
        while dec.pos < dec.size:
            skip_token(dec)
    except RemoteProtocolError:
        dec.pos = dec.size                                # no way to find the next value; the leases end with the connection
    return 0


cdef int skip_inline_array(Decoder dec) except -1:
    cdef const unsigned char* p = dec.need(7)
    cdef uint64_t n
    cdef int form = p[0]
    dec.need(p[3] * (16 if p[4] == 2 else 8))
    if form != 0:
        raise broken(dec, "an array in shared memory over a connection that has none")
    memcpy(&n, dec.need(8), 8)
    if n > <uint64_t>(dec.size - dec.pos):
        raise broken(dec, f"an array of {n} bytes with {dec.size - dec.pos} bytes left")
    dec.need(<Py_ssize_t>n)
    return 0


cdef tuple tuple_of(Decoder dec, tuple codecs, Py_ssize_t n):
    # The next n values, each of the kind of its codec.
    cdef tuple made = PyTuple_New(n)
    cdef Py_ssize_t i
    for i in range(n):
        one = (<Codec>PyTuple_GET_ITEM(codecs, i)).decode(dec)
        Py_INCREF(one)
        PyTuple_SET_ITEM(made, i, one)
    return made
