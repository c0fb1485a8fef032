# Buffers, errors of decoding, and passing over values. Nothing here knows more of a value than its tag.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_New, PyTuple_SET_ITEM
from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free
from libc.string cimport memcpy

from fastplug import _wire_words as words
from fastplug._wire_words import Unfit
from fastplug.errors import LocalProtocolError, RemoteProtocolError

__all__ = ["ArrayPort", "Codec", "Decoder", "Encoder", "Memory", "References", "allocated", "live"]

cdef extern from *:
    """
    #include <stdlib.h>
    #include <string.h>
    #include <sys/mman.h>
    #if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
    #error "fastplug copies integers to the wire as they lie in memory, and the wire is little-endian"
    #endif
    #define fastplug_count(counter, n) __atomic_add_fetch(&(counter), (n), __ATOMIC_RELAXED)

    /* Large memory comes in huge pages where the kernel has them, as numpy's does: the first touch of small ones takes longer than the copy. */
    #define FASTPLUG_HUGE_BYTES ((size_t)4 << 20)
    static void* fastplug_allocate(size_t n) {
        void* memory;
        if (n < FASTPLUG_HUGE_BYTES)
            return malloc(n);
        if (posix_memalign(&memory, (size_t)2 << 20, n))
            return NULL;
    #ifdef MADV_HUGEPAGE
        madvise(memory, n, MADV_HUGEPAGE);
    #endif
        return memory;
    }

    static void* fastplug_resize(void* memory, size_t before, size_t n) {
        void* other;
        if (before >= FASTPLUG_HUGE_BYTES || n < FASTPLUG_HUGE_BYTES)
            return realloc(memory, n);
        other = fastplug_allocate(n);
        if (other) {
            memcpy(other, memory, before);
            free(memory);
        }
        return other;
    }
    """
    void fastplug_count(Py_ssize_t counter, int n) noexcept nogil
    void* fastplug_allocate(size_t n) noexcept nogil
    void* fastplug_resize(void* memory, size_t before, size_t n) noexcept nogil     # n > before

cdef enum:
    SMALL_MAX = 16

cdef dict TAG_NAMES = {
    Tag.NONE: "None", Tag.FALSE: "bool", Tag.TRUE: "bool", Tag.INT64: "int", Tag.INT: "int", Tag.FLOAT: "float", Tag.COMPLEX: "complex", Tag.STR: "str", Tag.BYTES: "bytes",
    Tag.LIST: "list", Tag.TUPLE: "tuple", Tag.DICT: "dict", Tag.DATETIME: "datetime", Tag.DATE: "date", Tag.TIMEDELTA: "timedelta", Tag.DECIMAL: "Decimal",
    Tag.UUID: "UUID", Tag.ENUM: "enum member", Tag.STRUCT: "dataclass", Tag.ARRAY: "array", Tag.CALLBACK: "callback", Tag.STREAM: "stream",
}

cdef Py_ssize_t live_encoders = 0
cdef Py_ssize_t live_decoders = 0
cdef Py_ssize_t memories = 0


def live():
    """How many Encoder and Decoder objects exist in this process: 0 each when nothing leaks and every connection is closed."""
    return {"encoders": live_encoders, "decoders": live_decoders}


def allocated():
    """How many pieces of memory for messages were allocated in this process: no more for further messages, unless they are larger or kept."""
    return memories


cdef class Memory:
    def __cinit__(self, Py_ssize_t size_bytes):
        fastplug_count(memories, 1)
        self.data = <unsigned char*>fastplug_allocate(size_bytes)
        if self.data == NULL:
            raise MemoryError(f"no memory for a message of {size_bytes} bytes")
        self.bytes = size_bytes

    def __dealloc__(self):
        free(self.data)

    cdef int resize(self, Py_ssize_t n) except -1:
        cdef unsigned char* other = <unsigned char*>fastplug_resize(self.data, self.bytes, n)
        if other == NULL:
            raise MemoryError(f"no memory for a message of {n} bytes")
        self.data = other
        self.bytes = n
        return 0


cdef inline bint too_large(Memory memory, Py_ssize_t needed, int* small) noexcept:
    if memory.bytes <= BUFFER_BYTES_KEPT:
        return False
    small[0] = small[0] + 1 if needed < memory.bytes >> 2 else 0
    return small[0] >= SMALL_MAX or (small[0] and memory.bytes > BUFFER_BYTES_KEPT_LONG)


