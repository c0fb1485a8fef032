"""Numpy's own allocations from an arena, and private views of what a peer lent.

Numpy asks the allocation handler of the current context for the data of each new array (NEP 49, PyDataMem_SetHandler). Ours takes 64 KiB and
more from an arena, and leaves everything else to numpy's default. An array remembers its handler and gives its data back to it, from any
thread, whenever it ends: after the handler was taken away, after the connection, after the arena was closed. So a handler lives as long as
its last array, and what it gave out is known by its address.

Threads have contexts of their own: what a handler's thread computes is allocated as ever, unless it runs in a copy of the context.
"""

import dataclasses

import numpy as np

cimport numpy as cnp
from cpython.object cimport PyObject, PyTypeObject
from cpython.pycapsule cimport PyCapsule_GetContext, PyCapsule_GetPointer, PyCapsule_New, PyCapsule_SetContext
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t, intptr_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from fastplug.shm._arena cimport Arena
from fastplug.shm._borrowed cimport Lease
from fastplug.shm._descriptor cimport extent
from fastplug.shm._loans cimport Block, OwnLease
from fastplug.shm._segment cimport Segment

cnp.import_array()

cdef extern from "_atomics.h" nogil:
    int fp_fork_init()
    uint32_t fp_mark()
    int fp_is_home(uint32_t)

cdef extern from "<sys/mman.h>" nogil:
    void* mmap(void*, size_t, int, int, int, long)
    int munmap(void*, size_t)
    enum: PROT_READ, PROT_WRITE, MAP_PRIVATE
    void* MAP_FAILED

cdef extern from "numpy/arrayobject.h":
    ctypedef struct PyDataMemAllocator:
        void* ctx
        void* (*malloc)(void* ctx, size_t size) noexcept nogil
        void* (*calloc)(void* ctx, size_t count, size_t size) noexcept nogil
        void* (*realloc)(void* ctx, void* data, size_t size) noexcept nogil
        void (*free)(void* ctx, void* data, size_t size) noexcept nogil
    ctypedef struct PyDataMem_Handler:
        char name[127]
        uint8_t version
        PyDataMemAllocator allocator
    object PyDataMem_SetHandler(object)
    PyObject* PyDataMem_DefaultHandler
    PyObject* PyArray_BASE(cnp.ndarray)
    int PyArray_CHKFLAGS(cnp.ndarray, int)
    object PyArray_NewFromDescr(PyTypeObject* subtype, cnp.dtype descr, int nd, const cnp.npy_intp* dims, const cnp.npy_intp* strides, void* data, int flags, object obj)
    int PyArray_SetBaseObject(cnp.ndarray, object) except -1
    PyTypeObject PyArray_Type
    enum: NPY_ARRAY_OWNDATA, NPY_ARRAY_WRITEABLE

cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(PyObject*)
    PyObject* PyTuple_GET_ITEM(PyObject*, Py_ssize_t)
    PyObject* PyList_GET_ITEM(PyObject*, Py_ssize_t)
    int PyDict_Next(PyObject*, Py_ssize_t*, PyObject**, PyObject**)

if fp_fork_init():
    raise ImportError("MADV_WIPEONFORK is missing: shared memory needs Linux 4.14 or later")

# Smaller arrays are numpy's own business: to copy 64 KiB costs 2 us, and most of them never travel.
THRESHOLD_BYTES = 64 * 1024
# Below this writable() copies: a mapping costs 2 us to make and end, and a fault for each page.
PRIVATE_VIEW_BYTES = 64 * 1024
cdef size_t _THRESHOLD_BYTES = THRESHOLD_BYTES
cdef Py_ssize_t _PRIVATE_VIEW_BYTES = PRIVATE_VIEW_BYTES
cdef enum:
    DEPTH_MAX = 8           # of containers in a result that are looked through; a deeper array is copied
    BASES_MAX = 16          # numpy collapses chains of views
    PAGE_BYTES = 4096

# Address -> Block of everything that numpy has of an arena, and what all of it lies between: a free elsewhere need not be looked up.
cdef dict _blocks = {}
cdef uint64_t _low = 0xFFFFFFFFFFFFFFFFu
cdef uint64_t _high = 0
cdef PyDataMem_Handler* _default = <PyDataMem_Handler*>PyCapsule_GetPointer(<object>PyDataMem_DefaultHandler, "mem_handler")


cdef class _Source:
    # What a capsule's allocator points to: lives until the last array of it has ended.
    cdef Arena arena
    cdef bint implicit
    cdef uint32_t mark
    cdef PyDataMem_Handler handler


