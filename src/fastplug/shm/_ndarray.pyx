"""Arrays in shared memory. With _ndarray_layout and _ndarray_dtype the only place with the numpy C-API; imported when a first array appears.

docs/wire.md, "Arrays", is the layout. Four ways for an array to travel: INLINE (its bytes in the payload), LENT (it lies in a block of our arena,
or is copied to one), HOME (it lies in a block that the peer lent us, and goes back as a reference), FILE (it lies in a mapped file).
"""

import mmap

import numpy as np

cimport numpy as cnp
from cpython.buffer cimport PyBUF_READ
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.contextvars cimport get_value
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.number cimport PyNumber_Index
from cpython.object cimport PyObject
from libc.stdint cimport INT64_MAX, int64_t, intptr_t, uint32_t, uint64_t
from libc.string cimport memcpy

from fastplug._wire cimport Codec, Decoder, Encoder, length, skip_array_data, skip_array_head
from fastplug.shm._arena cimport Arena, Block, Loan, OwnLease, own_lease
from fastplug.shm._borrowed cimport Lease
from fastplug.shm._descriptor cimport (
    FORM_FILE, FORM_HOME, FORM_INLINE, FORM_LENT, FORM_PASSED, MAX_NDIM, ORDER_C, ORDER_FORTRAN, ORDER_STRIDED, FilePlace, Place, extent,
)
from fastplug.shm._loans cimport borrowers_of as borrowers
from fastplug.shm._ndarray_dtype cimport Declared, declared, fitting, is_declared, is_number, text_for
from fastplug.shm._ndarray_layout cimport Described, Description, copy_to, order_of, put_head, read_description, view_of
from fastplug.shm._ndarray_memory cimport exclusive_in, owner_of
from fastplug.shm._port cimport SERVING, ArenaPort
from fastplug.shm._segment cimport Segment

from fastplug import dtypes
from fastplug.errors import ArenaExhausted, CopyRequired, RemoteProtocolError
from fastplug.shm import files
from fastplug.shm._ndarray_layout import InlineArrays

__all__ = ["INLINE_BYTES", "ArenaArrays", "InlineArrays", "born", "borrowers_of", "empty", "readers_of"]

cnp.import_array()

cdef extern from "numpy/arrayobject.h":
    PyObject* PyArray_BASE(cnp.ndarray)
    enum: NPY_ARRAY_WRITEABLE

# Below this an array travels inline: two copies of so little cost less than a lease.
INLINE_BYTES = 1024
cdef Py_ssize_t _INLINE_BYTES = INLINE_BYTES


cdef enum:
    BASES_MAX = 16              # steps from a view to what keeps its memory; numpy collapses chains of views


cdef OwnLease _lease_at(Arena arena, const unsigned char* data):
    """For an array whose owner is no array of numpy, a buffer of Arrow for instance: whatever keeps memory of a block in use keeps its lease,
    even where nobody can follow the chain to it. None: this memory is not ours."""
    cdef Block block = arena.block_at(<uint64_t>data)
    return own_lease(block) if block is not None and block.local else None


cdef object _foreign_owner(cnp.ndarray array):
    """What keeps a mapped file under an array: the mmap of a numpy.memmap, or a buffer of Arrow; else None."""
    cdef object base = array
    cdef PyObject* found
    for _ in range(BASES_MAX):
        if isinstance(base, cnp.ndarray):
            found = PyArray_BASE(base)
            if found == NULL:
                return None
            base = <object>found
        elif type(base) is memoryview:
            base = base.obj
        else:
            return base if isinstance(base, mmap.mmap) or type(base).__module__ == "pyarrow.lib" else None
    return None


