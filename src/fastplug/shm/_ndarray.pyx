"""Arrays: the only place with the numpy C-API. Imported when a first array appears.

docs/wire.md, "Arrays", is the layout. Three ways for an array to travel: INLINE (its bytes in the payload), LENT (it lies in a block of our arena,
or is copied to one), HOME (it lies in a block that the peer lent us, and goes back as a reference).
"""

import numpy as np

cimport numpy as cnp
from cpython.number cimport PyNumber_Index
from cpython.object cimport PyObject, PyTypeObject
from cpython.ref cimport Py_INCREF
from libc.stdint cimport INT64_MAX, int64_t, intptr_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from fastplug._wire cimport ArrayPort, Codec, Decoder, Encoder
from fastplug.shm._arena cimport Block, Loan, OwnLease, own_lease
from fastplug.shm._borrowed cimport Lease
from fastplug.shm._descriptor cimport (
    FORM_HOME, FORM_INLINE, FORM_LENT, MAX_NDIM, ORDER_C, ORDER_FORTRAN, ORDER_STRIDED, TAG_ARRAY, ArrayHead, Place, extent,
)
from fastplug.shm._port cimport ArenaPort
from fastplug.shm._segment cimport Segment

from fastplug._wire_words import Unfit
from fastplug._wire_words import got as in_words
from fastplug.errors import ArenaExhausted, CopyRequired, RemoteProtocolError

cnp.import_array()

cdef extern from "numpy/arrayobject.h":
    object PyArray_NewFromDescr(PyTypeObject* subtype, cnp.dtype descr, int nd, const cnp.npy_intp* dims, const cnp.npy_intp* strides, void* data, int flags, object obj)
    int PyArray_SetBaseObject(cnp.ndarray, object) except -1
    int PyArray_CopyInto(cnp.ndarray, cnp.ndarray) except -1
    PyObject* PyArray_BASE(cnp.ndarray)
    PyTypeObject PyArray_Type
    enum: NPY_MAXDIMS, NPY_ARRAY_ALIGNED, NPY_ARRAY_F_CONTIGUOUS, NPY_ARRAY_WRITEABLE

# Below this an array travels inline: two copies of so little cost less than a lease.
INLINE_BYTES = 1024
cdef Py_ssize_t _INLINE_BYTES = INLINE_BYTES
# Copies from here on release the GIL: 256 KiB take about 5 us, and giving the GIL away can cost a switch interval.
cdef Py_ssize_t _COPY_RELEASING_GIL_BYTES = 256 * 1024
# Over a socket, larger arrays are sent from where they lie: to refer to one costs as much as to copy some KiB.
cdef Py_ssize_t _GATHERED_BYTES = 16 * 1024
# A large inline array is a view of the message that it came in, which lives as long as the array: so at least a fourth of it must be this array.
cdef Py_ssize_t _VIEW_BYTES = 32 * 1024
cdef Py_ssize_t _VIEW_SHARE = 4
# How many steps from a view to its owner are followed: numpy collapses chains of views, so real ones have two or three.
cdef int _BASES_MAX = 16

# What may travel: native byte order, no references, no structure.
_DTYPES = {}
for _name in ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64", "longdouble",
              "complex64", "complex128", "clongdouble"):
    _dtype = np.dtype(_name)
    _DTYPES.setdefault((ord(_dtype.kind), _dtype.itemsize), _dtype)


cdef cnp.dtype _descr(Codec codec):
    """The dtype that the annotation names; None for any."""
    if codec is None or codec.dtype is None:
        return None
    if codec.dtype_object is None:
        codec.dtype_object = np.dtype(codec.dtype)
    return codec.dtype_object


