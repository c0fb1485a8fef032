# Frames and the value codec of the fast protocol: docs/wire.md, sections 2 and 3. _wire.pxd is the header one reads.
#
# Three parts: buffers (Encoder, Decoder), one small Codec class per kind with its two directions side by side, and what a method
# makes of them (MethodCodec, errors, Link). A value that does not fit raises Unfit inside and grows its path on the way out;
# MethodCodec turns it into ArgumentError or ResultError. Whatever the peer may have caused is RemoteProtocolError.

from cpython.buffer cimport PyBUF_FULL_RO, PyBuffer_Release, PyBuffer_ToContiguous, PyObject_GetBuffer, Py_buffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_Check, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.complex cimport PyComplex_Check, PyComplex_FromDoubles
from cpython.datetime cimport (
    date_day, date_month, date_new, date_year, datetime_day, datetime_fold, datetime_hour, datetime_microsecond, datetime_minute,
    datetime_month, datetime_new, datetime_second, datetime_tzinfo, datetime_year, import_datetime, PyDate_Check, PyDateTime_Check,
    PyDelta_Check, timedelta_days, timedelta_microseconds, timedelta_new, timedelta_seconds, timezone_new,
)
from cpython.dict cimport PyDict_Check, PyDict_Next, PyDict_SetItem, PyDict_Size
from cpython.exc cimport PyErr_Clear
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_Check, PyFloat_FromDouble
from cpython.list cimport PyList_Append, PyList_Check, PyList_GET_ITEM, PyList_GET_SIZE, PyList_New, PyList_SET_ITEM
from cpython.long cimport PyLong_AsDouble, PyLong_AsLongLongAndOverflow, PyLong_Check, PyLong_FromLongLong
from cpython.object cimport PyObject, PyObject_GetAttr
from cpython.ref cimport Py_INCREF, Py_XDECREF
from cpython.tuple cimport PyTuple_Check, PyTuple_GET_ITEM, PyTuple_GET_SIZE, PyTuple_New, PyTuple_SET_ITEM
from cpython.unicode cimport PyUnicode_Check
from libc.stdint cimport int32_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy

import sys
from collections import namedtuple

from fastplug import _wire_words as words
from fastplug._wire_words import Unfit
from fastplug.annotation import MISSING, Kind, TypeNode
from fastplug.errors import ArgumentError, LocalProtocolError, PluginError, RemoteProtocolError, ResultError, remote_error

__all__ = [
    "ArrayPort", "Codec", "Decoder", "Encoder", "Header", "Link", "MESSAGE_BYTES_MAX", "MethodCodec", "PyLink", "Unfit",
    "compile_node", "has_arrays", "live", "pack_error", "pack_header", "unpack_error", "unpack_header",
]

cdef extern from *:
    """
    #if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
    #error "fastplug copies integers to the wire as they lie in memory, and the wire is little-endian"
    #endif
    #define fastplug_count(counter, n) __atomic_add_fetch(&(counter), (n), __ATOMIC_RELAXED)
    """
    void fastplug_count(Py_ssize_t counter, int n) noexcept nogil

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL
    # Declared without an exception: the caller looks at NULL itself, which spares the hot path a try block.
    PyObject* PyUnicode_DecodeUTF8(const char* text, Py_ssize_t size, const char* errors)
    double PyComplex_RealAsDouble(object value) except? -1.0
    double PyComplex_ImagAsDouble(object value) except? -1.0
    object PyObject_Call(object function, PyObject* args, PyObject* kwargs)

import_datetime()

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

cdef dict TAG_NAMES = {
    NONE: "None", FALSE: "bool", TRUE: "bool", INT64: "int", INT: "int", FLOAT: "float", COMPLEX: "complex", STR: "str", BYTES: "bytes",
    LIST: "list", TUPLE: "tuple", DICT: "dict", DATETIME: "datetime", DATE: "date", TIMEDELTA: "timedelta", DECIMAL: "Decimal",
    UUID: "UUID", ENUM: "enum member", STRUCT: "dataclass", ARRAY: "array",
}

# wire.md, "Limits".
MESSAGE_BYTES_MAX = 1 << 30
cdef Py_ssize_t MESSAGE_MAX = 1 << 30
cdef enum:
    DEPTH_MAX = 64
    INT_BYTES_MAX = 1 << 20
    BUFFER_BYTES_FIRST = 512
    # A buffer that one large message made larger than this shrinks again at the next small one.
    BUFFER_BYTES_KEPT = 1 << 20
    # Made at once for a list whose length a peer announces; a longer one grows as its items really come.
    ITEMS_AT_ONCE = 1 << 16

cdef int64_t DAY_US = 86400000000
cdef int64_t ORDINAL_OF_EPOCH = 719163             # date(1970, 1, 1).toordinal()
cdef int64_t ORDINAL_MAX = 3652059                 # date.max.toordinal()

cdef Py_ssize_t live_encoders = 0
cdef Py_ssize_t live_decoders = 0


def live():
    """How many Encoder and Decoder objects exist in this process: 0 each when nothing leaks and every connection is closed."""
    return {"encoders": live_encoders, "decoders": live_decoders}


# --- buffers ----------------------------------------------------------------------------------------------------------------

cdef class Encoder:
    def __cinit__(self, ArrayPort port=None, *, Py_ssize_t limit=MESSAGE_BYTES_MAX):
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

    cdef unsigned char* take(self, Py_ssize_t n) except NULL:
        cdef unsigned char* place
        # Both comparisons in one: the limit can be lower than the capacity.
        if n > min(self.capacity, self.limit) - self.size:
            self.grow(n)
        place = self.data + self.size
        self.size += n
        return place

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

    cdef const unsigned char* need(self, Py_ssize_t n) except NULL:
        cdef const unsigned char* place
        if n > self.size - self.pos:
            raise broken(self, f"a payload that ends {n - (self.size - self.pos)} bytes too early")
        place = self.data + self.pos
        self.pos += n
        return place

    def decode(self, Codec codec not None, data):
        """The one value that ``data`` holds. Raises RemoteProtocolError. For tests and tools; not thread-safe."""
        load(self, data)
        value = codec.decode(self)
        finish(self)
        return value


