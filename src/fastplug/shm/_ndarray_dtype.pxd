# Which dtypes travel: what a parameter wants, whether an array is that, and the text that says a dtype which a byte and a size do not.

cimport numpy as cnp

from fastplug._wire cimport Codec, Decoder
from fastplug.shm._descriptor cimport ArrayHead


cdef class Declared:
    # What an annotation says, made once per codec.
    cdef cnp.dtype descr                # None: any, or any of a family
    cdef int family                     # numpy's type number when only that is said (datetimes of any unit, ...), else -1
    cdef bytes text                     # of descr; None for a number in native byte order
    cdef int kind                       # of a number in native byte order, as its head says it; else 0
    cdef int itemsize

cdef Declared make_declared(Codec codec)
cdef cnp.ndarray fitting(object value, Declared want)                       # the array, or Unfit
cdef bytes text_for(cnp.dtype descr, Declared want)                         # of a dtype that is no number in native byte order
cdef cnp.dtype dtype_of(Decoder dec, const ArrayHead* head, Declared want)  # the text is read if there is one; RemoteProtocolError


# In line, because every array of the declared dtype passes here, and calls between modules are not free.
cdef inline Declared declared(Codec codec):
    if codec is not None and codec.dtype_object is not None:
        return <Declared>codec.dtype_object
    return make_declared(codec)


cdef inline bint is_declared(object value, Declared want) noexcept:
    # An array of the very number that is declared: it fits, and no text belongs to it.
    return type(value) is cnp.ndarray and want.kind and (<cnp.ndarray>value).descr is want.descr


cdef inline bint is_number(cnp.dtype descr) noexcept:
    # Bool, integers, floats, complex numbers in native byte order: kind and size in the head of a descriptor say it all.
    return descr.type_num <= <int>cnp.NPY_CLONGDOUBLE and descr.byteorder != c">"