cdef class ArenaArrays(Described):
    """Arrays in shared memory, on behalf of one connection's ArenaPort."""

    cdef ArenaPort port

    def __init__(self, port: ArenaPort):
        self.port = port

    cdef int put(self, Encoder enc, object value, Codec codec) except -1:
        cdef Declared want = declared(codec)
        cdef cnp.ndarray array
        cdef bytes text = None
        cdef Py_ssize_t n
        if is_declared(value, want):
            array = value
        else:
            array = fitting(value, want)
            if not is_number(array.descr):
                text = text_for(array.descr, want)
        n = cnp.PyArray_NBYTES(array)
        if text is not None and array.descr.kind == c"T":
            if n >= _INLINE_BYTES:
                self._refuse_copy(n)
            n = self.put_strings(enc, array, text)
        elif n < _INLINE_BYTES:
            self.put_inline(enc, array, text)
        elif self._put_reference(enc, array, text) or (self.port.naming is not None and PyArray_BASE(array) != NULL and self._put_file(enc, array, text)):
            return 0
        else:
            self._refuse_copy(n)
            self._put_copy(enc, array, text)
        self.port.copies += 1
        self.port.copied_bytes += n
        return 0

    cdef int _refuse_copy(self, Py_ssize_t n) except -1:
        if self.port.strict:
            raise CopyRequired(
                f"an array of {n} bytes lies outside of shared memory and strict_zero_copy forbids the copy: "
                "make it with client.empty(...) or client.blocks(...) (in a handler: fastplug.empty(...))"
            )
        return 0

    cdef int offer(self, PyObject* result) except -1:
        self.port.exclusive = exclusive_in(result)
        return 0

    cdef bint _put_reference(self, Encoder enc, cnp.ndarray array, bytes text) except -1:
        """An array over memory that the peer can see already."""
        cdef object owner = owner_of(array)
        cdef Block block
        cdef Place place
        cdef int64_t low, high, at
        cdef bint fits
        if owner is None and PyArray_BASE(array) != NULL:
            owner = _lease_at(self.port.arena, <const unsigned char*>cnp.PyArray_DATA(array))
        if owner is None or not extent(cnp.PyArray_NDIM(array), <const intptr_t*>cnp.PyArray_DIMS(array), <const intptr_t*>cnp.PyArray_STRIDES(array), cnp.PyArray_ITEMSIZE(array), &low, &high):
            return False
        if type(owner) is OwnLease and (<OwnLease>owner).block.foreign is not None:
            owner = (<OwnLease>owner).block.foreign     # lent on, and come back
        if type(owner) is Lease and (<Lease>owner).owner is self.port.borrowed:
            return self._put_home(enc, array, text, owner, low, high)
        block = self._lendable(array, owner)
        if block is None:
            return False
        at = <int64_t>(<uint64_t>cnp.PyArray_DATA(array) - <uint64_t>block.segment.base)
        fits = at + low >= <int64_t>block.offset and at + high <= <int64_t>(block.offset + block.bytes) and self.port.lend(block, &place.slot)
        if block.foreign is not None:
            self.port.arena.let_go(block)       # forward() took a lease for us
        if not fits:
            return False
        place.segment = block.segment_id
        place.offset = at
        put_head(enc, array, text, FORM_PASSED if self.port.arena.scarce else FORM_LENT, order_of(array))
        memcpy(enc.take(sizeof(Place)), &place, sizeof(Place))
        return True

    cdef Block _lendable(self, cnp.ndarray array, object owner):
        """The block of our arena that the array lies in, when the peer may read it there."""
        cdef Block block
        if type(owner) is Lease:        # another plugin's
            if (<Lease>owner).owner.lent_on is not self.port.arena or (<Lease>owner).segment.fd < 0:
                return None
            return self.port.arena.forward(owner, (<Lease>owner).segment)
        block = (<OwnLease>owner).block if type(owner) is OwnLease else owner
        if block.arena is not self.port.arena:
            return None
        # Who keeps an ordinary array may change it later: without a copy it goes only when nobody does.
        if block.implicit and (self.port.exclusive is None or <uint64_t><PyObject*>array not in self.port.exclusive):
            return None
        return block

    cdef bint _put_home(self, Encoder enc, cnp.ndarray array, bytes text, Lease lease, int64_t low, int64_t high) except -1:
        """An array over memory of the peer's own."""
        cdef Place place
        cdef int64_t at = <int64_t>(<uint64_t>cnp.PyArray_DATA(array) - <uint64_t>lease.base)
        if at + low < 0 or at + high > <int64_t>lease.bytes:
            return False
        self.port.lane.hold(lease)
        self.port.named += 1
        place.segment = lease.segment_id
        place.slot = lease.slot
        place.offset = at
        put_head(enc, array, text, FORM_HOME, order_of(array))
        memcpy(enc.take(sizeof(Place)), &place, sizeof(Place))
        return True

    cdef bint _put_file(self, Encoder enc, cnp.ndarray array, bytes text) except -1:
        """An array over a mapped file that the peer can map, too."""
        cdef uint64_t data = <uint64_t>cnp.PyArray_DATA(array)
        cdef int64_t low, high
        cdef FilePlace place
        cdef uint32_t n
        cdef bytes path
        if cnp.PyArray_NBYTES(array) < <Py_ssize_t>files.FILE_BYTES or not extent(cnp.PyArray_NDIM(array), <const intptr_t*>cnp.PyArray_DIMS(array), <const intptr_t*>cnp.PyArray_STRIDES(array), cnp.PyArray_ITEMSIZE(array), &low, &high):
            return False
        owner = _foreign_owner(array)
        if owner is None:
            return False
        found = self.port.naming.named(owner, data + low, data + high)
        if found is None:
            return False
        place.device = found.device
        place.inode = found.inode
        place.offset = found.offset + (data - <uint64_t>found.address)
        path = found.path
        n = <uint32_t>len(path)
        # A peer that cannot open it asks for the bytes: they stay until the frame is consumed, as what goes home does.
        view = PyMemoryView_FromMemory(<char*>(data + low), high - low, PyBUF_READ)
        self.port.lane.hold(self.port.naming.reading(found, place.offset + low, view, array))
        self.port.named += 1
        put_head(enc, array, text, FORM_FILE, order_of(array))
        memcpy(enc.take(sizeof(FilePlace)), &place, sizeof(FilePlace))
        memcpy(enc.take(4), &n, 4)
        memcpy(enc.take(n), <const unsigned char*>path, n)
        return True

    cdef object _file(self, Decoder dec, Description it):
        cdef FilePlace place
        cdef Py_ssize_t n
        cdef cnp.ndarray whole
        cdef bytes path
        memcpy(&place, dec.need(sizeof(FilePlace)), sizeof(FilePlace))
        n = length(dec)
        path = PyBytes_FromStringAndSize(<const char*>dec.need(n), n)
        if not self.port.opens_files or n > <Py_ssize_t>files.PATH_BYTES_MAX or place.offset > <uint64_t>(INT64_MAX >> 2):
            raise RemoteProtocolError("an array came by the name of a file, where none may be named")
        if not it.nbytes:
            raise RemoteProtocolError("an array without bytes came by the name of a file")
        try:
            whole = np.frombuffer(files.mapped(place.device, place.inode, path, place.offset + it.high), np.uint8)
        except RemoteProtocolError as error:
            if self.port.borrowed.fetch_file is None:
                raise
            return self._fetched_file(it, &place, error)
        _inside(it, place.offset, 0, cnp.PyArray_NBYTES(whole))
        return view_of(it.descr, it.head.ndim, it.shape, it.strides if it.head.order == ORDER_STRIDED else NULL,
                       <unsigned char*>cnp.PyArray_DATA(whole) + place.offset, it.head.order, whole, False)

    cdef object _fetched_file(self, Description it, FilePlace* place, object why):
        """The file cannot be opened here: the bytes of the array, asked for one after another."""
        cdef Segment own
        cdef uint64_t start = place.offset + it.low
        if <uint64_t>(-it.low) > place.offset:
            raise RemoteProtocolError(f"an array at {place.offset}, from {it.low} to {it.high}, lies in front of its file")
        own = self.port.borrowed.fetch_file(place.device, place.inode, start, place.offset + it.high, why)
        self.port.copies += 1
        self.port.copied_bytes += it.nbytes
        return view_of(it.descr, it.head.ndim, it.shape, it.strides if it.head.order == ORDER_STRIDED else NULL,
                       own.base + (place.offset - start), it.head.order, own, False)

    cdef int _put_copy(self, Encoder enc, cnp.ndarray array, bytes text) except -1:
        """One copy, into a block of our arena."""
        cdef size_t n = cnp.PyArray_NBYTES(array)
        cdef int order = order_of(array)
        cdef Block block
        cdef Place place
        block = self.port.arena.take(n)
        try:
            copy_to(block.segment.base + block.offset, array, order)
        except BaseException:
            self.port.arena.let_go(block)
            raise
        if not self.port.lend_taken(block, &place.slot):
            if n <= <size_t>self.port.lane.inline_limit:
                return self.put_inline(enc, array, text)        # what is left when the peer holds all leases that it has room for
            raise ArenaExhausted(f"{self.port.ledger.peer} has all {self.port.ledger.slots} leases, or as many segments, as it has room for; let it drop arrays")
        place.segment = block.segment_id
        place.offset = block.offset
        put_head(enc, array, text, FORM_PASSED if self.port.arena.scarce else FORM_LENT, ORDER_FORTRAN if order == ORDER_FORTRAN else ORDER_C)
        memcpy(enc.take(sizeof(Place)), &place, sizeof(Place))
        return 0

    cdef object get(self, Decoder dec, Codec codec):
        cdef Place place
        cdef Description it = self.it
        read_description(it, dec, codec)
        if it.head.form == FORM_INLINE:
            self.port.copies += 1
            self.port.copied_bytes += it.nbytes
            return self.get_inline(dec)
        if it.head.form == FORM_FILE:
            return self._file(dec, it)
        memcpy(&place, dec.need(sizeof(Place)), sizeof(Place))
        if it.head.form == FORM_HOME:
            return self._home(it, &place)
        if it.head.form == FORM_LENT:
            return self._borrowed(it, &place)
        return self._passed(it, &place)

    cdef object _borrowed(self, Description it, Place* place):
        cdef Lease lease = self.port.borrowed.lease(place.segment, place.slot)
        _inside(it, place.offset, 0, lease.bytes)
        if it.nbytes and lease.reach(place.offset + it.low, place.offset + it.high):
            self.port.copies += 1
            self.port.copied_bytes += it.nbytes
        return view_of(it.descr, it.head.ndim, it.shape, it.strides if it.head.order == ORDER_STRIDED else NULL,
                     lease.base + place.offset, it.head.order, lease, False)

    cdef object _passed(self, Description it, Place* place):
        """The sender is short of memory: a copy of our own, and the block goes back at once."""
        cdef cnp.ndarray own = np.array(self._borrowed(it, place), copy=True, order="K")
        cnp.PyArray_CLEARFLAGS(own, NPY_ARRAY_WRITEABLE)
        self.port.copies += 1
        self.port.copied_bytes += it.nbytes
        return own

    cdef object _home(self, Description it, Place* place):
        cdef Loan loan = self.port.ledger.at(place.slot)
        cdef Block block = loan.block
        if block.segment_id != place.segment:
            raise RemoteProtocolError(f"{self.port.ledger.peer} names slot {place.slot} in segment {place.segment}; it was lent from segment {block.segment_id}")
        _inside(it, place.offset, block.offset, block.offset + block.bytes)
        return view_of(it.descr, it.head.ndim, it.shape, it.strides if it.head.order == ORDER_STRIDED else NULL,
                     block.segment.base + place.offset, it.head.order, own_lease(block), False)

    cdef int skip(self, Decoder dec) except -1:
        cdef Place place
        cdef int form = skip_array_head(dec)
        if form == FORM_INLINE:
            return skip_array_data(dec)
        if form == FORM_FILE:
            dec.need(sizeof(FilePlace))
            dec.need(length(dec))
            return 0
        memcpy(&place, dec.need(sizeof(Place)), sizeof(Place))
        if form == FORM_LENT or form == FORM_PASSED:
            self.port.borrowed.give_back(place.slot)
        return 0


