"""Sizes of blocks, and the free bytes of one segment: cut from, given back to, neighbours merged.

Small blocks are cut from the low end and large ones from the high end, so that a small one that lives long does not stand in the middle of
what large ones need. Off the hot path: blocks of a size that was used before are recycled whole (_arena.pyx).
"""

from bisect import bisect_left, bisect_right, insort

from libc.stdint cimport int64_t, uint64_t


cdef int size_class_of(uint64_t bytes):
    """Four classes per doubling: at most a quarter of a block is unused."""
    cdef int bits = MIN_BITS
    cdef uint64_t base, step
    if bytes <= <uint64_t>1 << MIN_BITS:
        return 0
    while (<uint64_t>2 << bits) < bytes:
        bits += 1
    base = <uint64_t>1 << bits
    step = base >> 2
    return (bits - MIN_BITS) * 4 + <int>((bytes - base + step - 1) // step)


cdef uint64_t _class_bytes(int size_class):
    cdef uint64_t base = <uint64_t>1 << (MIN_BITS + size_class // 4)
    return base + (base >> 2) * (size_class % 4)


cdef uint64_t block_bytes(uint64_t bytes):
    return _class_bytes(size_class_of(bytes)) if bytes < EXACT_BYTES else (bytes + PAGE_BYTES - 1) // PAGE_BYTES * PAGE_BYTES


def size_of_block(bytes: int) -> int:
    """The size of the block that ``bytes`` bytes get."""
    return block_bytes(bytes)


cdef class Space:
    """Which bytes of a segment belong to no block. All of them, at first.

    Args:
        bytes: size of the segment.
    """

    def __init__(self, bytes: int):
        self.bytes = self.free_bytes = self.largest = bytes
        self.starts = [0] if bytes else []
        self.ends = [bytes] if bytes else []
        self.cuts = []

    cdef int64_t cut(self, uint64_t bytes, uint64_t align, bint from_end) except -2:
        """The first extent with room from the one end, or from the other; never across two."""
        cdef Py_ssize_t n = len(self.starts), i, k
        cdef uint64_t start, end, at, largest = 0
        if bytes > self.largest:
            return -1
        for k in range(n):
            i = n - 1 - k if from_end else k
            start, end = self.starts[i], self.ends[i]
            largest = max(largest, end - start)
            if end - start < bytes:
                continue
            at = (end - bytes) // align * align if from_end else (start + align - 1) // align * align
            if at < start or at + bytes > end:
                continue
            self._take(i, start, end, at, at + bytes)
            insort(self.cuts, at)
            return <int64_t>at
        self.largest = largest          # all were looked at
        return -1

    cdef int _take(self, Py_ssize_t i, uint64_t start, uint64_t end, uint64_t at, uint64_t until) except -1:
        self.free_bytes -= until - at
        if start < at and until < end:
            self.ends[i] = at
            self.starts.insert(i + 1, until)
            self.ends.insert(i + 1, end)
        elif start < at:
            self.ends[i] = at
        elif until < end:
            self.starts[i] = until
        else:
            del self.starts[i]
            del self.ends[i]
        return 0

    cdef int64_t begin_of(self, uint64_t offset):
        cdef Py_ssize_t i = bisect_right(self.cuts, offset)
        return self.cuts[i - 1] if i else -1

    cdef int give(self, uint64_t offset, uint64_t bytes) except -1:
        cdef Py_ssize_t i = bisect_left(self.starts, offset)
        cdef uint64_t end = offset + bytes
        cdef bint before = i > 0 and self.ends[i - 1] == offset
        cdef bint behind = i < len(self.starts) and self.starts[i] == end
        del self.cuts[bisect_left(self.cuts, offset)]
        self.free_bytes += bytes
        if before and behind:
            self.ends[i - 1] = self.ends[i]
            del self.starts[i]
            del self.ends[i]
            i -= 1
        elif before:
            i -= 1
            self.ends[i] = end
        elif behind:
            self.starts[i] = offset
        else:
            self.starts.insert(i, offset)
            self.ends.insert(i, end)
        self.largest = max(self.largest, <uint64_t>(self.ends[i] - self.starts[i]))
        return 0

    # -- faces for tests

    def take(self, bytes: int, align: int = 1, from_end: bool = False) -> int:
        """Where ``bytes`` bytes were cut; -1 when no extent has room."""
        return self.cut(bytes, align, from_end)

    def give_back(self, offset: int, bytes: int) -> None:
        """What was cut is free again."""
        self.give(offset, bytes)

    def begin(self, offset: int) -> int:
        """Where that begins which was cut at ``offset`` or in front of it; -1 when nothing was."""
        return self.begin_of(offset)

    def extents(self) -> list:
        """(start, end) of each free extent, ascending."""
        return list(zip(self.starts, self.ends, strict=True))
