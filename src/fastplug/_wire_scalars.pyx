# The codecs of values without values inside, each with its two directions side by side.

from cpython.buffer cimport PyBUF_FULL_RO, PyBuffer_Release, PyObject_CheckBuffer, PyBuffer_ToContiguous, PyObject_GetBuffer, Py_buffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_Check, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.complex cimport PyComplex_Check, PyComplex_FromDoubles
from cpython.datetime cimport (
    date_day, date_month, date_new, date_year, datetime_day, datetime_fold, datetime_hour, datetime_microsecond, datetime_minute,
    datetime_month, datetime_new, datetime_second, datetime_tzinfo, datetime_year, import_datetime, PyDate_Check, PyDateTime_Check,
    PyDelta_Check, timedelta_days, timedelta_microseconds, timedelta_new, timedelta_seconds, timezone_new,
)
from cpython.exc cimport PyErr_Clear
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_Check, PyFloat_FromDouble
from cpython.long cimport PyLong_AsDouble, PyLong_AsLongLongAndOverflow, PyLong_Check, PyLong_FromLongLong
from cpython.object cimport PyObject
from cpython.ref cimport Py_XDECREF
from cpython.unicode cimport PyUnicode_Check
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.string cimport memcpy

from fastplug._wire_buffer cimport Codec, Decoder, Encoder, Tag, broken, confused, expect, length, put_head, put_sized, tag_of

import sys

from fastplug import _wire_words as words
from fastplug._wire_words import Unfit

__all__ = [
    "BoolCodec", "BufferCodec", "BytesCodec", "ComplexCodec", "DateCodec", "DatetimeCodec", "DecimalCodec", "EnumCodec", "FloatCodec", "IntCodec",
    "NoneCodec", "StrCodec", "TimedeltaCodec", "UuidCodec",
]

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL
    # Declared without an exception: the caller looks at NULL itself, which spares the hot path a try block.
    PyObject* PyUnicode_DecodeUTF8(const char* text, Py_ssize_t size, const char* errors)
    double PyComplex_RealAsDouble(object value) except? -1.0
    double PyComplex_ImagAsDouble(object value) except? -1.0

import_datetime()

cdef enum:
    INT_BYTES_MAX = 1 << 20         # wire.md, "Limits"
    ARRAY_BYTES = 1024              # from here on a buffer travels as an array does; shorter arrays travel inline, too

cdef int64_t DAY_US = 86400000000
cdef int64_t ORDINAL_OF_EPOCH = 719163             # date(1970, 1, 1).toordinal()
cdef int64_t ORDINAL_MAX = 3652059                 # date.max.toordinal()


cdef object numpy_scalar(object value, str kinds):
    # The Python value of a numpy scalar whose dtype.kind is one of `kinds`; None for anything else. Nobody has a numpy scalar
    # before numpy is loaded, so it is never imported for this.
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, getattr(numpy, "generic", ())) or value.dtype.kind not in kinds:
        return None
    if value.dtype.kind in "iu":
        return int(value)
    return {"b": bool, "f": float, "c": complex}[value.dtype.kind](value)


cdef class NoneCodec(Codec):
    cdef int encode(self, Encoder enc, object value) except -1:
        if value is not None:
            raise Unfit(words.got(value))
        enc.take(1)[0] = Tag.NONE
        return 0

    cdef object decode(self, Decoder dec):
        expect(dec, self, Tag.NONE)
        return None


cdef class BoolCodec(Codec):
    cdef int encode(self, Encoder enc, object value) except -1:
        if value is not True and value is not False:
            plain = numpy_scalar(value, "b")
            if plain is None:
                raise Unfit(words.got(value))
            value = plain
        enc.take(1)[0] = Tag.TRUE if value is True else Tag.FALSE
        return 0

    cdef object decode(self, Decoder dec):
        cdef int tag = tag_of(dec)
        if tag == Tag.TRUE:
            return True
        if tag == Tag.FALSE:
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
        p[0] = Tag.INT64
        memcpy(p + 1, &number, 8)
        return 0

    cdef object decode(self, Decoder dec):
        cdef int tag = tag_of(dec)
        cdef int64_t number
        if tag == Tag.INT64:
            memcpy(&number, dec.need(8), 8)
            return PyLong_FromLongLong(number)
        if tag == Tag.INT:
            return large_int(dec)
        raise confused(dec, self.canonical, tag)