cdef int _inside(Description it, uint64_t offset, uint64_t start, uint64_t end) except -1:
    """Every byte that the array can touch lies in [start, end)."""
    if offset > end or offset < start or <uint64_t>it.high > end - offset or <uint64_t>(-it.low) > offset - start:
        raise RemoteProtocolError(f"an array at {offset}, from {it.low} to {it.high}, lies outside of its memory [{start}, {end})")
    return 0


# Dtypes of numpy's own that have a place in shared memory: to describe one takes longer than all else here.
cdef set _described = set()
# The same by what users call them, "float64" or numpy.float64: to look that up in numpy takes 80 ns.
cdef dict _spelled = {}
cdef enum:
    SPELLED_MAX = 64            # there are few names, but a name may have blanks


cdef tuple _looked_up(object shape, object dtype):
    """(shape, dtype), which has a place in shared memory; with what numpy makes further dimensions of. TypeError for others."""
    cdef cnp.dtype descr = np.dtype(dtype)
    cdef bint plain = descr.subdtype is None
    if not plain:
        descr, inner = descr.subdtype
        shape = ((shape,) if hasattr(shape, "__index__") else tuple(shape)) + inner
    if descr not in _described:
        try:
            dtypes.describe(descr)
        except dtypes.UndescribedError as error:
            raise TypeError(f"an array of {error}") from None
        if descr.kind == c"T" or not descr.itemsize:
            raise TypeError(f"an array of dtype {descr} has no place in shared memory: its items have no bytes there")
        if descr.isbuiltin == 1:        # of those there are few
            _described.add(descr)
    if plain and descr.isbuiltin == 1 and (type(dtype) is str or dtype is descr.type) and len(_spelled) < SPELLED_MAX:
        _spelled[dtype] = descr
    return shape, descr


