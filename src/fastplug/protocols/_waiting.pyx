"""How threads wait for each other: a gate that is opened for one at a time, and a queue behind one."""

import queue
import types

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t

from fastplug.shm._queue cimport Queue

cdef extern from "_atomics.h" nogil:
    int64_t fp_now_ns()

cdef object Empty = queue.Empty
# Thirty years: what is longer, or infinite, would not fit into the clock's 64 bits.
cdef double LONGEST_S = 1e9


cdef class Turnstile:
    def __cinit__(self):
        self.gate = PyThread_allocate_lock()
        if self.gate == NULL:
            raise MemoryError
        PyThread_acquire_lock(self.gate, 1)

    def __dealloc__(self):
        if self.gate != NULL:
            PyThread_free_lock(self.gate)

    cdef void open(self) noexcept:
        if self.waiters and not self.opened:
            self.opened = True
            PyThread_release_lock(self.gate)

    cdef int wait(self, int64_t until, long long slice_us=QUEUE_SLICE_US) except -1:
        cdef PyLockStatus status
        cdef long long wait_us = slice_us
        if until:
            wait_us = min(wait_us, (until - fp_now_ns()) // 1000)
            if wait_us <= 0:
                return 0
        self.waiters += 1
        with nogil:
            status = PyThread_acquire_lock_timed(self.gate, wait_us, 1)
        self.waiters -= 1
        if status == PY_LOCK_ACQUIRED:
            self.opened = False
        PyErr_CheckSignals()
        return 1


cdef int64_t end_of(double timeout_s) except? -1:
    if timeout_s != timeout_s:
        raise ValueError("a timeout that is not a number")
    return max(1, fp_now_ns() + <int64_t>(min(max(timeout_s, 0.0), LONGEST_S) * 1e9))


cdef class TimedQueue(Turnstile):
    """A queue.SimpleQueue whose get(timeout=) has an end. For any threads; a signal handler may put, and Ctrl-C in get() loses nothing.

    That of CPython before 3.13 can wait for ever: when its time runs out between two of its steps, what is left of it is below zero, which
    it passes on as a time without end. On a busy machine it did so within 20 s of gets of 1 us, and of 20 us; a plugin that waited 200 us
    for a callback hung once in 250 runs of its test.
    """

    __class_getitem__ = classmethod(types.GenericAlias)

    def __cinit__(self):
        self.items = Queue()

    def put(self, item) -> None:
        """Behind the others; never waits."""
        self.items.put(item)
        self.open()

    def get(self, timeout: float | None = None) -> object:
        """The first one, which is waited for. Raises queue.Empty after ``timeout`` seconds, at once when that is not above zero."""
        cdef int64_t until = 0 if timeout is None else end_of(timeout)
        try:
            while not self.items.count():
                if not self.wait(until, QUEUE_SLICE_US if until else ENDLESS_US):
                    raise Empty
            return self.items.take()
        finally:
            if self.items.count():      # the gate was opened once for several, or for this thread, which a signal handler stopped
                self.open()

    def get_nowait(self) -> object:
        """The first one. Raises queue.Empty when there is none."""
        if not self.items.count():
            raise Empty
        return self.items.take()

    def empty(self) -> bool:
        """Whether nothing is in it now."""
        return not self.items.count()

    def qsize(self) -> int:
        """How many are in it now."""
        return self.items.count()
