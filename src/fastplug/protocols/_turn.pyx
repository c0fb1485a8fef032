"""Whose turn it is on a link: one thread has it, others queue, and calls that wait for an answer hand it to each other."""

import os
import threading

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint32_t, uint64_t

from fastplug._wire cimport FrameHeader
from fastplug.protocols._session cimport Session
from fastplug.protocols._streams cimport Incoming, Outgoing
from fastplug.protocols._waiting cimport (
    PY_LOCK_ACQUIRED, PY_LOCK_FAILURE, QUEUE_SLICE_US, PyLockStatus, PyThread_acquire_lock, PyThread_acquire_lock_timed, PyThread_allocate_lock,
    PyThread_free_lock, PyThread_get_thread_ident, PyThread_release_lock,
)

from fastplug.errors import Closed, DeadlineExceeded, LocalProtocolError, RemoteProtocolError

cdef extern from "_atomics.h" nogil:
    int64_t fp_now_ns()

# Who was asked does not take the link again before the one that asked has had it, or has not come for so long.
cdef double LET_PASS_S = 0.01


cdef class Pending:
    cdef bint ready(self) noexcept:
        return self.state != PENDING or (self.items is not None and len(self.items.values) > 0)

    cdef int wake(self) except -1:
        if self.waiter is not None and self.waiter.locked():
            self.waiter.release()
        return 0

    cdef int finish(self, int state, object value) except -1:
        if self.state != PENDING:
            return 0                    # it was given up meanwhile
        self.state = state
        self.value = value
        self.wake()
        if self.callbacks is not None:
            self.caller.finished.append(self)
        if self.tellers is not None:
            tellers, self.tellers = self.tellers, None
            for tell in tellers:
                tell()
        return 0

    cdef object outcome(self):
        if self.state == ANSWERED:
            return self.value
        if self.feed_error is not None:
            raise self.feed_error
        raise self.value

    cdef bint claim(self, Turn caller, FrameHeader* header) except -1:
        return False

    cdef int claim_packed(self, Turn caller, uint64_t number, int count) except -1:
        return 0

    cdef int lost(self, Turn caller, object error) except -1:
        return 0


