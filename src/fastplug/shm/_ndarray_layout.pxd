# Descriptors, views and copies of arrays: what every port of arrays does in one way.

cimport numpy as cnp
from libc.stdint cimport int64_t

from fastplug._wire cimport ArrayPort, Codec, Decoder, Encoder
from fastplug.shm._descriptor cimport MAX_NDIM, ArrayHead


cdef class Description:
    cdef ArrayHead head
    cdef cnp.npy_intp shape[MAX_NDIM]
    cdef cnp.npy_intp strides[MAX_NDIM]
    cdef cnp.dtype descr
    cdef int64_t nbytes
    cdef int64_t low                    # what the strides reach, relative to the first item
    cdef int64_t high


cdef class Described(ArrayPort):
    cdef Description it
    cdef int put_inline(self, Encoder enc, cnp.ndarray array, bytes text) except -1
    cdef object get_inline(self, Decoder dec)
    cdef Py_ssize_t put_strings(self, Encoder enc, cnp.ndarray array, bytes text) except -1
    cdef object _get_strings(self, Decoder dec)


cdef int read_description(Description it, Decoder dec, Codec codec) except -1
cdef int put_head(Encoder enc, cnp.ndarray array, bytes text, int form, int order) except -1   # text: None for a number
cdef int order_of(cnp.ndarray array) noexcept
# One copy of the data, in C order, or in Fortran order when the array has it.
cdef int copy_to(void* target, cnp.ndarray array, int order) except -1
# strides: NULL where `order` says them.
cdef cnp.ndarray view_of(cnp.dtype descr, int ndim, const cnp.npy_intp* shape, const cnp.npy_intp* strides, void* data, int order, object base, bint writable)
