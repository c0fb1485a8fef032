"""Memory segments: sealed memfds with one writer.

Each process makes its own, maps them writable and seals them (SHRINK, GROW, FUTURE_WRITE, SEAL); a peer can map them read-only and nothing
else. Whoever receives a descriptor checks seals, size and pages before it maps: a sparse file would make the reader pay for the pages, and
one that can shrink would kill it with SIGBUS.
"""

import os
import stat

from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EINTR, ENOMEM, errno as c_errno
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy
from posix.unistd cimport close, ftruncate

from fastplug.errors import ArenaExhausted, RemoteProtocolError

cdef extern from "<sys/mman.h>" nogil:
    void* mmap(void*, size_t, int, int, int, long)
    int munmap(void*, size_t)
    int madvise(void*, size_t, int)
    int memfd_create(const char*, unsigned int)
    enum: PROT_READ, PROT_WRITE, MAP_SHARED, MAP_PRIVATE, MAP_ANONYMOUS, MFD_CLOEXEC, MFD_ALLOW_SEALING
    void* MAP_FAILED

cdef extern from *:
    """
    #include <fcntl.h>
    #ifndef F_SEAL_FUTURE_WRITE
    #define F_SEAL_FUTURE_WRITE 0x0010
    #endif
    #ifndef MADV_POPULATE_READ
    #define MADV_POPULATE_READ 22
    #define MADV_POPULATE_WRITE 23
    #endif
    #define FP_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL)
    """
    enum: FP_SEALS, F_ADD_SEALS, F_GET_SEALS, MADV_POPULATE_READ, MADV_POPULATE_WRITE
    int fcntl(int, int, ...) nogil
    int fallocate(int, int, long, long) nogil

PAGE_BYTES = os.sysconf("SC_PAGESIZE")
# No segment is larger than what a u64 offset and a signed size can hold with room to add: 1 TiB is more than any machine this runs on.
MAX_SEGMENT_BYTES = 1 << 40
SEALS = FP_SEALS
# Pages are allocated in steps of this size (about 4 ms each): a signal ends a step and undoes it, not all that was done before.
ALLOCATION_STEP_BYTES = 4 << 20
# A process that is signalled more often than a step takes, again and again, gets no segment.
ALLOCATION_TRIES = 1000

# Descriptors of peers' segments that one process keeps for private views: a quarter of the usual limit of 1024. Further ones are closed.
KEPT_DESCRIPTORS = 256

cdef extern from *:
    """
    #include <pthread.h>
    #include <stdint.h>
    #include <stdlib.h>
    #include <sys/mman.h>

    /* Own segments. A forked child has them mapped as its parent has; what it writes to an array of its parent must stay its own, as it does
       with any other array. So each mapping is replaced by a private one of the same file, at the same place. In C, because the fork may be
       made in C, too; only mmap is called, which is safe there. The GIL guards the list. */
    typedef struct fp_own { void* base; size_t bytes; int fd; struct fp_own* next; } fp_own;
    static fp_own* fp_owned;

    static void fp_owned_in_child(void) {
        for (fp_own* own = fp_owned; own; own = own->next)
            if (own->fd >= 0)
                mmap(own->base, own->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, own->fd, 0);
    }

    static int fp_own_add(void* base, size_t bytes, int fd) {
        static int registered;
        fp_own* own = malloc(sizeof(fp_own));
        if (!own || (!registered && pthread_atfork(NULL, NULL, fp_owned_in_child))) {
            free(own);
            return -1;
        }
        registered = 1;
        *own = (fp_own){base, bytes, fd, fp_owned};
        __atomic_store_n(&fp_owned, own, __ATOMIC_RELEASE);
        return 0;
    }

    static void fp_own_remove(void* base) {
        for (fp_own** at = &fp_owned; *at; at = &(*at)->next)
            if ((*at)->base == base) {
                fp_own* own = *at;
                *at = own->next;
                free(own);
                return;
            }
    }
    """
    int fp_own_add(void*, size_t, int)
    void fp_own_remove(void*)