cdef class Encoder:
    def __cinit__(self, ArrayPort port=None, *, Py_ssize_t limit=MESSAGE_MAX):
        if not 0 < limit <= MESSAGE_MAX:
            raise LocalProtocolError(f"Encoder: limit must be 1..{MESSAGE_MAX} bytes, got {limit}")
        self.limit = limit
        self.use(Memory(BUFFER_BYTES_FIRST), 0)
        self.port = port
        self.owners = []
        fastplug_count(live_encoders, 1)

    def __dealloc__(self):
        if self.data != NULL:
            fastplug_count(live_encoders, -1)

    cdef void use(self, Memory memory, Py_ssize_t start) noexcept:
        self.memory = memory
        self.data = memory.data + start
        self.room = min(memory.bytes - start, self.limit - self.outside)

    cdef int renew(self) except -1:
        if self.piece_count:
            self.let_go()
        if too_large(self.memory, self.size, &self.small) or Py_REFCNT(<PyObject*>self.memory) > 1:
            self.memory = Memory(BUFFER_BYTES_FIRST)
            self.small = 0
        return 0

    cdef int grow(self, Py_ssize_t more) except -1:
        cdef Py_ssize_t wanted, start = self.data - self.memory.data
        if more > self.limit - self.outside - self.size:
            raise Unfit(f"a value that makes the message larger than {self.limit} bytes", final=True)
        wanted = start + self.size + more
        if wanted > self.memory.bytes:
            # Twice as much, so that many small values cost little; no more than what is needed for one that is large.
            self.memory.resize(wanted + BUFFER_BYTES_FIRST if more > BUFFER_BYTES_KEPT else max(wanted, 2 * self.memory.bytes))
        self.use(self.memory, start)
        return 0

    cdef bint refer(self, object owner, const void* data, Py_ssize_t n) except -1:
        cdef Piece* piece = &self.pieces[self.piece_count]
        if not self.gathers or self.piece_count == PIECES_MAX or n > self.limit - self.outside - self.size:
            return False
        self.owners.append(owner)
        piece.before = self.size
        piece.data = <const unsigned char*>data
        piece.bytes = n
        self.piece_count += 1
        self.outside += n
        self.use(self.memory, self.data - self.memory.data)
        return True

    cdef void let_go(self) noexcept:
        self.owners = []
        self.piece_count = 0
        self.outside = 0
        self.use(self.memory, self.data - self.memory.data)

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
        self.memory = Memory(BUFFER_BYTES_FIRST)
        self.data = self.memory.data
        self.port = port
        fastplug_count(live_decoders, 1)

    def __dealloc__(self):
        if self.data != NULL:
            fastplug_count(live_decoders, -1)

    cdef unsigned char* refill(self, Py_ssize_t n) except NULL:
        cdef Py_ssize_t needed = n + LINE_BYTES if n >= PLACED_BYTES else n
        if too_large(self.memory, needed, &self.small) or needed > self.memory.bytes or Py_REFCNT(<PyObject*>self.memory) > 1:
            # Not resized: the old message is of no use.
            self.memory = Memory(max(needed, BUFFER_BYTES_FIRST))
            self.small = 0
        self.adopt(self.memory, self.memory.data, n)
        if n >= PLACED_BYTES:
            self.data += -(<uintptr_t>self.data + <uintptr_t>self.phase) & <uintptr_t>(LINE_BYTES - 1)
        return self.data

    cdef void adopt(self, Memory memory, unsigned char* data, Py_ssize_t n) noexcept:
        self.memory = memory
        self.data = data
        self.size = n
        self.pos = 0
        self.depth = 0

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


cdef int bytes_behind(Decoder dec) except -1:
    raise broken(dec, f"{dec.size - dec.pos} bytes behind the last value")


cdef int ends_early(Decoder dec, Py_ssize_t n) except -1:
    raise broken(dec, f"a payload that ends {n - (dec.size - dec.pos)} bytes too early")


cdef Py_ssize_t too_long(Decoder dec, Py_ssize_t n) except -1:
    raise broken(dec, f"a length of {n} with {dec.size - dec.pos} bytes left")


cdef int too_deep(Encoder enc) except -1:
    raise Unfit(f"a value nested deeper than {DEPTH_MAX} levels (does it contain itself?)", final=True)


cdef object broken(Decoder dec, str what):
    return RemoteProtocolError(f"the peer sent {what} (at byte {dec.pos} of {dec.size}); its side of the connection has a bug, open a new one")


cdef object confused(Decoder dec, str expected, int tag):
    dec.pos -= 1                                          # back to the tag, where skip_rest() can go on
    return broken(dec, f"{TAG_NAMES.get(tag) or f'the unknown tag {tag:#04x}'} where {expected} is declared")


cdef class ArrayPort:
    cdef int offer(self, PyObject* result) except -1:
        return 0

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


cdef class References:
    cdef uint64_t put_callback(self, object value, Codec codec) except? 0:
        raise LocalProtocolError("this connection carries no callbacks")

    cdef object get_callback(self, uint64_t number, Codec codec):
        raise LocalProtocolError("this connection carries no callbacks")

    cdef int drop_callback(self, uint64_t number) except -1:
        return 0

    cdef int put_stream(self, object value, Codec codec) except -1:
        raise LocalProtocolError("this connection carries no streams")

    cdef object get_stream(self, Codec codec):
        raise LocalProtocolError("this connection carries no streams")


cdef class Codec:
    def __cinit__(self):
        self.children = ()

    def __repr__(self):
        return f"<Codec {self.canonical}>"

    cdef int setup(self, object node, dict memo) except -1:
        # What the kind needs.
        return 0

    cdef int encode(self, Encoder enc, object value) except -1:
        raise LocalProtocolError("a Codec is made by compile_node()")

    cdef object decode(self, Decoder dec):
        raise LocalProtocolError("a Codec is made by compile_node()")


cdef Py_ssize_t skip_token(Decoder dec) except -1:
    # One tag and what belongs to it but other values: how many of these follow.
    cdef int tag = tag_of(dec)
    cdef Py_ssize_t n
    cdef uint64_t number
    if tag <= Tag.TRUE or tag == Tag.STREAM:
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
    elif tag == Tag.CALLBACK:
        memcpy(&number, dec.need(8), 8)
        if dec.references is not None:
            dec.references.drop_callback(number)
        return 0
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


cdef int skip_array_head(Decoder dec) except -1:
    # wire.md, "Arrays": up to the place. Nothing is judged, what is passed over may be newer than this code.
    cdef const unsigned char* head = dec.need(7)
    cdef int form = head[0], ndim = head[3], order = head[4]
    if head[1] == c"*":
        dec.need(length(dec))
    dec.need(ndim * (16 if order == 2 else 8))
    return form


cdef int skip_inline_array(Decoder dec) except -1:
    if skip_array_head(dec) != 0:
        raise broken(dec, "an array in shared memory over a connection that has none")
    return skip_array_data(dec)


cdef int skip_array_data(Decoder dec) except -1:
    cdef uint64_t n
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
