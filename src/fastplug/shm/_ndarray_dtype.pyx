# docs/wire.md, "Dtypes". A number in native byte order is told by two bytes of the head; every other dtype by a text, which each side
# translates once.

import numpy as np

cimport numpy as cnp
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.string cimport memcmp

from fastplug._wire cimport Codec, Decoder, length
from fastplug.shm._descriptor cimport KIND_TEXT, ArrayHead

from fastplug import dtypes
from fastplug._wire_words import Unfit
from fastplug._wire_words import got as in_words
from fastplug.errors import RemoteProtocolError

cnp.import_array()

# Translated texts and dtypes. A program uses few; one that makes a new dtype for each call starts over after so many.
CACHED_MAX = 256
cdef dict _dtypes = {}                  # text -> dtype
# By identity, since two equal dtypes can have two texts (`align`). The dtype is kept so that its address is not used again.
cdef dict _texts = {}                   # address -> (dtype, text)

# (kind, size) -> dtype of the numbers in native byte order.
cdef dict _numbers = {}
for _name in ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64", "longdouble",
              "complex64", "complex128", "clongdouble"):
    _dtype = np.dtype(_name)
    _numbers.setdefault((ord(_dtype.kind), _dtype.itemsize), _dtype)

cdef dict _family_numbers = {name: np.dtype(kind).num for name, kind in dtypes.FAMILIES.items()}


cdef class Declared:
    def __cinit__(self):
        self.family = -1

cdef Declared _ANY = Declared()


cdef Declared make_declared(Codec codec):
    cdef Declared want
    if codec is None or codec.dtype is None:
        return _ANY
    if codec.dtype_object is None:
        want = Declared()
        if codec.dtype in _family_numbers:
            want.family = _family_numbers[codec.dtype]
        else:
            want.descr = dtypes.built(dtypes.parsed(codec.dtype))
            if is_number(want.descr):
                want.kind, want.itemsize = ord(want.descr.kind), want.descr.itemsize
            else:
                want.text = codec.dtype.encode()
        codec.dtype_object = want
    return codec.dtype_object


cdef cnp.ndarray fitting(object value, Declared want):
    """No silent cast, no conversion of lists."""
    cdef cnp.ndarray array
    if type(value) is cnp.ndarray and (<cnp.ndarray>value).descr is want.descr:
        return value
    if not isinstance(value, cnp.ndarray):
        raise Unfit(in_words(value))
    if isinstance(value, np.ma.MaskedArray):
        raise Unfit("a MaskedArray, whose mask would be lost: send .data and .mask, or .filled()")
    array = value
    if want.descr is None and want.family < 0 and is_number(array.descr):
        return array
    if want.descr is not None and (array.descr is want.descr or array.dtype == want.descr):
        return array
    try:
        text_for(array.descr, want)
    except dtypes.UndescribedError as error:
        raise Unfit(f"an array of {error}")
    if want.descr is None and (want.family < 0 or want.family == array.descr.type_num):
        if not array.dtype.itemsize:
            raise Unfit(f"an array of dtype {array.dtype}, whose items have no bytes")
        return array
    if want.descr is not None and want.descr == array.dtype.newbyteorder():
        raise Unfit(f"an array in foreign byte order ({array.dtype.str}): use .astype(x.dtype.newbyteorder())")
    raise Unfit(f"numpy.ndarray[{dtypes.shown(dtypes.describe(array.dtype))[:500]}] (nothing is cast silently: use .astype)")


cdef bytes text_for(cnp.dtype descr, Declared want):
    if want.descr is not None and want.text is not None and descr is want.descr:
        return want.text
    address = <size_t><void*>descr
    found = _texts.get(address)
    if found is None:
        found = _remembered(descr, dtypes.text_of(dtypes.describe(descr)).encode())
    return found[1]


cdef tuple _remembered(cnp.dtype descr, bytes text):
    if len(_texts) >= CACHED_MAX:
        _texts.clear()
    entry = _texts[<size_t><void*>descr] = (descr, text)
    return entry


cdef cnp.dtype dtype_of(Decoder dec, const ArrayHead* head, Declared want):
    cdef cnp.dtype found
    cdef const unsigned char* text
    cdef Py_ssize_t n
    if head.kind != KIND_TEXT:
        if want.kind and want.kind == head.kind and want.itemsize == head.itemsize:
            return want.descr
        found = _numbers.get((head.kind, head.itemsize))
        if found is None or want.descr is not None or want.family >= 0:
            raise RemoteProtocolError(
                f"an array of kind {chr(head.kind)!r} with {head.itemsize} bytes an element came, wanted {_wanted(want)}"
            )
        return found
    n = length(dec)
    text = dec.need(n)
    if want.text is not None and n == len(want.text) and not memcmp(text, <const unsigned char*>want.text, n):
        return want.descr
    found = _translated(PyBytes_FromStringAndSize(<const char*>text, n))
    if head.itemsize or not found.itemsize or is_number(found):
        raise RemoteProtocolError("an array came whose dtype is said in a wrong way, or has no bytes")
    if want.descr is not None:
        # Not `is`: the two sides may have spelt one layout in two ways.
        if found != want.descr:
            raise RemoteProtocolError(f"an array of {dtypes.shown(dtypes.describe(found))[:300]} came, wanted {_wanted(want)}")
        return want.descr
    if want.family >= 0 and found.type_num != want.family:
        raise RemoteProtocolError(f"an array of {dtypes.shown(dtypes.describe(found))[:300]} came, wanted {_wanted(want)}")
    return found


cdef cnp.dtype _translated(bytes text):
    found = _dtypes.get(text)
    if found is None:
        try:
            found = dtypes.built(dtypes.parsed(text.decode("ascii")))
        except ValueError as error:
            raise RemoteProtocolError(f"an array came whose dtype is wrong or not known here: {str(error)[:400]}") from error
        if len(_dtypes) >= CACHED_MAX:
            _dtypes.clear()
        _dtypes[text] = found
        _remembered(found, text)        # a view of what was received goes back with the same text
    return found


cdef str _wanted(Declared want):
    if want.descr is not None:
        return dtypes.shown(dtypes.describe(want.descr))[:300]
    for name, number in _family_numbers.items():
        if number == want.family:
            return name
    return "any dtype that travels"