cdef void* _take(_Source source, size_t size) noexcept:
    """From the arena; NULL when it has none to give, or this is a fork of the process that it belongs to."""
    global _low, _high
    cdef Block block = None
    cdef uint64_t place
    if not fp_is_home(source.mark):
        return NULL
    try:
        block = source.arena.take_spare(size) if source.implicit else source.arena.take(size)
        if block is None:
            return NULL
        place = <uint64_t>block.segment.base + block.offset
        block.implicit = source.implicit
        _blocks[place] = block
    except BaseException:
        if block is not None:
            block.local -= 1
        return NULL
    _low = min(_low, place)
    _high = max(_high, place + 1)
    return <void*>place


cdef void* _take_with_gil(void* ctx, size_t size) noexcept with gil:
    return _take(<_Source>ctx, size)


cdef void* _malloc(void* ctx, size_t size) noexcept nogil:
    cdef void* place = NULL
    if size >= _THRESHOLD_BYTES:
        place = _take_with_gil(ctx, size)
    return place if place != NULL else _default.allocator.malloc(_default.allocator.ctx, size)


cdef void* _calloc(void* ctx, size_t count, size_t size) noexcept nogil:
    cdef void* place = NULL
    if size and count > <size_t>-1 // size:
        return NULL
    if count * size >= _THRESHOLD_BYTES:
        place = _take_with_gil(ctx, count * size)
    if place == NULL:
        return _default.allocator.calloc(_default.allocator.ctx, count, size)
    return memset(place, 0, count * size)       # recycled memory is not zero


cdef int _give_back(void* data) noexcept with gil:
    """1: it was a block. A forked child has books of its own by then, which nobody reads."""
    cdef Block block = _blocks.pop(<uint64_t>data, None)
    if block is None:
        return 0
    block.arena.let_go(block)
    return 1


cdef void _free(void* ctx, void* data, size_t size) noexcept nogil:
    if _low <= <uint64_t>data < _high and _give_back(data):
        return
    _default.allocator.free(_default.allocator.ctx, data, size)


cdef size_t _size_of(void* data) noexcept with gil:
    """Of the block; 0 when it is none of an arena."""
    cdef Block block = _blocks.get(<uint64_t>data)
    return block.bytes if block is not None else 0


cdef void* _realloc(void* ctx, void* data, size_t size) noexcept nogil:
    cdef size_t has = _size_of(data) if _low <= <uint64_t>data < _high else 0
    cdef void* place
    if not has:
        return _default.allocator.realloc(_default.allocator.ctx, data, size)   # what began elsewhere stays there
    if _THRESHOLD_BYTES <= size <= has:
        return data
    place = _malloc(ctx, size)
    if place != NULL:
        memcpy(place, data, min(size, has))
        _give_back(data)
    return place


cdef void _forget_source(object capsule) noexcept:
    Py_DECREF(<object>PyCapsule_GetContext(capsule))


def allocate_from(arena: Arena, implicit: bool) -> object:
    """From now on numpy allocates large arrays of this context in ``arena``, as long as it has memory; what to give to ``restore``.

    Args:
        implicit: the user did not ask for it: such an array is sent by reference only when nobody else has it, since who keeps an ordinary
            array may change it; and never is the last quarter of the arena's limit taken.
    """
    cdef _Source source = _Source.__new__(_Source)
    source.arena = arena
    source.implicit = implicit
    source.mark = fp_mark()
    memset(&source.handler, 0, sizeof(PyDataMem_Handler))
    memcpy(source.handler.name, b"fastplug_arena", 14)
    source.handler.version = 1
    source.handler.allocator.ctx = <void*>source
    source.handler.allocator.malloc = _malloc
    source.handler.allocator.calloc = _calloc
    source.handler.allocator.realloc = _realloc
    source.handler.allocator.free = _free
    capsule = PyCapsule_New(&source.handler, "mem_handler", _forget_source)
    Py_INCREF(source)
    PyCapsule_SetContext(capsule, <void*>source)
    return PyDataMem_SetHandler(capsule)


def restore(previous: object) -> None:
    """Ends what ``allocate_from`` began, in the same context."""
    PyDataMem_SetHandler(previous)


def allocated() -> int:
    """How many arrays of this process lie in blocks that numpy allocated."""
    return len(_blocks)


cdef object owner_of(object array):
    cdef PyObject* base
    for _ in range(BASES_MAX):
        if type(array) is OwnLease or type(array) is Lease:
            return array
        if isinstance(array, cnp.ndarray):
            base = PyArray_BASE(<cnp.ndarray>array)
            if base == NULL:
                return _blocks.get(<uint64_t>cnp.PyArray_DATA(<cnp.ndarray>array)) if PyArray_CHKFLAGS(<cnp.ndarray>array, NPY_ARRAY_OWNDATA) else None
            array = <object>base
        elif type(array) is memoryview:
            array = array.obj
        else:
            return None
    return None