cdef int put_large_int(Encoder enc, object value) except -1:
    # Two's complement needs one bit beside those of the magnitude (of ~value for a negative one).
    cdef Py_ssize_t n = (int.bit_length(value) if value >= 0 else int.bit_length(~value)) // 8 + 1
    if n > INT_BYTES_MAX:
        raise Unfit(f"int of {n} bytes (at most {INT_BYTES_MAX} travel)")
    cdef bytes data = int.to_bytes(value, n, "little", signed=True)
    return put_sized(enc, Tag.INT, PyBytes_AS_STRING(data), n)


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
        p[0] = Tag.FLOAT
        memcpy(p + 1, &number, 8)
        return 0

    cdef object decode(self, Decoder dec):
        cdef int tag = tag_of(dec)
        cdef double number
        cdef int64_t integer
        if tag == Tag.FLOAT:
            memcpy(&number, dec.need(8), 8)
            return PyFloat_FromDouble(number)
        if tag == Tag.INT64:
            memcpy(&integer, dec.need(8), 8)
            return PyFloat_FromDouble(<double>integer)
        if tag == Tag.INT:
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
        p[0] = Tag.COMPLEX
        memcpy(p + 1, &real, 8)
        memcpy(p + 9, &imaginary, 8)
        return 0

    cdef object decode(self, Decoder dec):
        cdef double real, imaginary
        cdef const unsigned char* p
        expect(dec, self, Tag.COMPLEX)
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
        return put_text(enc, Tag.STR, value)

    cdef object decode(self, Decoder dec):
        expect(dec, self, Tag.STR)
        return text_of(dec)


cdef class BytesCodec(Codec):
    cdef int encode(self, Encoder enc, object value) except -1:
        if PyBytes_Check(value):
            return put_sized(enc, Tag.BYTES, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
        if not isinstance(value, (bytearray, memoryview)):
            raise Unfit(words.got(value))
        return put_buffer(enc, value)

    cdef object decode(self, Decoder dec):
        cdef Py_ssize_t n
        expect(dec, self, Tag.BYTES)
        n = length(dec)
        return PyBytes_FromStringAndSize(<const char*>dec.need(n), n)


cdef class BufferCodec(Codec):
    """Small ones are BYTES; from 1 KiB on they are arrays of uint8, and go the way of arrays. What arrives is a read-only memoryview."""

    cdef int setup(self, object node, dict memo) except -1:
        self.children = ()
        self.dtype = "uint8"
        return 0

    cdef int encode(self, Encoder enc, object value) except -1:
        cdef Py_ssize_t n
        if not PyObject_CheckBuffer(value):
            raise Unfit(words.got(value))
        n = words.buffer_bytes(value)
        if n < ARRAY_BYTES or enc.port is None:
            return put_buffer(enc, value)
        return enc.port.put(enc, words.items_of_buffer(value), self)

    cdef object decode(self, Decoder dec):
        cdef Py_ssize_t n
        cdef int tag = tag_of(dec)
        if tag == Tag.BYTES:
            n = length(dec)
            return memoryview(PyBytes_FromStringAndSize(<const char*>dec.need(n), n))
        if tag != Tag.ARRAY or dec.port is None:
            raise confused(dec, self.canonical, tag)
        array = dec.port.get(dec, self)
        if array.ndim != 1 or not array.flags.c_contiguous:
            raise broken(dec, "a buffer whose bytes do not lie in a row")
        return memoryview(array)


cdef int put_buffer(Encoder enc, object value) except -1:
    cdef Py_buffer view
    PyObject_GetBuffer(value, &view, PyBUF_FULL_RO)
    try:
        # The head and the body apart, so that a body of 4 GiB cannot wrap its length: take() refuses it.
        put_head(enc, Tag.BYTES, view.len)
        PyBuffer_ToContiguous(enc.take(view.len), &view, view.len, b"C")
    finally:
        PyBuffer_Release(&view)
    return 0


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
        p[0] = Tag.DATETIME
        memcpy(p + 1, &wall, 8)
        memcpy(p + 9, &offset, 8)
        p[17] = flags
        return 0

    cdef object decode(self, Decoder dec):
        cdef int64_t wall, offset, days
        cdef int year, month, day, second
        cdef const unsigned char* p
        expect(dec, self, Tag.DATETIME)
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
        p[0] = Tag.DATE
        memcpy(p + 1, &ordinal, 4)
        return 0

    cdef object decode(self, Decoder dec):
        cdef int32_t ordinal
        cdef int year, month, day
        expect(dec, self, Tag.DATE)
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
        p[0] = Tag.TIMEDELTA
        memcpy(p + 1, parts, 12)
        return 0

    cdef object decode(self, Decoder dec):
        cdef int32_t parts[3]
        expect(dec, self, Tag.TIMEDELTA)
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
        return put_text(enc, Tag.DECIMAL, self.cls.__str__(value))

    cdef object decode(self, Decoder dec):
        expect(dec, self, Tag.DECIMAL)
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
        p[0] = Tag.UUID
        memcpy(p + 1, PyBytes_AS_STRING(data), 16)
        return 0

    cdef object decode(self, Decoder dec):
        expect(dec, self, Tag.UUID)
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
        return put_sized(enc, Tag.ENUM, PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name))

    cdef object decode(self, Decoder dec):
        cdef Py_ssize_t n
        expect(dec, self, Tag.ENUM)
        n = length(dec)
        name = PyBytes_FromStringAndSize(<const char*>dec.need(n), n)
        member = self.member_by_name.get(name)
        if member is None:
            member = words.flag_of(self.cls, name)
        if member is None:
            raise broken(dec, f"{name[:80]!r}, which is no member of {self.canonical}")
        return member