cdef class Turn(Session):
    """The part of a Caller that is about threads, and about calls that were given up."""

    def __cinit__(self):
        self.lock = PyThread_allocate_lock()
        if self.lock == NULL:
            raise MemoryError

    def __dealloc__(self):
        if self.lock != NULL:
            PyThread_free_lock(self.lock)

    def __init__(self, link, port):
        Session.__init__(self, link, port)
        self.owner_pid = os.getpid()
        self.pending = {}
        self.flights = []
        self.waiting = []
        self.later = []
        self.finished = []
        self.watches = []

    def close(self, error) -> None:
        """From now on calls raise ``error``, or what it returns if it is a callable. Who waits is woken by the link's own end."""
        if self.refusal is None:
            self.refusal = error

    # -- whose turn it is

    cdef int _lock(self, int64_t until, str what) except -1:
        """HAS_TURN or NESTED. While a nested call runs, user code that is not a callback's (a constructor of its result) makes none on top of it."""
        cdef bint asks
        cdef unsigned long me = PyThread_get_thread_ident()
        if PyThread_acquire_lock(self.lock, 0):
            self.took(me)
            return HAS_TURN
        if self.owner == me:
            if self.inside and not self.sending:
                self.inside -= 1
                return NESTED
            raise LocalProtocolError(
                f"{what}() was called while this thread already waits in a call on the same handle (from a signal handler, a finalizer, "
                "an argument's __index__ or a result's constructor); make the call after that one, or open a second handle"
            )
        while True:
            asks = self.called_back(me)
            if asks:
                self.ask()
            if self.queue(me, until, ASK_SLICE_US if asks else QUEUE_SLICE_US):
                return HAS_TURN
            if until and fp_now_ns() >= until:
                raise DeadlineExceeded(f"{what}() was still waiting for other calls on this handle when its deadline ran out; nothing was sent")

    cdef int ask(self) except -1:
        self.asked_for = True
        if self.link is not None:
            self.link.stir()
        return 0

    cdef bint queue(self, unsigned long me, int64_t until, long long slice_us) except -1:
        """Waits for the link, a slice at most: whether it is this thread's."""
        cdef PyLockStatus status
        if until:
            slice_us = min(slice_us, (until - fp_now_ns()) // 1000)
            if slice_us <= 0:
                return False
        self.queued += 1
        with nogil:
            status = PyThread_acquire_lock_timed(self.lock, slice_us, 1)
        self.queued -= 1
        if status == PY_LOCK_ACQUIRED:
            self.took(me)
            self.asked_for = False
            return True
        PyErr_CheckSignals()
        return False

    cdef int part(self) except -2:
        """Lets others have the link, though this thread is in a call: how deep it is in user code, for rejoin(). -1: it has not got the link."""
        cdef int inside = self.inside
        if self.owner != PyThread_get_thread_ident():
            return -1
        if self.link is not None and self.link.lazy:
            self.link.lazy = False
            self.link.flush()
        self.inside = 0
        self._unlock()
        return inside

    cdef int rejoin(self, int inside) except -1:
        """The link is this thread's again, also when a signal came: the code below it counts on that. It may have ended meanwhile."""
        cdef PyLockStatus status = PY_LOCK_ACQUIRED
        if inside < 0:
            return 0
        if not PyThread_acquire_lock(self.lock, 0):
            status = PY_LOCK_FAILURE
        while status != PY_LOCK_ACQUIRED:
            self.ask()
            with nogil:
                status = PyThread_acquire_lock_timed(self.lock, ASK_SLICE_US, 0)
        self.took(PyThread_get_thread_ident())
        self.asked_for = False
        self.inside = inside
        return 0

    cdef bint called_back(self, unsigned long thread) noexcept:
        """Whether who holds the link may need this thread: for a callback that runs on it, or for items that a loop makes."""
        return False

    cdef int urgency(self, Pending call, unsigned long me) except -2:
        """Who is to have the link next. 1: this thread, which waits for that call and has something to do for others. -1: another one. 0: any."""
        return -1 if self.asked_for else 0

    cdef void took(self, unsigned long me) noexcept:
        self.owner = me
        if self.armed:
            self.armed = False
            if self.link is not None:
                self.link.disarm()      # this thread takes what comes

    cdef bint stand_guard(self) noexcept:
        """Loops wait, and nobody reads from now on: their descriptors will tell them. True: something has come already."""
        if self.link is None:
            return False
        self.armed = True
        return self.link.arm()

    def wake_loops(self) -> None:
        """Any thread: loops that wait look at the link, which has ended."""
        self.nudge(True)

    cdef int nudge(self, bint all) except -1:
        """Loops that wait look for frames: those that were turned away while this thread had the link, or all."""
        for reference in list(self.watches):
            watch = reference()
            if watch is not None and (all or watch.barred):
                watch.nudge()
        return 0

    def settled(self, calls: int) -> None:
        """So many calls fewer are awaited."""
        self.awaited -= calls

    def await_one(self) -> None:
        """An event loop is about to wait for one more call: whoever has the link tells it, or the link itself when nobody has."""
        self.awaited += 1
        if self.owner == PyThread_get_thread_ident():       # it runs inside a callback of a call on this very link
            self.nudge(self.stand_guard())
        elif PyThread_acquire_lock(self.lock, 0):
            self.took(PyThread_get_thread_ident())
            self._unlock()

    cdef void _unlock(self) noexcept:
        cdef bint more = False
        if self.later:
            try:
                self.flush_later()
            except Exception:
                pass                    # the link has ended: the next call says so
        if self.awaited:
            more = self.stand_guard()
        self.owner = 0
        PyThread_release_lock(self.lock)
        if self.awaited:
            self.nudge(more)
        if self.turnstile is not None and self.turnstile.waiters:
            self.turnstile.open()
        if self.waiting:
            for call in self.waiting:
                if not (<Pending>call).ready():
                    (<Pending>call).wake()
                    break

    cdef int lead(self, Pending call, int64_t until) except -1:
        """Waits for the link or for the call, whichever comes first: HAS_TURN, NESTED, or -2: look at the call."""
        cdef unsigned long me = PyThread_get_thread_ident()
        cdef double wait_s
        cdef int urgent
        if self.owner == me:
            return self._lock(until, call.codec.qualified)
        urgent = self.urgency(call, me)
        if urgent >= 0 and PyThread_acquire_lock(self.lock, 0):
            self.took(me)
            if urgent:
                self.asked_for = False
            return HAS_TURN
        if urgent > 0:
            self.ask()
            return HAS_TURN if self.queue(me, until, ASK_SLICE_US) else -2
        if call.waiter is None:         # only now: with one, each answer of a map takes a fifth longer
            call.waiter = threading.Lock()
            call.waiter.acquire()
            return -2                   # a finalizer may have run, and the link be free
        self.waiting.append(call)
        try:
            if call.ready():
                return -2
            wait_s = LET_PASS_S if urgent else QUEUE_SLICE_US / 1e6
            if until:
                wait_s = max(0.0, min(wait_s, (until - fp_now_ns()) / 1e9))
            if not call.waiter.acquire(timeout=wait_s) and urgent:
                self.asked_for = False
            PyErr_CheckSignals()        # one that came just before the wait did not end it
        finally:
            self.waiting.remove(call)
        return -2

    cdef int rouse(self, Pending call) except -1:
        """Any thread: whoever waits for that call looks at it again; over a socket within a slice."""
        if call in self.waiting:
            call.wake()
        elif self.owner and self.link is not None:
            self.link.stir()
        return 0

    # -- the end of calls

    cdef Py_ssize_t under_way(self) noexcept:
        return len(self.pending) + self.flying

    cdef int update_duplex(self) except -1:
        if self.link is not None:
            self.link.duplex = self.under_way() > 0
        return 0

    cdef int give_up(self, Pending call, int kind, int state, object error) except -1:
        """The plugin need not go on with it: its late answer will be dropped, and this is its outcome instead."""
        if call.number in self.pending:
            self.abandon(call)
            call.finish(state, error)
            self.send_later(kind, call.number)
        return 0

    cdef int abandon(self, Pending call) except -1:
        """Its answer, if there is still one to come, is for nobody."""
        if call.number in self.pending:
            self.pending[call.number] = None
        return 0

    cdef int send_later(self, int kind, uint64_t number) except -1:
        """Tells the plugin now if the link is free, else whoever has it does when it lets go."""
        self.later.append((kind, number))
        if self.owner != PyThread_get_thread_ident() and PyThread_acquire_lock(self.lock, 0):
            self.took(PyThread_get_thread_ident())
            self._unlock()
        return 0

    cdef int flush_later(self) except -1:
        cdef list later
        if self.link is None or self.refusal is not None or self.version < 2 or not self.at_home():
            self.later.clear()          # a forked child must not speak on its parent's socket
            return 0
        later, self.later = self.later, []
        while later:
            kind, number = later[0]
            if number in self.pending:      # else it has been answered meanwhile
                try:
                    self.signal(kind, number, NULL, 0, 1)
                except DeadlineExceeded:    # no room now: the next one who has the link tries again
                    self.later.extend(later)
                    return 0
            later.pop(0)
        return 0

    def _refused(self):
        """A new error each time: one that is raised twice collects tracebacks."""
        if not self.at_home():
            return Closed(
                f"this handle belongs to process {self.owner_pid}; this is process {os.getpid()}, forked from it. "
                "Open the plugin again here (fastplug.Spec can be passed on)."
            )
        if isinstance(self.refusal, RemoteProtocolError):
            again = RemoteProtocolError(f"the connection is not used any more after an earlier error: {self.refusal}")
            again.__cause__ = self.refusal
            return again
        if callable(self.refusal) and not isinstance(self.refusal, Exception):
            return self.refusal()
        return Closed(str(self.refusal))

    def check_usable(self) -> None:
        """Raises what a call would raise before it sends anything."""
        if not self.at_home() or self.refusal is not None:
            raise self._refused()