cdef int _dims_of(object shape, cnp.npy_intp* dims) except -1:
    """How many dimensions."""
    cdef int ndim = 0
    if hasattr(shape, "__index__"):
        shape = (shape,)
    for n in shape:
        if ndim == MAX_NDIM:
            raise ValueError(f"more than {MAX_NDIM} dimensions")
        dims[ndim] = PyNumber_Index(n)
        ndim += 1
    return ndim


cdef object _empty(Arena arena, object shape, object dtype):
    cdef cnp.dtype descr = _spelled.get(dtype) if type(dtype) is str or type(dtype) is type else None
    cdef OwnLease lease
    cdef cnp.npy_intp dims[MAX_NDIM]
    cdef int i, ndim = 1
    cdef int64_t size
    if descr is None:
        shape, descr = _looked_up(shape, dtype)
    if type(shape) is int:
        dims[0] = shape
    else:
        ndim = _dims_of(shape, dims)
    size = descr.itemsize
    for i in range(ndim):
        if dims[i] < 0:
            raise ValueError("negative dimensions are not allowed")
        # more than there can be: the arena says so
        size = INT64_MAX if dims[i] and size > INT64_MAX // dims[i] else size * dims[i]
    if size < _INLINE_BYTES:
        return np.empty(tuple([dims[i] for i in range(ndim)]), descr)
    lease = arena.lease(size)
    return view_of(descr, ndim, dims, NULL, lease.block.segment.base + lease.block.offset, ORDER_C, lease, True)