cdef Py_ssize_t _kept = 0
cdef Py_ssize_t _live = 0          # a C variable: at interpreter exit a Python one may be gone before the last segment


def live() -> int:
    """How many segments this process has mapped: tests compare it before and after."""
    return _live


def available() -> bool:
    """Can this process make shared memory (memfds, seals, room for them)? Tried, not guessed: a sandbox may forbid what the kernel knows."""
    try:
        Segment.create(PAGE_BYTES, "fastplug-probe")
    except (ArenaExhausted, OSError):
        return False
    return True


cdef class Segment:
    """A mapped memory segment. Unmapped when the last object that uses it is gone: arrays keep it alive through their leases."""

    def __cinit__(self):
        self.fd = -1

    def __init__(self):
        raise TypeError("use Segment.create() or Segment.attach()")

    @staticmethod
    def create(bytes: int, name: str = "fastplug") -> Segment:
        """A new segment of this process: pages allocated, mapped writable, then sealed.

        Raises:
            ArenaExhausted: the system gives no memory, no descriptor or no address space.
        """
        global _live
        cdef Segment segment = Segment.__new__(Segment)
        cdef int fd
        cdef void* base
        cdef uint64_t size = -(-bytes // PAGE_BYTES) * PAGE_BYTES
        if not 0 < bytes <= MAX_SEGMENT_BYTES:
            raise ValueError(f"a segment of {bytes} bytes cannot be made")
        encoded = name.encode()
        fd = memfd_create(encoded, MFD_CLOEXEC | MFD_ALLOW_SEALING)
        if fd < 0:
            raise _no_memory("memfd_create", c_errno, bytes)
        segment.fd = fd
        if ftruncate(fd, size):
            raise _no_memory("ftruncate", c_errno, bytes)
        _allocate(fd, size)
        with nogil:
            base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
        if base == MAP_FAILED:
            raise _no_memory("mmap", c_errno, bytes)
        segment.base = <unsigned char*>base
        segment.bytes = size
        segment.writable = True
        _live += 1
        if fp_own_add(base, size, fd):
            raise _no_memory("pthread_atfork", ENOMEM, bytes)
        with nogil:
            madvise(base, size, MADV_POPULATE_WRITE)        # EINVAL before Linux 5.14: then the first pass faults
        if fcntl(fd, F_ADD_SEALS, FP_SEALS) != 0:
            raise _no_memory("sealing", c_errno, bytes)
        return segment

    @staticmethod
    def attach(fd: int, bytes: int, keep: bool = False) -> Segment:
        """A peer's segment, mapped read-only. Takes over ``fd``, also when it raises.

        Args:
            fd: as it came over the control socket.
            bytes: the size that the peer announced.
            keep: the descriptor stays open for private views, unless this process has ``KEPT_DESCRIPTORS`` of them already.

        Raises:
            RemoteProtocolError: it is not what the protocol asks for, and why.
            ArenaExhausted: this process can map no more.
        """
        global _live, _kept
        cdef Segment segment = Segment.__new__(Segment)
        cdef void* base
        cdef int cfd = fd
        cdef uint64_t size
        segment.fd = fd
        _check(fd, bytes)
        size = bytes
        with nogil:
            base = mmap(NULL, size, PROT_READ, MAP_SHARED, cfd, 0)
        if base == MAP_FAILED:
            raise _no_memory("mmap", c_errno, bytes)
        segment.base = <unsigned char*>base
        segment.bytes = size
        _live += 1
        with nogil:
            madvise(base, size, MADV_POPULATE_READ)
        if keep and _kept < KEPT_DESCRIPTORS:
            segment.counted = True
            _kept += 1
        else:
            close(cfd)
            segment.fd = -1
        return segment

    @staticmethod
    def private(bytes: int) -> Segment:
        """Memory of this process alone, zeroed: stands in for a part of a segment that cannot be mapped. Raises ArenaExhausted."""
        global _live
        cdef Segment segment = Segment.__new__(Segment)
        cdef void* base
        cdef uint64_t size = -(-bytes // PAGE_BYTES) * PAGE_BYTES
        if not 0 < bytes <= MAX_SEGMENT_BYTES:
            raise ValueError(f"{bytes} bytes cannot be had")
        with nogil:
            base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if base == MAP_FAILED:
            raise _no_memory("mmap", c_errno, bytes)
        segment.base = <unsigned char*>base
        segment.bytes = size
        segment.writable = True
        _live += 1
        return segment

    def __dealloc__(self):
        global _live, _kept
        if self.counted:
            _kept -= 1
        if self.base != NULL:
            if self.writable:
                fp_own_remove(self.base)
            munmap(self.base, self.bytes)
            self.base = NULL
            _live -= 1
        if self.fd >= 0:
            close(self.fd)

    @property
    def address(self) -> int:
        """Where it is mapped, for tests and for matching arrays with it."""
        return <uint64_t>self.base

    def read(self, offset: int, count: int) -> object:
        """A copy of ``count`` bytes at ``offset``."""
        if not 0 <= offset <= self.bytes or not 0 <= count <= self.bytes - offset:
            raise ValueError("outside of the segment")
        return self.base[<uint64_t>offset : <uint64_t>(offset + count)]

    def write(self, offset: int, data: object) -> None:
        """Writes to a segment of this process: what was fetched for a private one; tests play a hostile peer with it."""
        cdef const unsigned char[::1] view = data
        cdef uint64_t at = offset
        if not self.writable or at > self.bytes or <uint64_t>view.shape[0] > self.bytes - at:
            raise ValueError("outside of the segment, or not ours")
        if view.shape[0]:
            memcpy(self.base + at, &view[0], view.shape[0])


cdef int _allocate(int fd, uint64_t size) except -1:
    """Allocates now what would otherwise be a SIGBUS later (tmpfs full) and a page fault on the hot path."""
    cdef uint64_t done = 0, step
    cdef int code, tries = 0
    while done < size:
        step = min(<uint64_t>ALLOCATION_STEP_BYTES, size - done)
        with nogil:
            code = c_errno if fallocate(fd, 0, done, step) else 0
        if not code:
            done += step
            tries = 0
            continue
        tries += 1
        if code != EINTR or tries == ALLOCATION_TRIES:
            raise _no_memory("fallocate", code, size)
        PyErr_CheckSignals()
    return 0


cdef _no_memory(str what, int code, object bytes):
    text = (
        f"shared memory: {what} failed for {bytes} bytes: {os.strerror(code)}. "
        "Free memory, raise the limit (RLIMIT_AS, RLIMIT_NOFILE, the memory cgroup), or use transport='socket'."
    )
    error = ArenaExhausted(text)
    error.__cause__ = OSError(code, os.strerror(code))
    return error


def _check(int fd, object bytes) -> None:
    """Seals by mask (newer kernels add F_SEAL_EXEC), type, size, pages."""
    cdef int seals = fcntl(fd, F_GET_SEALS)
    if seals < 0:
        raise RemoteProtocolError(f"a segment's descriptor is no memfd ({os.strerror(c_errno)})")
    if seals & FP_SEALS != FP_SEALS:
        raise RemoteProtocolError(f"a segment is not sealed: seals {seals:#x}, wanted {int(FP_SEALS):#x}. It could shrink or be shared for writing.")
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise RemoteProtocolError("a segment's descriptor is no regular memory file")
    if not 0 < bytes <= MAX_SEGMENT_BYTES or status.st_size != bytes or bytes % PAGE_BYTES:
        raise RemoteProtocolError(f"a segment of {status.st_size} bytes was announced with {bytes}")
    if status.st_blocks * 512 < bytes:
        raise RemoteProtocolError(f"a segment of {bytes} bytes is sparse: {status.st_blocks * 512} bytes have pages")


