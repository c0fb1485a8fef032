# Arrays as they are laid out: descriptors, views, copies, and arrays inline in a payload. docs/wire.md, "Arrays".

cimport numpy as cnp
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.object cimport PyTypeObject
from cpython.ref cimport Py_INCREF
from libc.stdint cimport INT64_MAX, int64_t, intptr_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from fastplug._wire cimport ArrayPort, Codec, Decoder, Encoder, skip_array_data, skip_array_head
from fastplug.shm._descriptor cimport (
    FORM_FILE, FORM_INLINE, KIND_TEXT, MAX_NDIM, ORDER_C, ORDER_FORTRAN, ORDER_STRIDED, TAG_ARRAY, ArrayHead, extent,
)
from fastplug.shm._ndarray_dtype cimport Declared, declared, dtype_of, fitting, is_number, text_for

from fastplug import dtypes
from fastplug._wire_words import Unfit
from fastplug.errors import RemoteProtocolError

cnp.import_array()

cdef extern from "numpy/arrayobject.h":
    object PyArray_NewFromDescr(PyTypeObject* subtype, cnp.dtype descr, int nd, const cnp.npy_intp* dims, const cnp.npy_intp* strides, void* data, int flags, object obj)
    int PyArray_SetBaseObject(cnp.ndarray, object) except -1
    int PyArray_CopyInto(cnp.ndarray, cnp.ndarray) except -1
    PyTypeObject PyArray_Type
    enum: NPY_MAXDIMS, NPY_ARRAY_ALIGNED, NPY_ARRAY_F_CONTIGUOUS, NPY_ARRAY_WRITEABLE

# Copies from here on release the GIL: 256 KiB take about 5 us, and giving the GIL away can cost a switch interval.
cdef Py_ssize_t _COPY_RELEASING_GIL_BYTES = 256 * 1024
# Over a socket, larger arrays are sent from where they lie: to refer to one costs as much as to copy some KiB.
cdef Py_ssize_t _GATHERED_BYTES = 16 * 1024
# A large inline array is a view of the message that it came in, which lives as long as the array: so at least a fourth of it must be this array.
cdef Py_ssize_t _VIEW_BYTES = 32 * 1024
cdef Py_ssize_t _VIEW_SHARE = 4


cdef int put_head(Encoder enc, cnp.ndarray array, bytes text, int form, int order) except -1:
    cdef int ndim = cnp.PyArray_NDIM(array)
    cdef Py_ssize_t words = 0 if text is None else 4 + len(text)
    cdef unsigned char* at = enc.take(1 + sizeof(ArrayHead) + words + 8 * ndim * (2 if order == ORDER_STRIDED else 1))
    cdef ArrayHead head
    cdef uint32_t n
    head.form = form
    head.kind = ord(array.descr.kind) if text is None else KIND_TEXT
    head.itemsize = <uint8_t>cnp.PyArray_ITEMSIZE(array) if text is None else 0
    head.ndim = ndim
    head.order = order
    head.zero0 = head.zero1 = 0
    at[0] = TAG_ARRAY
    memcpy(at + 1, &head, sizeof(ArrayHead))
    at += 1 + sizeof(ArrayHead)
    if text is not None:
        n = <uint32_t>(words - 4)
        memcpy(at, &n, 4)
        memcpy(at + 4, <const unsigned char*>text, n)
        at += words
    if ndim:                    # a 0-d array has no list of dimensions to copy from
        memcpy(at, cnp.PyArray_DIMS(array), 8 * ndim)
    if order == ORDER_STRIDED:
        memcpy(at + 8 * ndim, cnp.PyArray_STRIDES(array), 8 * ndim)
    return 0


cdef int order_of(cnp.ndarray array) noexcept:
    if cnp.PyArray_IS_C_CONTIGUOUS(array):
        return ORDER_C
    return ORDER_FORTRAN if cnp.PyArray_IS_F_CONTIGUOUS(array) else ORDER_STRIDED


cdef int copy_to(void* target, cnp.ndarray array, int order) except -1:
    cdef size_t n = cnp.PyArray_NBYTES(array)
    cdef const void* source = cnp.PyArray_DATA(array)
    cdef cnp.ndarray view
    if order == ORDER_STRIDED:
        view = view_of(array.descr, cnp.PyArray_NDIM(array), cnp.PyArray_DIMS(array), NULL, target, ORDER_C, None, True)
        PyArray_CopyInto(view, array)
    elif n >= <size_t>_COPY_RELEASING_GIL_BYTES:
        with nogil:
            memcpy(target, source, n)
    elif n:
        memcpy(target, source, n)
    return 0