def empty(arena: Arena, shape, dtype) -> np.ndarray:
    """An uninitialised, writable, C-ordered array in a block of ``arena``. Under 1 KiB: an ordinary array, since it travels inline.

    Raises:
        ArenaExhausted: over the arena's limit.
        TypeError: a dtype that does not travel, or whose items lie elsewhere.
    """
    return _empty(arena, shape, dtype)


def born(shape, dtype) -> np.ndarray:
    """As ``empty``, in the arena of the connection whose handler runs on this thread, or in this task; elsewhere an ordinary array."""
    cdef object port = get_value(SERVING)
    return np.empty(shape, dtype) if port is None else _empty((<ArenaPort>port).arena, shape, dtype)


cdef Block _own_block(object array):
    """The block of an own arena under an array; None elsewhere."""
    cdef object owner = owner_of(array)
    if type(owner) is OwnLease:
        return (<OwnLease>owner).block
    return owner if type(owner) is Block else None


def readers_of(array) -> int:
    """Who else uses the block under an array made with ``empty``: loans that are out plus other local leases. Blocks.__next__ waits for 0."""
    cdef Block block = _own_block(array)
    return block.local - 1 + len(borrowers(block)) if block is not None else 0


def borrowers_of(array) -> list:
    """Names of the peers that hold the block under an array."""
    cdef Block block = _own_block(array)
    return borrowers(block) if block is not None else []