cdef cnp.ndarray _fitting(object value, Codec codec):
    """The array, when it may travel as what is declared. No silent cast, no conversion of lists."""
    cdef cnp.ndarray array
    cdef cnp.dtype wanted = _descr(codec)
    if type(value) is cnp.ndarray and (<cnp.ndarray>value).descr is wanted:
        return value
    if not isinstance(value, cnp.ndarray):
        raise Unfit(in_words(value))
    if isinstance(value, np.ma.MaskedArray):
        raise Unfit("a MaskedArray, whose mask would be lost: send .data and .mask, or .filled()")
    array = value
    if wanted is not None and array.descr is wanted:
        return array
    if array.dtype.hasobject:
        raise Unfit(f"an array of dtype {array.dtype}: Python objects do not travel")
    if not array.dtype.isnative:
        raise Unfit(f"an array in foreign byte order ({array.dtype.str}): use .astype(x.dtype.newbyteorder('='))")
    if (ord(array.dtype.kind), array.dtype.itemsize) not in _DTYPES:
        raise Unfit(f"an array of dtype {array.dtype}, which does not travel: bool, int, uint, float and complex do")
    if wanted is not None and array.dtype != wanted:
        raise Unfit(f"ndarray[{array.dtype}] (nothing is cast silently: use .astype)")
    return array


cdef object _owner(cnp.ndarray array):
    """The lease under a view: OwnLease, Lease or None."""
    cdef object base = array
    cdef PyObject* found
    for _ in range(_BASES_MAX):
        if type(base) is OwnLease or type(base) is Lease:
            return base
        if isinstance(base, cnp.ndarray):
            found = PyArray_BASE(base)
            if found == NULL:
                return None
            base = <object>found
        elif type(base) is memoryview:
            base = base.obj
        else:
            return None
    return None


cdef int _put_head(Encoder enc, cnp.ndarray array, int form, int order) except -1:
    cdef int ndim = cnp.PyArray_NDIM(array)
    cdef unsigned char* at = enc.take(1 + sizeof(ArrayHead) + 8 * ndim * (2 if order == ORDER_STRIDED else 1))
    cdef ArrayHead head
    head.form = form
    head.kind = ord(array.descr.kind)
    head.itemsize = <uint8_t>cnp.PyArray_ITEMSIZE(array)
    head.ndim = ndim
    head.order = order
    head.zero0 = head.zero1 = 0
    at[0] = TAG_ARRAY
    memcpy(at + 1, &head, sizeof(ArrayHead))
    at += 1 + sizeof(ArrayHead)
    if ndim:                    # a 0-d array has no list of dimensions to copy from
        memcpy(at, cnp.PyArray_DIMS(array), 8 * ndim)
    if order == ORDER_STRIDED:
        memcpy(at + 8 * ndim, cnp.PyArray_STRIDES(array), 8 * ndim)
    return 0


cdef inline int _order(cnp.ndarray array):
    if cnp.PyArray_IS_C_CONTIGUOUS(array):
        return ORDER_C
    return ORDER_FORTRAN if cnp.PyArray_IS_F_CONTIGUOUS(array) else ORDER_STRIDED


cdef int _copy_to(void* target, cnp.ndarray array, int order) except -1:
    """One copy of the data, in C order, or in Fortran order when the array has it."""
    cdef size_t n = cnp.PyArray_NBYTES(array)
    cdef const void* source = cnp.PyArray_DATA(array)
    cdef cnp.ndarray view
    if order == ORDER_STRIDED:
        view = _view(array.descr, cnp.PyArray_NDIM(array), cnp.PyArray_DIMS(array), NULL, target, ORDER_C, None, True)
        PyArray_CopyInto(view, array)
    elif n >= <size_t>_COPY_RELEASING_GIL_BYTES:
        with nogil:
            memcpy(target, source, n)
    elif n:
        memcpy(target, source, n)
    return 0


cdef cnp.ndarray _view(cnp.dtype descr, int ndim, const cnp.npy_intp* shape, const cnp.npy_intp* strides, void* data, int order, object base, bint writable):
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


cdef class _Description:
    # A received descriptor: a private copy, checked.
    cdef ArrayHead head
    cdef cnp.npy_intp shape[MAX_NDIM]
    cdef cnp.npy_intp strides[MAX_NDIM]
    cdef cnp.dtype descr
    cdef int64_t nbytes
    cdef int64_t low
    cdef int64_t high