cdef cnp.ndarray view_of(cnp.dtype descr, int ndim, const cnp.npy_intp* shape, const cnp.npy_intp* strides, void* data, int order, object base, bint writable):
    cdef int flags = NPY_ARRAY_WRITEABLE if writable else 0
    cdef cnp.ndarray array
    if order == ORDER_FORTRAN:
        flags |= NPY_ARRAY_F_CONTIGUOUS
    # No dtype that travels needs more than 16: strided views have their flags computed by numpy.
    if not <uint64_t>data & 15 or not <uint64_t>data % <uint64_t>max(descr.alignment, 1):
        flags |= NPY_ARRAY_ALIGNED
    Py_INCREF(descr)            # NewFromDescr takes it over
    array = PyArray_NewFromDescr(&PyArray_Type, descr, ndim, shape, strides, data, flags, None)
    if base is not None:
        Py_INCREF(base)         # SetBaseObject takes it over
        PyArray_SetBaseObject(array, base)
    return array


cdef class Description:
    """A received descriptor: a private copy, checked."""


cdef int read_description(Description it, Decoder dec, Codec codec) except -1:
    """Everything of a descriptor but its place."""
    cdef int i, ndim
    cdef int64_t size = 1, itemsize
    cdef bint empty = False
    cdef Declared want
    memcpy(&it.head, dec.need(sizeof(ArrayHead)), sizeof(ArrayHead))
    ndim = it.head.ndim
    if ndim > MAX_NDIM or ndim > NPY_MAXDIMS or it.head.form > FORM_FILE or it.head.order > ORDER_STRIDED or it.head.zero0 or it.head.zero1:
        raise RemoteProtocolError(f"an array descriptor has form {it.head.form}, order {it.head.order} and {ndim} dimensions")
    if it.head.order == ORDER_STRIDED and it.head.form == FORM_INLINE:
        raise RemoteProtocolError("an inline array came with strides")
    want = declared(codec)
    if want.kind == it.head.kind and want.itemsize == it.head.itemsize and want.kind:
        it.descr = want.descr
        itemsize = want.itemsize
    else:
        it.descr = dtype_of(dec, &it.head, want)
        itemsize = it.descr.itemsize
    memcpy(it.shape, dec.need(8 * ndim), 8 * ndim)
    for i in range(ndim):
        if it.shape[i] < 0:
            raise RemoteProtocolError(f"an array has a dimension of {it.shape[i]}")
    for i in range(ndim):
        if not it.shape[i]:
            empty = True                # numpy refuses an overflow of the other dimensions all the same
        elif size > (INT64_MAX >> 2) // it.shape[i]:
            raise RemoteProtocolError("the shape of an array overflows")
        else:
            size *= it.shape[i]
    if size > (INT64_MAX >> 2) // itemsize:
        raise RemoteProtocolError("the size of an array overflows")
    it.nbytes = 0 if empty else size * itemsize
    if it.head.order == ORDER_STRIDED:
        memcpy(it.strides, dec.need(8 * ndim), 8 * ndim)
        if not extent(ndim, <const intptr_t*>it.shape, <const intptr_t*>it.strides, itemsize, &it.low, &it.high):
            raise RemoteProtocolError("the strides of an array overflow")
    else:
        it.low = 0
        it.high = it.nbytes
    if it.head.kind == KIND_TEXT and it.descr.kind == c"T" and (it.head.form != FORM_INLINE or it.head.order != ORDER_C):
        raise RemoteProtocolError("an array of StringDType came in a form or order that it cannot have")
    return 0