cdef int load(Decoder dec, object data) except -1:
    cdef bytes copy = bytes(data)
    memcpy(dec.fill(PyBytes_GET_SIZE(copy)), PyBytes_AS_STRING(copy), PyBytes_GET_SIZE(copy))
    return 0


cdef int finish(Decoder dec) except -1:
    if dec.pos != dec.size:
        raise broken(dec, f"{dec.size - dec.pos} bytes behind the last value")
    return 0


cdef object broken(Decoder dec, str what):
    return RemoteProtocolError(f"the peer sent {what} (at byte {dec.pos} of {dec.size}); its side of the connection has a bug, open a new one")


cdef object confused(Decoder dec, str expected, int tag):
    dec.pos -= 1                                          # back to the tag, where skip_rest() can go on
    return broken(dec, f"{TAG_NAMES.get(tag) or f'the unknown tag {tag:#04x}'} where {expected} is declared")


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
        raise broken(dec, f"a length of {n} with {dec.size - dec.pos} bytes left")
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
        raise Unfit(f"a value nested deeper than {DEPTH_MAX} levels (does it contain itself?)", final=True)
    return 0


cdef inline int enter_decoder(Decoder dec) except -1:
    dec.depth += 1
    if dec.depth > DEPTH_MAX:
        raise broken(dec, f"a value nested deeper than {DEPTH_MAX} levels")
    return 0


cdef object numpy_scalar(object value, str kinds):
    # The Python value of a numpy scalar whose dtype.kind is one of `kinds`; None for anything else. Nobody has a numpy scalar
    # before numpy is loaded, so it is never imported for this.
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, getattr(numpy, "generic", ())) or value.dtype.kind not in kinds:
        return None
    if value.dtype.kind in "iu":
        return int(value)
    return {"b": bool, "f": float, "c": complex}[value.dtype.kind](value)


# --- one class per kind -----------------------------------------------------------------------------------------------------

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
        # What the kind needs beyond its children's codecs.
        self.children = tuple([compile_one(arg, memo) for arg in node.args])
        return 0

    cdef int encode(self, Encoder enc, object value) except -1:
        raise LocalProtocolError("a Codec is made by compile_node()")

    cdef object decode(self, Decoder dec):
        raise LocalProtocolError("a Codec is made by compile_node()")


cdef class NoneCodec(Codec):
    cdef int encode(self, Encoder enc, object value) except -1:
        if value is not None:
            raise Unfit(words.got(value))
        enc.take(1)[0] = NONE
        return 0

    cdef object decode(self, Decoder dec):
        expect(dec, self, NONE)
        return None


cdef class BoolCodec(Codec):
    cdef int encode(self, Encoder enc, object value) except -1:
        if value is not True and value is not False:
            plain = numpy_scalar(value, "b")
            if plain is None:
                raise Unfit(words.got(value))
            value = plain
        enc.take(1)[0] = TRUE if value is True else FALSE
        return 0

    cdef object decode(self, Decoder dec):
        cdef int tag = tag_of(dec)
        if tag == TRUE:
            return True
        if tag == FALSE:
            return False
        raise confused(dec, self.canonical, tag)


cdef class IntCodec(Codec):
    cdef int encode(self, Encoder enc, object value) except -1:
        cdef int overflow = 0
        cdef long long number
        cdef unsigned char* p
        if not PyLong_Check(value):
            plain = numpy_scalar(value, "iu")
            if plain is None:
                raise Unfit(words.got(value))
            value = plain
        number = PyLong_AsLongLongAndOverflow(value, &overflow)
        if overflow:
            return put_large_int(enc, value)
        p = enc.take(9)
        p[0] = INT64
        memcpy(p + 1, &number, 8)
        return 0

    cdef object decode(self, Decoder dec):
        cdef int tag = tag_of(dec)
        cdef int64_t number
        if tag == INT64:
            memcpy(&number, dec.need(8), 8)
            return PyLong_FromLongLong(number)
        if tag == INT:
            return large_int(dec)
        raise confused(dec, self.canonical, tag)


cdef int put_large_int(Encoder enc, object value) except -1:
    # Two's complement needs one bit beside those of the magnitude (of ~value for a negative one).
    cdef Py_ssize_t n = (int.bit_length(value) if value >= 0 else int.bit_length(~value)) // 8 + 1
    if n > INT_BYTES_MAX:
        raise Unfit(f"int of {n} bytes (at most {INT_BYTES_MAX} travel)")
    cdef bytes data = int.to_bytes(value, n, "little", signed=True)
    return put_sized(enc, INT, PyBytes_AS_STRING(data), n)


cdef object large_int(Decoder dec):
    cdef Py_ssize_t n = length(dec)
    cdef const unsigned char* p = dec.need(n)
    if n < 9 or n > INT_BYTES_MAX:
        raise broken(dec, f"an int of {n} bytes (9 to {INT_BYTES_MAX} are allowed)")
    if (p[n - 1] == 0 and p[n - 2] < 0x80) or (p[n - 1] == 0xFF and p[n - 2] >= 0x80):
        raise broken(dec, "an int that is not in its shortest form")
    return int.from_bytes(PyBytes_FromStringAndSize(<const char*>p, n), "little", signed=True)


cdef class FloatCodec(Codec):
    cdef int encode(self, Encoder enc, object value) except -1:
        cdef double number
        cdef unsigned char* p
        if PyFloat_Check(value):
            number = PyFloat_AS_DOUBLE(value)
        else:
            number = float_of_int(value)
        p = enc.take(9)
        p[0] = FLOAT
        memcpy(p + 1, &number, 8)
        return 0

    cdef object decode(self, Decoder dec):
        cdef int tag = tag_of(dec)
        cdef double number
        cdef int64_t integer
        if tag == FLOAT:
            memcpy(&number, dec.need(8), 8)
            return PyFloat_FromDouble(number)
        if tag == INT64:
            memcpy(&integer, dec.need(8), 8)
            return PyFloat_FromDouble(<double>integer)
        if tag == INT:
            try:
                return float(large_int(dec))
            except OverflowError as error:
                raise broken(dec, "an int that is too large for a float") from error
        raise confused(dec, self.canonical, tag)