cdef int _read(_Description it, Decoder dec, Codec codec) except -1:
    """Reads and checks everything of a descriptor but its place."""
    cdef int i, ndim
    cdef int64_t size = 1
    cdef bint empty = False
    cdef cnp.dtype wanted
    memcpy(&it.head, dec.need(sizeof(ArrayHead)), sizeof(ArrayHead))
    ndim = it.head.ndim
    if ndim > MAX_NDIM or ndim > NPY_MAXDIMS or it.head.form > FORM_HOME or it.head.order > ORDER_STRIDED or it.head.zero0 or it.head.zero1:
        raise RemoteProtocolError(f"an array descriptor has form {it.head.form}, order {it.head.order} and {ndim} dimensions")
    if it.head.order == ORDER_STRIDED and it.head.form == FORM_INLINE:
        raise RemoteProtocolError("an inline array came with strides")
    wanted = _descr(codec)
    if wanted is not None and wanted.kind == it.head.kind and wanted.itemsize == it.head.itemsize:
        it.descr = wanted
    else:
        it.descr = _DTYPES.get((it.head.kind, it.head.itemsize))
        if it.descr is None or wanted is not None:
            raise RemoteProtocolError(f"an array of kind {chr(it.head.kind)!r} with {it.head.itemsize} bytes an element came, wanted {wanted or 'a numeric dtype'}")
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
    if size > (INT64_MAX >> 2) // it.head.itemsize:
        raise RemoteProtocolError("the size of an array overflows")
    it.nbytes = 0 if empty else size * it.head.itemsize
    if it.head.order == ORDER_STRIDED:
        memcpy(it.strides, dec.need(8 * ndim), 8 * ndim)
        if not extent(ndim, <const intptr_t*>it.shape, <const intptr_t*>it.strides, it.head.itemsize, &it.low, &it.high):
            raise RemoteProtocolError("the strides of an array overflow")
    else:
        it.low = 0
        it.high = it.nbytes
    return 0


