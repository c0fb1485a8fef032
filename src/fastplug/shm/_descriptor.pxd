# The descriptor of an array as docs/wire.md, "Arrays", lays it out, and the arithmetic of its shape. Without numpy.

from libc.stdint cimport INT64_MAX, int64_t, intptr_t, uint8_t, uint32_t, uint64_t

cdef enum:
    TAG_ARRAY = 0x13
    FORM_INLINE = 0
    FORM_LENT = 1
    FORM_HOME = 2
    FORM_PASSED = 3             # as LENT, and the receiver copies it and gives it back at once
    FORM_FILE = 4
    ORDER_C = 0
    ORDER_FORTRAN = 1
    ORDER_STRIDED = 2
    MAX_NDIM = 64               # wire.md; numpy 2 has the same limit
    KIND_TEXT = 0x2A            # '*': the dtype is said in words behind the head

cdef packed struct ArrayHead:
    uint8_t form
    uint8_t kind
    uint8_t itemsize
    uint8_t ndim
    uint8_t order
    uint8_t zero0
    uint8_t zero1

# Of a file: behind it u32 n and n bytes, its path.
cdef packed struct FilePlace:
    uint64_t device
    uint64_t inode
    uint64_t offset             # of the first element in the file

cdef struct Place:
    uint32_t segment
    uint32_t slot
    uint64_t offset


cdef inline int extent(int ndim, const intptr_t* shape, const intptr_t* strides, int64_t itemsize, int64_t* low, int64_t* high) noexcept:
    """The bytes that an array touches, relative to its first element: [low, high). 0 when a sum overflows."""
    cdef int i
    cdef int64_t reach
    low[0] = 0
    high[0] = itemsize
    for i in range(ndim):
        if shape[i] == 0:
            low[0] = high[0] = 0
            return 1
    for i in range(ndim):
        if strides[i] == 0 or shape[i] == 1:
            continue
        if (shape[i] - 1) > (INT64_MAX >> 2) // (strides[i] if strides[i] > 0 else -strides[i] if strides[i] > -INT64_MAX else INT64_MAX):
            return 0
        reach = (shape[i] - 1) * strides[i]
        if reach > 0:
            high[0] += reach
        else:
            low[0] += reach
        if high[0] > (INT64_MAX >> 2) or low[0] < -(INT64_MAX >> 2):
            return 0
    return 1