cdef double float_of_int(object value) except? -1.0:
    plain = value if PyLong_Check(value) else numpy_scalar(value, "fiu")
    if plain is None:
        raise Unfit(words.got(value))
    if PyFloat_Check(plain):
        return PyFloat_AS_DOUBLE(plain)
    try:
        return PyLong_AsDouble(plain)
    except OverflowError as error:
        raise Unfit("an int that is too large for a float") from error


cdef class ComplexCodec(Codec):
    cdef int encode(self, Encoder enc, object value) except -1:
        cdef double real
        cdef double imaginary = 0.0
        cdef unsigned char* p
        if not PyComplex_Check(value):
            plain = numpy_scalar(value, "c")
            value = value if plain is None else plain
        if PyComplex_Check(value):
            real = PyComplex_RealAsDouble(value)
            imaginary = PyComplex_ImagAsDouble(value)
        elif PyFloat_Check(value):
            real = PyFloat_AS_DOUBLE(value)
        else:
            real = float_of_int(value)
        p = enc.take(17)
        p[0] = COMPLEX
        memcpy(p + 1, &real, 8)
        memcpy(p + 9, &imaginary, 8)
        return 0

    cdef object decode(self, Decoder dec):
        cdef double real, imaginary
        cdef const unsigned char* p
        expect(dec, self, COMPLEX)
        p = dec.need(16)
        memcpy(&real, p, 8)
        memcpy(&imaginary, p + 8, 8)
        return PyComplex_FromDoubles(real, imaginary)


cdef int put_text(Encoder enc, int tag, object value) except -1:
    cdef Py_ssize_t n = 0
    cdef const char* text
    try:
        text = PyUnicode_AsUTF8AndSize(value, &n)
    except UnicodeEncodeError as error:
        raise Unfit(f"str that UTF-8 cannot encode (a lone surrogate at {error.start})") from error
    return put_sized(enc, tag, text, n)


cdef object text_of(Decoder dec):
    cdef Py_ssize_t n = length(dec)
    cdef const unsigned char* p = dec.need(n)
    cdef PyObject* text = PyUnicode_DecodeUTF8(<const char*>p, n, NULL)
    if text == NULL:
        PyErr_Clear()
        raise broken(dec, "text that is not UTF-8")
    value = <object>text
    Py_XDECREF(text)
    return value


cdef class StrCodec(Codec):
    cdef int encode(self, Encoder enc, object value) except -1:
        if not PyUnicode_Check(value):
            raise Unfit(words.got(value))
        return put_text(enc, STR, value)

    cdef object decode(self, Decoder dec):
        expect(dec, self, STR)
        return text_of(dec)