cdef class _Described(ArrayPort):
    # What the two ports share: inline arrays, and the descriptor that is reused from array to array.
    cdef _Description it

    def __cinit__(self):
        self.it = _Description()

    cdef int _put_inline(self, Encoder enc, cnp.ndarray array) except -1:
        cdef int order = _order(array)
        cdef uint64_t n = cnp.PyArray_NBYTES(array)
        cdef unsigned char* at
        _put_head(enc, array, FORM_INLINE, ORDER_FORTRAN if order == ORDER_FORTRAN else ORDER_C)
        memcpy(enc.take(8), &n, 8)
        if n >= <uint64_t>_GATHERED_BYTES and order != ORDER_STRIDED and enc.refer(array, cnp.PyArray_DATA(array), n):
            return 0
        at = enc.take(n)
        if n >= <uint64_t>_VIEW_BYTES and <uint64_t>at % <uint64_t>max(array.descr.alignment, 1):
            enc.phase = at - enc.data
        _copy_to(at, array, order)
        return 0

    cdef object _get_inline(self, Decoder dec):
        cdef uint64_t n
        cdef void* data
        cdef cnp.ndarray array
        memcpy(&n, dec.need(8), 8)
        if <int64_t>n != self.it.nbytes:
            raise RemoteProtocolError(f"an inline array of {self.it.nbytes} bytes came with {n}")
        data = <void*>dec.need(n)
        if n >= <uint64_t>_VIEW_BYTES and n >= <uint64_t>(dec.size // _VIEW_SHARE):
            if not <uint64_t>data % <uint64_t>max(self.it.descr.alignment, 1):
                return _view(self.it.descr, self.it.head.ndim, self.it.shape, NULL, data, self.it.head.order, dec.memory, False)
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


cdef int _copy_nogil(void* target, const void* source, size_t n) except -1:
    with nogil:
        memcpy(target, source, n)
    return 0


cdef class InlineArrays(_Described):
    """Arrays inside the payload: the socket form and in-process calls. Each array counts as a copy on either side, wherever it is made."""

    cdef int put(self, Encoder enc, object value, Codec codec) except -1:
        cdef cnp.ndarray array = _fitting(value, codec)
        self._put_inline(enc, array)
        self.copies += 1
        self.copied_bytes += cnp.PyArray_NBYTES(array)
        return 0

    cdef object get(self, Decoder dec, Codec codec):
        _read(self.it, dec, codec)
        if self.it.head.form != FORM_INLINE:
            raise RemoteProtocolError("an array came by reference where there is no shared memory")
        self.copies += 1
        self.copied_bytes += self.it.nbytes
        return self._get_inline(dec)

    cdef int skip(self, Decoder dec) except -1:
        self.get(dec, None)
        return 0


cdef class ArenaArrays(_Described):
    """Arrays in shared memory, on behalf of one connection's ArenaPort."""

    cdef ArenaPort port

    def __init__(self, port: ArenaPort):
        self.port = port

    cdef int put(self, Encoder enc, object value, Codec codec) except -1:
        cdef cnp.ndarray array = _fitting(value, codec)
        cdef Py_ssize_t n = cnp.PyArray_NBYTES(array)
        if n < _INLINE_BYTES:
            self.port.copies += 1
            self.port.copied_bytes += n
            return self._put_inline(enc, array)
        if self._put_reference(enc, array):
            return 0
        return self._put_copy(enc, array)

    cdef bint _put_reference(self, Encoder enc, cnp.ndarray array) except -1:
        """An array over memory that the peer can see already."""
        cdef object owner = _owner(array)
        cdef Lease lease
        cdef Block block
        cdef Place place
        cdef int64_t low, high, at
        cdef int order = _order(array)
        if owner is None or not extent(cnp.PyArray_NDIM(array), <const intptr_t*>cnp.PyArray_DIMS(array), <const intptr_t*>cnp.PyArray_STRIDES(array), cnp.PyArray_ITEMSIZE(array), &low, &high):
            return False
        if type(owner) is OwnLease:
            block = (<OwnLease>owner).block
            at = <int64_t>(<uint64_t>cnp.PyArray_DATA(array) - <uint64_t>block.segment.base)
            if block.arena is not self.port.arena or at + low < <int64_t>block.offset or at + high > <int64_t>(block.offset + block.bytes):
                return False
            if not self.port.lend(block, &place.slot):
                return False
            place.segment = block.segment_id
            place.offset = at
            _put_head(enc, array, FORM_LENT, order)
        else:
            lease = owner
            at = <int64_t>(<uint64_t>cnp.PyArray_DATA(array) - <uint64_t>lease.base)
            if lease.owner is not self.port.borrowed or at + low < 0 or at + high > <int64_t>lease.bytes:
                return False
            self.port.lane.hold(lease)
            self.port.named += 1
            place.segment = lease.segment_id
            place.slot = lease.slot
            place.offset = at
            _put_head(enc, array, FORM_HOME, order)
        memcpy(enc.take(sizeof(Place)), &place, sizeof(Place))
        return True

    cdef int _put_copy(self, Encoder enc, cnp.ndarray array) except -1:
        """One copy, into a block of our arena."""
        cdef size_t n = cnp.PyArray_NBYTES(array)
        cdef int order = _order(array)
        cdef Block block
        cdef Place place
        if self.port.strict:
            raise CopyRequired(
                f"an array of {n} bytes lies outside of shared memory and strict_zero_copy forbids the copy: "
                "make it with client.empty(...) or client.blocks(...) (in a handler: fastplug.empty(...))"
            )
        block = self.port.arena.take(n)
        try:
            _copy_to(block.segment.base + block.offset, array, order)
        except BaseException:
            self.port.arena.let_go(block)
            raise
        if not self.port.lend_taken(block, &place.slot):
            raise ArenaExhausted(f"{self.port.ledger.peer} holds all {self.port.ledger.slots} leases that it has room for; let it drop arrays")
        place.segment = block.segment_id
        place.offset = block.offset
        _put_head(enc, array, FORM_LENT, ORDER_FORTRAN if order == ORDER_FORTRAN else ORDER_C)
        memcpy(enc.take(sizeof(Place)), &place, sizeof(Place))
        self.port.copies += 1
        self.port.copied_bytes += n
        return 0

    cdef object get(self, Decoder dec, Codec codec):
        cdef Place place
        cdef _Description it = self.it
        _read(it, dec, codec)
        if it.head.form == FORM_INLINE:
            self.port.copies += 1
            self.port.copied_bytes += it.nbytes
            return self._get_inline(dec)
        memcpy(&place, dec.need(sizeof(Place)), sizeof(Place))
        if it.head.form == FORM_LENT:
            return self._borrowed(it, &place)
        return self._home(it, &place)

    cdef object _borrowed(self, _Description it, Place* place):
        cdef Lease lease = self.port.borrowed.lease(place.segment, place.slot)
        _inside(it, place, 0, lease.bytes)
        if it.nbytes and lease.reach(place.offset + it.low, place.offset + it.high):
            self.port.copies += 1
            self.port.copied_bytes += it.nbytes
        return _view(it.descr, it.head.ndim, it.shape, it.strides if it.head.order == ORDER_STRIDED else NULL,
                     lease.base + place.offset, it.head.order, lease, False)

    cdef object _home(self, _Description it, Place* place):
        cdef Loan loan = self.port.ledger.at(place.slot)
        cdef Block block = loan.block
        if block.segment_id != place.segment:
            raise RemoteProtocolError(f"{self.port.ledger.peer} names slot {place.slot} in segment {place.segment}; it was lent from segment {block.segment_id}")
        _inside(it, place, block.offset, block.offset + block.bytes)
        return _view(it.descr, it.head.ndim, it.shape, it.strides if it.head.order == ORDER_STRIDED else NULL,
                     block.segment.base + place.offset, it.head.order, own_lease(block), False)

    cdef int skip(self, Decoder dec) except -1:
        cdef Place place
        _read(self.it, dec, None)
        if self.it.head.form == FORM_INLINE:
            self._get_inline(dec)
            return 0
        memcpy(&place, dec.need(sizeof(Place)), sizeof(Place))
        if self.it.head.form == FORM_LENT:
            self.port.borrowed.give_back(place.slot)
        return 0


cdef int _inside(_Description it, Place* place, uint64_t start, uint64_t end) except -1:
    """Every byte that the array can touch lies in [start, end)."""
    if place.offset > end or place.offset < start or <uint64_t>it.high > end - place.offset or <uint64_t>(-it.low) > place.offset - start:
        raise RemoteProtocolError(f"an array at {place.offset}, from {it.low} to {it.high}, lies outside of its memory [{start}, {end})")
    return 0


def empty(arena, shape, dtype) -> np.ndarray:
    """An uninitialised, writable, C-ordered array in a block of ``arena``. Under 1 KiB: an ordinary array, since it travels inline.

    Raises:
        ArenaExhausted: over the arena's limit.
        TypeError: a dtype that does not travel.
    """
    cdef cnp.dtype descr = np.dtype(dtype)
    cdef OwnLease lease
    cdef Block block
    cdef cnp.npy_intp dims[MAX_NDIM]
    if (ord(descr.kind), descr.itemsize) not in _DTYPES or not descr.isnative:
        raise TypeError(f"arrays of dtype {descr} do not travel: bool, int, uint, float and complex in native byte order do")
    shape = (shape,) if isinstance(shape, int) or hasattr(shape, "__index__") else tuple(shape)
    if len(shape) > MAX_NDIM:
        raise ValueError(f"{len(shape)} dimensions; at most {MAX_NDIM}")
    size = descr.itemsize
    for i, n in enumerate(shape):
        n = PyNumber_Index(n)
        if n < 0:
            raise ValueError("negative dimensions are not allowed")
        dims[i] = n
        size *= n
    if size < _INLINE_BYTES:
        return np.empty(shape, descr)
    lease = arena.allocate(size)
    block = lease.block
    return _view(descr, len(shape), dims, NULL, block.segment.base + block.offset, ORDER_C, lease, True)


def readers_of(array) -> int:
    """Who else uses the block under an array made with ``empty``: loans that are out plus other local leases. Blocks.__next__ waits for 0."""
    cdef object owner = _owner(array)
    cdef Block block
    cdef Loan loan
    if type(owner) is not OwnLease:
        return 0
    block = (<OwnLease>owner).block
    count = block.local - 1
    for loan in block.loans:
        if loan.out():
            count += 1
    return count


def borrowers_of(array) -> list:
    """Names of the peers that hold the block under an array."""
    cdef object owner = _owner(array)
    if type(owner) is not OwnLease:
        return []
    return [(<Loan>loan).ledger.peer for loan in (<OwnLease>owner).block.loans if (<Loan>loan).out()]