cdef class Described(ArrayPort):
    # What the two ports share: inline arrays, and the descriptor that is reused from array to array.
    def __cinit__(self):
        self.it = Description()

    cdef int put_inline(self, Encoder enc, cnp.ndarray array, bytes text) except -1:
        cdef int order = order_of(array)
        cdef uint64_t n = cnp.PyArray_NBYTES(array)
        cdef unsigned char* at
        put_head(enc, array, text, FORM_INLINE, ORDER_FORTRAN if order == ORDER_FORTRAN else ORDER_C)
        memcpy(enc.take(8), &n, 8)
        if n >= <uint64_t>_GATHERED_BYTES and order != ORDER_STRIDED and enc.refer(array, cnp.PyArray_DATA(array), n):
            return 0
        at = enc.take(n)
        if n >= <uint64_t>_VIEW_BYTES and <uint64_t>at % <uint64_t>max(array.descr.alignment, 1):
            enc.phase = at - enc.data
        copy_to(at, array, order)
        return 0

    cdef object get_inline(self, Decoder dec):
        cdef uint64_t n
        cdef void* data
        cdef cnp.ndarray array
        if self.it.head.kind == KIND_TEXT and self.it.descr.kind == c"T":
            return self._get_strings(dec)
        memcpy(&n, dec.need(8), 8)
        if <int64_t>n != self.it.nbytes:
            raise RemoteProtocolError(f"an inline array of {self.it.nbytes} bytes came with {n}")
        data = <void*>dec.need(n)
        if n >= <uint64_t>_VIEW_BYTES and n >= <uint64_t>(dec.size // _VIEW_SHARE):
            if not <uint64_t>data % <uint64_t>max(self.it.descr.alignment, 1):
                return view_of(self.it.descr, self.it.head.ndim, self.it.shape, NULL, data, self.it.head.order, dec.memory, False)
            dec.phase = <unsigned char*>data - dec.data
        Py_INCREF(self.it.descr)
        array = PyArray_NewFromDescr(&PyArray_Type, self.it.descr, self.it.head.ndim, self.it.shape, NULL, NULL,
                                     1 if self.it.head.order == ORDER_FORTRAN else 0, None)
        if n >= <uint64_t>_COPY_RELEASING_GIL_BYTES:
            _copy_nogil(cnp.PyArray_DATA(array), data, n)
        else:
            memcpy(cnp.PyArray_DATA(array), data, n)
        cnp.PyArray_CLEARFLAGS(array, NPY_ARRAY_WRITEABLE)
        return array


    cdef Py_ssize_t put_strings(self, Encoder enc, cnp.ndarray array, bytes text) except -1:
        """An array of StringDType, whose items lie in memory that numpy keeps to itself. How many bytes they have."""
        cdef bytes data
        cdef uint64_t n
        try:
            data = dtypes.packed_strings(array)
        except UnicodeEncodeError as error:
            raise Unfit(f"an array of StringDType with text that UTF-8 cannot encode ({error.reason})") from error
        n = len(data)
        put_head(enc, array, text, FORM_INLINE, ORDER_C)
        memcpy(enc.take(8), &n, 8)
        memcpy(enc.take(n), <const unsigned char*>data, n)
        return n

    cdef object _get_strings(self, Decoder dec):
        cdef uint64_t n
        memcpy(&n, dec.need(8), 8)
        if n > <uint64_t>(dec.size - dec.pos):
            raise RemoteProtocolError(f"an array of StringDType with {n} bytes came in a payload with {dec.size - dec.pos} left")
        data = PyBytes_FromStringAndSize(<const char*>dec.need(n), n)
        try:
            return dtypes.unpacked_strings(data, tuple([self.it.shape[i] for i in range(self.it.head.ndim)]), self.it.descr)
        except ValueError as error:
            raise RemoteProtocolError(f"an array of StringDType is wrong: {error}") from error



cdef int _copy_nogil(void* target, const void* source, size_t n) except -1:
    with nogil:
        memcpy(target, source, n)
    return 0


cdef class InlineArrays(Described):
    """Arrays inside the payload: the socket form and in-process calls. Each array counts as a copy on either side, wherever it is made."""

    cdef int put(self, Encoder enc, object value, Codec codec) except -1:
        cdef Declared want = declared(codec)
        cdef cnp.ndarray array = fitting(value, want)
        cdef Py_ssize_t n = cnp.PyArray_NBYTES(array)
        if is_number(array.descr):
            self.put_inline(enc, array, None)
        elif array.descr.kind == c"T":
            n = self.put_strings(enc, array, text_for(array.descr, want))
        else:
            self.put_inline(enc, array, text_for(array.descr, want))
        self.copies += 1
        self.copied_bytes += n
        return 0

    cdef object get(self, Decoder dec, Codec codec):
        read_description(self.it, dec, codec)
        if self.it.head.form != FORM_INLINE:
            raise RemoteProtocolError("an array came by reference where there is no shared memory")
        self.copies += 1
        self.copied_bytes += self.it.nbytes
        return self.get_inline(dec)

    cdef int skip(self, Decoder dec) except -1:
        if skip_array_head(dec) != FORM_INLINE:
            raise RemoteProtocolError("an array came by reference where there is no shared memory")
        return skip_array_data(dec)