cdef class BytesCodec(Codec):
    cdef int encode(self, Encoder enc, object value) except -1:
        if PyBytes_Check(value):
            return put_sized(enc, BYTES, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
        if not isinstance(value, (bytearray, memoryview)):
            raise Unfit(words.got(value))
        return put_buffer(enc, value)

    cdef object decode(self, Decoder dec):
        cdef Py_ssize_t n
        expect(dec, self, BYTES)
        n = length(dec)
        return PyBytes_FromStringAndSize(<const char*>dec.need(n), n)


cdef int put_buffer(Encoder enc, object value) except -1:
    cdef Py_buffer view
    PyObject_GetBuffer(value, &view, PyBUF_FULL_RO)
    try:
        # The head and the body apart, so that a body of 4 GiB cannot wrap its length: take() refuses it.
        put_head(enc, BYTES, view.len)
        PyBuffer_ToContiguous(enc.take(view.len), &view, view.len, b"C")
    finally:
        PyBuffer_Release(&view)
    return 0


cdef class ListCodec(Codec):
    cdef int encode(self, Encoder enc, object value) except -1:
        cdef Codec item
        cdef Py_ssize_t i = 0, n
        if not PyList_Check(value):
            raise Unfit(words.got_sequence(value, "list"))
        item = <Codec>PyTuple_GET_ITEM(self.children, 0)
        n = PyList_GET_SIZE(value)
        put_head(enc, LIST, n)
        enter(enc)
        try:
            while i < n:
                if PyList_GET_SIZE(value) != n:           # an item's own code (a property, a tzinfo) may change the list
                    raise Unfit("a container that changed in length while it was encoded", final=True)
                one = <object>PyList_GET_ITEM(value, i)
                item.encode(enc, one)
                i += 1
        except Unfit as unfit:
            unfit.inside(f"list whose item {i} is")
            raise
        enc.depth -= 1
        return 0

    cdef object decode(self, Decoder dec):
        expect(dec, self, LIST)
        return items_of(dec, <Codec>PyTuple_GET_ITEM(self.children, 0))


cdef list items_of(Decoder dec, Codec item):
    cdef Py_ssize_t i, n = length(dec)
    cdef Py_ssize_t at_once = min(n, <Py_ssize_t>ITEMS_AT_ONCE)
    cdef list made = PyList_New(at_once)
    enter_decoder(dec)
    for i in range(at_once):
        one = item.decode(dec)
        Py_INCREF(one)
        PyList_SET_ITEM(made, i, one)
    for i in range(at_once, n):
        PyList_Append(made, item.decode(dec))
    dec.depth -= 1
    return made


cdef class TupleCodec(Codec):
    cdef int encode(self, Encoder enc, object value) except -1:
        cdef Py_ssize_t i = 0, n = PyTuple_GET_SIZE(self.children)
        if not PyTuple_Check(value):
            raise Unfit(words.got_sequence(value, "tuple"))
        if PyTuple_GET_SIZE(value) != n:
            raise Unfit(f"tuple of length {PyTuple_GET_SIZE(value)}")
        put_head(enc, TUPLE, n)
        enter(enc)
        try:
            while i < n:
                (<Codec>PyTuple_GET_ITEM(self.children, i)).encode(enc, <object>PyTuple_GET_ITEM(value, i))
                i += 1
        except Unfit as unfit:
            unfit.inside(f"tuple whose item {i} is")
            raise
        enc.depth -= 1
        return 0

    cdef object decode(self, Decoder dec):
        cdef Py_ssize_t n = PyTuple_GET_SIZE(self.children)
        cdef Py_ssize_t count
        expect(dec, self, TUPLE)
        count = length(dec)
        if count != n:
            raise broken(dec, f"a tuple of length {count} where {self.canonical} is declared")
        enter_decoder(dec)
        made = tuple_of(dec, self.children, n)
        dec.depth -= 1
        return made


cdef tuple tuple_of(Decoder dec, tuple codecs, Py_ssize_t n):
    # The next n values, each of the kind of its codec.
    cdef tuple made = PyTuple_New(n)
    cdef Py_ssize_t i
    for i in range(n):
        one = (<Codec>PyTuple_GET_ITEM(codecs, i)).decode(dec)
        Py_INCREF(one)
        PyTuple_SET_ITEM(made, i, one)
    return made


cdef class SequenceCodec(Codec):
    cdef int encode(self, Encoder enc, object value) except -1:
        cdef Codec item
        cdef Py_ssize_t i = 0, n
        if not PyTuple_Check(value):
            raise Unfit(words.got_sequence(value, "tuple"))
        item = <Codec>PyTuple_GET_ITEM(self.children, 0)
        n = PyTuple_GET_SIZE(value)
        put_head(enc, TUPLE, n)
        enter(enc)
        try:
            while i < n:
                item.encode(enc, <object>PyTuple_GET_ITEM(value, i))
                i += 1
        except Unfit as unfit:
            unfit.inside(f"tuple whose item {i} is")
            raise
        enc.depth -= 1
        return 0

    cdef object decode(self, Decoder dec):
        expect(dec, self, TUPLE)
        return tuple(items_of(dec, <Codec>PyTuple_GET_ITEM(self.children, 0)))


cdef class DictCodec(Codec):
    cdef int encode(self, Encoder enc, object value) except -1:
        cdef PyObject* key = NULL
        cdef PyObject* item = NULL
        cdef Py_ssize_t pos = 0, n
        cdef bint in_key = True
        if not PyDict_Check(value):
            raise Unfit(words.got(value))
        n = PyDict_Size(value)
        put_head(enc, DICT, n)
        enter(enc)
        try:
            while PyDict_Next(value, &pos, &key, &item):
                held_key, held_item = <object>key, <object>item
                in_key = True
                (<Codec>PyTuple_GET_ITEM(self.children, 0)).encode(enc, held_key)
                in_key = False
                (<Codec>PyTuple_GET_ITEM(self.children, 1)).encode(enc, held_item)
                if PyDict_Size(value) != n:
                    raise Unfit("a container that changed in length while it was encoded", final=True)
        except Unfit as unfit:
            unfit.inside("dict with a key that is" if in_key else f"dict whose value at {words.shown(held_key)} is")
            raise
        enc.depth -= 1
        return 0

    cdef object decode(self, Decoder dec):
        cdef Py_ssize_t i, n
        cdef dict made = {}
        expect(dec, self, DICT)
        n = length(dec)
        enter_decoder(dec)
        for i in range(n):
            key = (<Codec>PyTuple_GET_ITEM(self.children, 0)).decode(dec)
            PyDict_SetItem(made, key, (<Codec>PyTuple_GET_ITEM(self.children, 1)).decode(dec))
        dec.depth -= 1
        return made


cdef class OptionalCodec(Codec):
    cdef int encode(self, Encoder enc, object value) except -1:
        if value is None:
            enc.take(1)[0] = NONE
            return 0
        return (<Codec>PyTuple_GET_ITEM(self.children, 0)).encode(enc, value)

    cdef object decode(self, Decoder dec):
        if dec.pos < dec.size and dec.data[dec.pos] == NONE:
            dec.pos += 1
            return None
        return (<Codec>PyTuple_GET_ITEM(self.children, 0)).decode(dec)


cdef int64_t days_of(int64_t year, int64_t month, int64_t day) noexcept:
    # Days since 1970-01-01 of a day of the proleptic Gregorian calendar; years begin in March, so that leap days come last.
    cdef int64_t y = year - (month <= 2)
    cdef int64_t era = y // 400
    cdef int64_t year_of_era = y - era * 400
    cdef int64_t day_of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    return era * 146097 + year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year - 719468


cdef void civil_of(int64_t days, int* year, int* month, int* day) noexcept:
    # The inverse of days_of, from year 1 on.
    cdef int64_t z = days + 719468
    cdef int64_t era = z // 146097
    cdef int64_t doe = z - era * 146097
    cdef int64_t yoe = (doe - doe // 1460 + doe // 36524 - doe // 146096) // 365
    cdef int64_t doy = doe - (365 * yoe + yoe // 4 - yoe // 100)
    cdef int64_t mp = (5 * doy + 2) // 153
    day[0] = <int>(doy - (153 * mp + 2) // 5 + 1)
    month[0] = <int>(mp + 3 if mp < 10 else mp - 9)
    year[0] = <int>(yoe + era * 400 + (month[0] <= 2))


cdef class DatetimeCodec(Codec):
    cdef int encode(self, Encoder enc, object value) except -1:
        cdef int64_t wall, offset = 0
        cdef unsigned char* p
        cdef uint8_t flags = 0
        if not PyDateTime_Check(value):
            raise Unfit(words.got(value))
        wall = days_of(datetime_year(value), datetime_month(value), datetime_day(value)) * DAY_US
        wall += (datetime_hour(value) * 3600 + datetime_minute(value) * 60 + datetime_second(value)) * <int64_t>1000000
        wall += datetime_microsecond(value)
        if datetime_tzinfo(value) is not None:
            delta = value.utcoffset()
            if delta is not None:                         # a tzinfo may say that it does not know: Python calls that naive, too
                flags |= 1
                offset = timedelta_days(delta) * DAY_US + timedelta_seconds(delta) * <int64_t>1000000 + timedelta_microseconds(delta)
        if datetime_fold(value):
            flags |= 2
        p = enc.take(18)
        p[0] = DATETIME
        memcpy(p + 1, &wall, 8)
        memcpy(p + 9, &offset, 8)
        p[17] = flags
        return 0

    cdef object decode(self, Decoder dec):
        cdef int64_t wall, offset, days
        cdef int year, month, day, second
        cdef const unsigned char* p
        expect(dec, self, DATETIME)
        p = dec.need(17)
        memcpy(&wall, p, 8)
        memcpy(&offset, p + 8, 8)
        if p[16] > 3 or not -DAY_US < offset < DAY_US or (offset != 0 and not p[16] & 1):
            raise broken(dec, "a datetime with an offset or flags that cannot be")
        days = wall // DAY_US - (wall % DAY_US < 0)       # C divides towards zero
        if not 1 <= days + ORDINAL_OF_EPOCH <= ORDINAL_MAX:
            raise broken(dec, "a datetime outside the years 1 to 9999")
        wall -= days * DAY_US
        civil_of(days, &year, &month, &day)
        second = <int>(wall // 1000000)
        zone = None
        if p[16] & 1:
            days = offset // DAY_US - (offset % DAY_US < 0)
            offset -= days * DAY_US
            zone = timezone_new(timedelta_new(<int>days, <int>(offset // 1000000), <int>(offset % 1000000)))
        return datetime_new(year, month, day, second // 3600, second // 60 % 60, second % 60, <int>(wall % 1000000), zone, p[16] >> 1)


cdef class DateCodec(Codec):
    cdef int encode(self, Encoder enc, object value) except -1:
        cdef int32_t ordinal
        cdef unsigned char* p
        if not PyDate_Check(value) or PyDateTime_Check(value):
            raise Unfit(f"{words.got(value)} (pass its .date())" if PyDateTime_Check(value) else words.got(value))
        ordinal = <int32_t>(days_of(date_year(value), date_month(value), date_day(value)) + ORDINAL_OF_EPOCH)
        p = enc.take(5)
        p[0] = DATE
        memcpy(p + 1, &ordinal, 4)
        return 0

    cdef object decode(self, Decoder dec):
        cdef int32_t ordinal
        cdef int year, month, day
        expect(dec, self, DATE)
        memcpy(&ordinal, dec.need(4), 4)
        if not 1 <= ordinal <= ORDINAL_MAX:
            raise broken(dec, "a date outside the years 1 to 9999")
        civil_of(ordinal - ORDINAL_OF_EPOCH, &year, &month, &day)
        return date_new(year, month, day)


cdef class TimedeltaCodec(Codec):
    cdef int encode(self, Encoder enc, object value) except -1:
        cdef int32_t parts[3]
        cdef unsigned char* p
        if not PyDelta_Check(value):
            raise Unfit(words.got(value))
        parts[0], parts[1], parts[2] = timedelta_days(value), timedelta_seconds(value), timedelta_microseconds(value)
        p = enc.take(13)
        p[0] = TIMEDELTA
        memcpy(p + 1, parts, 12)
        return 0

    cdef object decode(self, Decoder dec):
        cdef int32_t parts[3]
        expect(dec, self, TIMEDELTA)
        memcpy(parts, dec.need(12), 12)
        if not (-999999999 <= parts[0] <= 999999999 and 0 <= parts[1] < 86400 and 0 <= parts[2] < 1000000):
            raise broken(dec, "a timedelta that is not normalised")
        return timedelta_new(parts[0], parts[1], parts[2])


cdef class DecimalCodec(Codec):
    cdef int setup(self, object node, dict memo) except -1:
        from decimal import Decimal
        self.cls = Decimal
        return 0

    cdef int encode(self, Encoder enc, object value) except -1:
        if not isinstance(value, self.cls):
            raise Unfit(words.got(value))
        return put_text(enc, DECIMAL, self.cls.__str__(value))

    cdef object decode(self, Decoder dec):
        expect(dec, self, DECIMAL)
        text = text_of(dec)
        value = words.decimal_of(self.cls, text)
        if value is None:
            raise broken(dec, "a Decimal whose text is no number")
        return value


cdef class UuidCodec(Codec):
    cdef int setup(self, object node, dict memo) except -1:
        from uuid import UUID as uuid_class
        self.cls = uuid_class
        return 0

    cdef int encode(self, Encoder enc, object value) except -1:
        cdef unsigned char* p
        cdef bytes data
        if not isinstance(value, self.cls):
            raise Unfit(words.got(value))
        data = self.cls.bytes.fget(value)
        p = enc.take(17)
        p[0] = UUID
        memcpy(p + 1, PyBytes_AS_STRING(data), 16)
        return 0

    cdef object decode(self, Decoder dec):
        expect(dec, self, UUID)
        return self.cls(bytes=PyBytes_FromStringAndSize(<const char*>dec.need(16), 16))


cdef class EnumCodec(Codec):
    # Members are singletons that live as long as their class: `extra` finds a member's name by id, and the member by name.
    cdef dict name_by_id
    cdef dict member_by_name

    cdef int setup(self, object node, dict memo) except -1:
        self.cls = node.cls
        self.name_by_id = {}
        self.member_by_name = {}
        for name, member in node.cls.__members__.items():
            self.member_by_name[name.encode()] = member
            self.name_by_id.setdefault(<size_t><void*>member, name.encode())
        return 0

    cdef int encode(self, Encoder enc, object value) except -1:
        cdef object name = self.name_by_id.get(<size_t><void*>value)
        if name is None:
            name = words.flag_name(self.cls, value)
        return put_sized(enc, ENUM, PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name))

    cdef object decode(self, Decoder dec):
        cdef Py_ssize_t n
        expect(dec, self, ENUM)
        n = length(dec)
        name = PyBytes_FromStringAndSize(<const char*>dec.need(n), n)
        member = self.member_by_name.get(name)
        if member is None:
            member = words.flag_of(self.cls, name)
        if member is None:
            raise broken(dec, f"{name[:80]!r}, which is no member of {self.canonical}")
        return member


cdef class StructCodec(Codec):
    cdef bint positional                                  # its constructor takes all fields by position, in this order

    cdef int setup(self, object node, dict memo) except -1:
        self.cls = node.cls
        self.names = tuple([sys.intern(field.name) for field in node.fields])
        self.defaults = tuple([field.default for field in node.fields])
        self.children = tuple([compile_one(field.node, memo) for field in node.fields])
        self.positional = words.takes_positional(node.cls, self.names)
        return 0

    cdef int encode(self, Encoder enc, object value) except -1:
        cdef Py_ssize_t i = 0, n = PyTuple_GET_SIZE(self.children)
        if type(value) is not self.cls and not isinstance(value, self.cls):
            raise Unfit(words.got(value))
        put_head(enc, STRUCT, n)
        enter(enc)
        try:
            while i < n:
                one = PyObject_GetAttr(value, <object>PyTuple_GET_ITEM(self.names, i))
                (<Codec>PyTuple_GET_ITEM(self.children, i)).encode(enc, one)
                i += 1
        except Unfit as unfit:
            unfit.inside(f"{self.canonical} whose field {self.names[i]!r} is")
            raise
        except AttributeError as error:
            raise Unfit(f"{self.canonical} without a field {self.names[i]!r}") from error
        enc.depth -= 1
        return 0

    cdef object decode(self, Decoder dec):
        cdef Py_ssize_t n = PyTuple_GET_SIZE(self.children)
        cdef Py_ssize_t i, count
        cdef tuple values
        expect(dec, self, STRUCT)
        count = length(dec)
        enter_decoder(dec)
        if count < n:
            values = self.completed(dec, tuple_of(dec, self.children, count))
        else:
            values = tuple_of(dec, self.children, n)
            for i in range(count - n):                    # fields that a newer peer added
                skip_value(dec)
        dec.depth -= 1
        try:
            if self.positional:
                return PyObject_Call(self.cls, <PyObject*>values, NULL)
            return self.cls(**dict(zip(self.names, values)))
        except Exception as error:
            raise broken(dec, f"a {self.canonical} that its constructor refuses ({type(error).__name__}: {error})") from error

    cdef tuple completed(self, Decoder dec, tuple values):
        # With the defaults of the fields that an older peer does not know.
        cdef list made = list(values)
        for i in range(len(values), len(self.names)):
            default = self.defaults[i]
            if default is MISSING:
                raise broken(dec, f"a {self.canonical} without a field {self.names[i]!r}")
            made.append(default())
        return tuple(made)


cdef class ArrayCodec(Codec):
    cdef int setup(self, object node, dict memo) except -1:
        self.dtype = node.dtype
        self.children = ()
        return 0

    cdef int encode(self, Encoder enc, object value) except -1:
        if enc.port is None:
            raise LocalProtocolError("this connection carries no arrays; it was made without an array port")
        return enc.port.put(enc, value, self)

    cdef object decode(self, Decoder dec):
        expect(dec, self, ARRAY)
        if dec.port is None:
            raise LocalProtocolError("this connection carries no arrays; it was made without an array port")
        return dec.port.get(dec, self)


# In the order of annotation.Kind.
cdef tuple CODECS = (
    NoneCodec, BoolCodec, IntCodec, FloatCodec, ComplexCodec, StrCodec, BytesCodec, ListCodec, TupleCodec, SequenceCodec, DictCodec,
    DatetimeCodec, DateCodec, TimedeltaCodec, DecimalCodec, UuidCodec, EnumCodec, OptionalCodec, StructCodec, ArrayCodec,
)


def compile_node(node):
    """The Codec of an ``annotation.TypeNode``. Immutable, so it may be shared by threads."""
    return compile_one(node, {})


cdef Codec compile_one(object node, dict memo):
    # Remembered before its children are compiled: a recursive dataclass finds itself.
    cdef Codec codec = memo.get(node)
    if codec is None:
        codec = CODECS[node.kind]()
        memo[node] = codec
        codec.kind = node.kind
        codec.canonical = words.canonical(node)
        codec.setup(node, memo)
    return codec


cdef int ARRAY_KIND = Kind.ARRAY


def has_arrays(Codec codec not None):
    """Whether an array may stand anywhere in a value of this codec."""
    seen = set()
    waiting = [codec]
    while waiting:
        one = <Codec>waiting.pop()
        if one.kind == ARRAY_KIND:
            return True
        if one not in seen:
            seen.add(one)
            waiting.extend(one.children)
    return False


# --- passing over what nobody wants -----------------------------------------------------------------------------------------

cdef Py_ssize_t skip_token(Decoder dec) except -1:
    # One tag and what belongs to it but other values: how many of these follow.
    cdef int tag = tag_of(dec)
    cdef Py_ssize_t n
    if tag <= TRUE:
        return 0
    if tag == LIST or tag == TUPLE or tag == STRUCT:
        return length(dec)
    if tag == DICT:
        return 2 * length(dec)
    if tag == INT or tag == STR or tag == BYTES or tag == DECIMAL or tag == ENUM:
        n = length(dec)
    elif tag == INT64 or tag == FLOAT:
        n = 8
    elif tag == COMPLEX or tag == UUID:
        n = 16
    elif tag == DATETIME:
        n = 17
    elif tag == DATE:
        n = 4
    elif tag == TIMEDELTA:
        n = 12
    elif tag == ARRAY:
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


# --- methods and errors -----------------------------------------------------------------------------------------------------

cdef class MethodCodec:
    def __init__(self, str interface not None, method):
        parameters = method.parameters
        memo = {}
        self.interface = interface
        self.name = method.name
        self.qualified = f"{interface}.{method.name}"
        self.parameters = tuple([parameter.name for parameter in parameters])
        self.codecs = tuple([compile_one(parameter.node, memo) for parameter in parameters])
        self.defaults = tuple([parameter.default for parameter in parameters])
        self.keyword_only = tuple([parameter.name for parameter in parameters if parameter.keyword_only])
        self.positional = len(self.parameters) - len(self.keyword_only)
        self.result = compile_one(method.returns, memo)

    def __repr__(self):
        return f"<MethodCodec {self.qualified}>"

    cdef int encode_arguments(self, Encoder enc, tuple args, dict kwargs) except -1:
        cdef Py_ssize_t i = 0, n
        cdef uint16_t count
        if PyTuple_GET_SIZE(args) != PyTuple_GET_SIZE(self.codecs) or self.keyword_only or kwargs:
            args = self.bound(args, kwargs or {})
        n = PyTuple_GET_SIZE(args)
        count = <uint16_t>n
        try:
            memcpy(enc.take(2), &count, 2)
            while i < n:
                (<Codec>PyTuple_GET_ITEM(self.codecs, i)).encode(enc, <object>PyTuple_GET_ITEM(args, i))
                i += 1
        except Exception as error:
            raise words.argument_error(self.qualified, self.parameters[i], self.codecs[i].canonical, args[i], error)
        return 0

    cdef tuple bound(self, tuple args, dict kwargs):
        # The values in order of declaration, as far as the last one given: the plugin's defaults stand for the rest.
        cdef Py_ssize_t given = len(args)
        cdef Py_ssize_t end = given
        cdef list values
        if given > self.positional:
            raise words.too_many(self.qualified, self.positional, given)
        values = list(args) + list(self.defaults[given:])
        for name, value in kwargs.items():
            if name not in self.parameters:
                raise words.unexpected(self.qualified, name)
            i = self.parameters.index(name)
            if i < given:
                raise words.given_twice(self.qualified, name)
            values[i] = value
            end = max(end, i + 1)
        missing = [i for i in range(given, len(values)) if values[i] is MISSING]
        if missing:
            raise words.missing(self.qualified, [self.parameters[i] for i in missing if i < self.positional], self.keyword_only, kwargs)
        return tuple(values[:end])

    cdef tuple decode_arguments(self, Decoder dec):
        cdef uint16_t count
        cdef Py_ssize_t i, n = PyTuple_GET_SIZE(self.codecs)
        cdef tuple values
        try:
            memcpy(&count, dec.need(2), 2)
            if count > n:
                raise broken(dec, f"{count} arguments for {n} parameters")
            values = tuple_of(dec, self.codecs, count)
            finish(dec)
            if count < n:
                for i in range(count, n):
                    if self.defaults[i] is MISSING:
                        raise broken(dec, f"no argument {self.parameters[i]!r}")
                values += self.defaults[count:]
        except RemoteProtocolError as error:
            raise words.located(self.qualified, error)
        return values

    cdef object call(self, object function, tuple values):
        cdef Py_ssize_t n = self.positional
        if not self.keyword_only:
            return PyObject_Call(function, <PyObject*>values, NULL)
        return function(*values[:n], **dict(zip(self.keyword_only, values[n:])))

    cdef object decode_and_call(self, Decoder dec, object function):
        return self.call(function, self.decode_arguments(dec))

    cdef int encode_result(self, Encoder enc, object value) except -1:
        try:
            return self.result.encode(enc, value)
        except Exception as error:
            raise words.result_error(self.qualified, self.result.canonical, value, error)

    cdef object decode_result(self, Decoder dec):
        try:
            value = self.result.decode(dec)
            finish(dec)
        except RemoteProtocolError as error:
            raise words.located(self.qualified, error)
        return value

    def pack_arguments(self, tuple args not None, dict kwargs=None, *, Encoder encoder=None):
        """The payload of a REQUEST. Raises ArgumentError. For tests and tools, as the next three."""
        cdef Encoder enc = encoder or Encoder()
        enc.reset()
        self.encode_arguments(enc, args, kwargs)
        return PyBytes_FromStringAndSize(<char*>enc.data, enc.size)

    def unpack_arguments(self, data, *, Decoder decoder=None):
        """``(args, kwargs)`` as the handler gets them. Raises RemoteProtocolError."""
        cdef Decoder dec = decoder or Decoder()
        load(dec, data)
        values = self.decode_arguments(dec)
        return values[:self.positional], dict(zip(self.keyword_only, values[self.positional:]))

    def pack_result(self, value, *, Encoder encoder=None):
        """The payload of a REPLY. Raises ResultError."""
        cdef Encoder enc = encoder or Encoder()
        enc.reset()
        self.encode_result(enc, value)
        return PyBytes_FromStringAndSize(<char*>enc.data, enc.size)

    def unpack_result(self, data, *, Decoder decoder=None):
        """What the caller gets. Raises RemoteProtocolError."""
        cdef Decoder dec = decoder or Decoder()
        load(dec, data)
        return self.decode_result(dec)


# The types of the five parts of an error, and of what its args may be (wire.md, "Errors").
cdef Codec TEXT = compile_node(TypeNode(Kind.STR))
cdef Codec NAMES = compile_node(TypeNode(Kind.LIST, (TypeNode(Kind.STR),)))
cdef dict PLAIN = {
    cls: compile_node(TypeNode(kind))
    for cls, kind in ((type(None), Kind.NONE), (bool, Kind.BOOL), (int, Kind.INT), (float, Kind.FLOAT), (str, Kind.STR), (bytes, Kind.BYTES))
}
cdef dict PLAIN_BY_TAG = {
    NONE: PLAIN[type(None)], FALSE: PLAIN[bool], TRUE: PLAIN[bool], INT64: PLAIN[int], INT: PLAIN[int], FLOAT: PLAIN[float],
    STR: PLAIN[str], BYTES: PLAIN[bytes],
}


cdef int put_plain(Encoder enc, object value) except -1:
    # wire.md, "Errors": the args of an exception, whose types are not declared.
    cdef Codec codec = PLAIN[type(value)]
    return codec.encode(enc, value)


cdef object plain_of(Decoder dec):
    cdef int tag = dec.data[dec.pos] if dec.pos < dec.size else -1
    cdef Codec codec = PLAIN_BY_TAG.get(tag)
    if codec is None:
        raise confused(dec, "a plain value", tag_of(dec))
    return codec.decode(dec)


cdef int encode_error(Encoder enc, object error) except -1:
    type_name, bases, message, args, traceback = words.exception_record(error)
    put_head(enc, TUPLE, 5)
    put_text(enc, STR, type_name)
    NAMES.encode(enc, bases)
    put_text(enc, STR, message)
    put_head(enc, LIST, len(args))
    for arg in args:
        put_plain(enc, arg)
    put_text(enc, STR, traceback)
    return 0


cdef object decode_error(Decoder dec, str method):
    cdef Py_ssize_t count, i
    if tag_of(dec) != TUPLE:
        raise broken(dec, "an error that is no tuple")
    if length(dec) != 5:
        raise broken(dec, "an error that has not five parts")
    type_name = TEXT.decode(dec)
    bases = NAMES.decode(dec)
    message = TEXT.decode(dec)
    expect(dec, NAMES, LIST)
    count = length(dec)
    args = [plain_of(dec) for i in range(count)]
    traceback = TEXT.decode(dec)
    finish(dec)
    return remote_error(type_name, bases, message, args, words.cut_tail(traceback), method)


def pack_error(error):
    """The payload of an ERROR frame for a live exception."""
    cdef Encoder enc = Encoder()
    encode_error(enc, error)
    return PyBytes_FromStringAndSize(<char*>enc.data, enc.size)


def unpack_error(data, str method=""):
    """The RemoteError that the payload of an ERROR frame stands for. Raises RemoteProtocolError."""
    cdef Decoder dec = Decoder()
    load(dec, data)
    return decode_error(dec, method)


# --- frames -----------------------------------------------------------------------------------------------------------------

Header = namedtuple("Header", "size kind flags call interface method blocks remaining_ns")

cdef int check_header(const FrameHeader* header) except -1:
    if header.kind not in (FRAME_REQUEST, FRAME_REPLY, FRAME_ERROR, FRAME_PING, FRAME_PONG, FRAME_SHUTDOWN):
        raise RemoteProtocolError(f"the peer sent a frame of the unknown kind {header.kind}; open a new connection")
    if header.size > MESSAGE_MAX:
        raise RemoteProtocolError(f"the peer sent a frame of {header.size} bytes, {MESSAGE_MAX} are allowed; open a new connection")
    if header.flags & ~<int>FLAG_SPILLED:
        raise RemoteProtocolError(f"the peer sent a frame with unknown flags {header.flags:#06x}; open a new connection")
    if header.remaining_ns < 0:
        raise RemoteProtocolError(f"the peer sent a frame with {header.remaining_ns} ns remaining; open a new connection")
    return 0


def pack_header(uint32_t size, uint16_t kind, uint16_t flags=0, uint64_t call=0, uint16_t interface=0, uint16_t method=0,
                uint32_t blocks=0, int64_t remaining_ns=0):
    """The 32 bytes before a payload (wire.md, "Frames")."""
    cdef FrameHeader header
    header.size, header.kind, header.flags, header.call = size, kind, flags, call
    header.interface, header.method, header.blocks, header.remaining_ns = interface, method, blocks, remaining_ns
    return PyBytes_FromStringAndSize(<char*>&header, HEADER_BYTES)


def unpack_header(data):
    """The checked Header in the first 32 bytes of ``data``. Raises RemoteProtocolError."""
    cdef FrameHeader header
    read_header(bytes(data), &header)
    return Header(header.size, header.kind, header.flags, header.call, header.interface, header.method, header.blocks, header.remaining_ns)


cdef int read_header(bytes frame, FrameHeader* header) except -1:
    if PyBytes_GET_SIZE(frame) < HEADER_BYTES:
        raise RemoteProtocolError(f"the peer sent a frame of {PyBytes_GET_SIZE(frame)} bytes, its header alone takes {HEADER_BYTES}")
    memcpy(header, PyBytes_AS_STRING(frame), HEADER_BYTES)
    return check_header(header)


cdef class Link:
    cdef int send(self, FrameHeader* header, const unsigned char* payload, int64_t until_ns) except -1:
        raise LocalProtocolError(f"{type(self).__name__} does not send")

    cdef int receive(self, FrameHeader* header, Decoder dec, int64_t until_ns) except -1:
        raise LocalProtocolError(f"{type(self).__name__} does not receive")


cdef class PyLink(Link):
    cdef int send(self, FrameHeader* header, const unsigned char* payload, int64_t until_ns) except -1:
        cdef bytes frame = PyBytes_FromStringAndSize(NULL, HEADER_BYTES + <Py_ssize_t>header.size)
        memcpy(PyBytes_AS_STRING(frame), header, HEADER_BYTES)
        memcpy(PyBytes_AS_STRING(frame) + HEADER_BYTES, payload, header.size)
        self.send_frame(frame, until_ns / 1e9 if until_ns else None)
        return 0

    cdef int receive(self, FrameHeader* header, Decoder dec, int64_t until_ns) except -1:
        cdef bytes frame
        received = self.receive_frame(until_ns / 1e9 if until_ns else None)
        if received is None:
            return 0
        frame = bytes(received)
        read_header(frame, header)
        if PyBytes_GET_SIZE(frame) - HEADER_BYTES != header.size:
            raise RemoteProtocolError(f"the peer sent a frame of {len(frame)} bytes whose header announces {header.size} of payload")
        memcpy(dec.fill(header.size), PyBytes_AS_STRING(frame) + HEADER_BYTES, header.size)
        return 1

    def send_frame(self, frame, until_s):
        """Sends one whole frame. Raises DeadlineExceeded (nothing was sent), PluginDied, Closed."""
        raise LocalProtocolError(f"{type(self).__name__} does not send")

    def receive_frame(self, until_s):
        """The next whole frame, or None when the clock (CLOCK_MONOTONIC) reached ``until_s``."""
        raise LocalProtocolError(f"{type(self).__name__} does not receive")
