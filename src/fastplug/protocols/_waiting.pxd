# How threads wait for each other: a gate that is opened for one at a time, and a queue behind one.

from libc.stdint cimport int64_t

from fastplug.shm._queue cimport Queue

# For all that is built on these.
cdef extern from "pythread.h":
    ctypedef enum PyLockStatus: PY_LOCK_FAILURE, PY_LOCK_ACQUIRED, PY_LOCK_INTR
    void* PyThread_allocate_lock()
    void PyThread_free_lock(void*)
    int PyThread_acquire_lock(void*, int) nogil
    PyLockStatus PyThread_acquire_lock_timed(void*, long long microseconds, int intr_flag) nogil
    void PyThread_release_lock(void*)
    unsigned long PyThread_get_thread_ident()

cdef enum:
    # A thread that waits looks up this often: a lock wait on a thread that is not the main one is not interrupted by signals.
    QUEUE_SLICE_US = 100_000
    # What such a lock takes for a time without an end.
    ENDLESS_US = -1


cdef class Turnstile:
    # Where threads wait until one of several things is free.
    cdef void* gate                     # locked, but after open() until somebody went through
    cdef int waiters
    cdef bint opened
    cdef void open(self) noexcept       # one of those who wait looks again
    cdef int wait(self, int64_t until, long long slice_us=*) except -1      # a slice at most, then look again: 1; 0 when the time is up


cdef class TimedQueue(Turnstile):
    cdef Queue items