# -- what nobody else has

cdef bint _alone(PyObject* value):
    """The one reference to an array is the one that was followed; and the same for what it is a view of."""
    for _ in range(BASES_MAX):
        if Py_REFCNT(value) != 1 or not isinstance(<object>value, cnp.ndarray):
            return False
        value = PyArray_BASE(<cnp.ndarray>value)
        if value == NULL:
            return True
    return False


cdef int _look(PyObject* value, set found, int depth) except -1:
    cdef Py_ssize_t i
    if isinstance(<object>value, cnp.ndarray):
        if _alone(value):
            found.add(<uint64_t>value)
    elif depth == DEPTH_MAX or Py_REFCNT(value) != 1:
        return 0
    elif type(<object>value) is tuple:
        for i in range(len(<tuple>value)):
            _look(PyTuple_GET_ITEM(value, i), found, depth + 1)
    elif type(<object>value) is list:
        for i in range(len(<list>value)):
            _look(PyList_GET_ITEM(value, i), found, depth + 1)
    elif type(<object>value) is dict:
        _look_in_dict(value, found, depth)
    elif dataclasses.is_dataclass(<object>value):
        fields = getattr(<object>value, "__dict__", None)
        if type(fields) is dict:
            _look_in_dict(<PyObject*>fields, found, depth)
    return 0


cdef int _look_in_dict(PyObject* value, set found, int depth) except -1:
    cdef Py_ssize_t at = 0
    cdef PyObject* item
    while PyDict_Next(value, &at, NULL, &item):
        _look(item, found, depth + 1)
    return 0


cdef set exclusive_in(PyObject* result):
    cdef set found
    if not _blocks:
        return None
    found = set()
    _look(result, found, 0)
    return found


# -- private views

cdef class PrivateView:
    """A copy-on-write mapping of a part of a peer's segment: a page is copied when it is written to, and the peer sees nothing of it.

    It keeps the peer's lease: pages that were not written to are still the peer's.
    """

    cdef void* base
    cdef size_t bytes
    cdef Lease lease

    def __dealloc__(self):
        if self.base != NULL:
            munmap(self.base, self.bytes)


def writable(array: np.ndarray) -> np.ndarray:
    """What ``fastplug.writable`` says."""
    cdef object owner = owner_of(array)
    cdef cnp.ndarray it = array
    cdef int64_t low, high
    cdef bint known
    known = extent(cnp.PyArray_NDIM(it), <const intptr_t*>cnp.PyArray_DIMS(it), <const intptr_t*>cnp.PyArray_STRIDES(it), cnp.PyArray_ITEMSIZE(it), &low, &high)
    # Items that share bytes need a copy, since each is to be changed alone.
    if known and type(owner) is Lease and high - low >= _PRIVATE_VIEW_BYTES and high - low >= cnp.PyArray_NBYTES(it):
        found = _private_view(it, owner, low, high)
        if found is not None:
            return found
        (<Lease>owner).owner.private_copies += 1
    return np.array(array, copy=True, order="K", subok=False)


cdef object _private_view(cnp.ndarray array, Lease lease, int64_t low, int64_t high):
    """None: the descriptor was not kept, or no mapping is to be had."""
    cdef Segment segment = lease.segment
    cdef uint64_t data = <uint64_t>cnp.PyArray_DATA(array)
    cdef uint64_t start = data + low - <uint64_t>segment.base
    cdef uint64_t floor = start // PAGE_BYTES * PAGE_BYTES
    cdef PrivateView view
    cdef void* base
    if segment.fd < 0:
        return None
    base = mmap(NULL, start - floor + (high - low), PROT_READ | PROT_WRITE, MAP_PRIVATE, segment.fd, floor)
    if base == MAP_FAILED:
        return None
    view = PrivateView.__new__(PrivateView)
    view.base = base
    view.bytes = start - floor + (high - low)
    view.lease = lease
    descr = array.descr
    Py_INCREF(descr)            # NewFromDescr takes it over
    found = PyArray_NewFromDescr(&PyArray_Type, descr, cnp.PyArray_NDIM(array), cnp.PyArray_DIMS(array), cnp.PyArray_STRIDES(array),
                                 <unsigned char*>base + (start - floor) - low, NPY_ARRAY_WRITEABLE, None)
    Py_INCREF(view)             # SetBaseObject takes it over
    PyArray_SetBaseObject(found, view)
    return found
