# Whose turn it is on a link, and the calls that are under way on it.

from libc.stdint cimport int64_t, uint64_t

from fastplug._wire cimport FrameHeader, MethodCodec
from fastplug.protocols._session cimport Session
from fastplug.protocols._streams cimport Incoming, Outgoing
from fastplug.protocols._waiting cimport Turnstile

cdef enum:
    # A thread that others wait for asks for the link this often: its holder sets its flag and then sleeps, which is not atomic.
    ASK_SLICE_US = 5_000


cdef enum:
    # What _lock() gives: the link is this thread's, or it has been, and runs user code for a call of its own; or it was given back.
    HAS_TURN = 1
    NESTED = 0
    NO_TURN = -1


cdef enum State:
    PENDING = 0
    ANSWERED = 1
    FAILED = 2
    GIVEN_UP = 3        # cancelled, or over its deadline


cdef class Pending:
    # One call under way. PENDING -> ANSWERED | FAILED | GIVEN_UP.
    cdef Turn caller
    cdef MethodCodec codec
    cdef uint64_t number
    cdef int64_t until                  # its deadline, 0 without one
    cdef int state
    cdef object value                   # the result, or the error
    cdef Incoming items                 # the stream that it returns, or None
    cdef Outgoing feed                  # the stream that it takes, or None
    cdef object feed_error              # what the caller's own generator raised
    cdef list passed                    # numbers of the callbacks that it brought
    cdef object waiter                  # a lock on which a thread sleeps while another one reads the lane
    cdef unsigned long thread           # on which its callbacks run: it waits for the answer; 0: any that reads the lane
    cdef list callbacks                 # done-callbacks
    cdef list tellers                   # of the tasks that await it: run at once, by whoever took the answer
    cdef bint greedy                    # takes whatever has come, not only what it waits for
    cdef object __weakref__
    cdef bint ready(self) noexcept
    cdef int wake(self) except -1       # the thread that sleeps on its waiter, if one does
    cdef int finish(self, int state, object value) except -1
    cdef object outcome(self)
    # Of a Flight, which stands for several calls: takes an answer if it is for one of them; all of one lane fail.
    cdef bint claim(self, Turn caller, FrameHeader* header) except -1
    # The same for results of calls from that number on, which the caller's decoder has: how many were its own, up to the first that is not.
    cdef int claim_packed(self, Turn caller, uint64_t number, int count) except -1
    cdef int lost(self, Turn caller, object error) except -1


cdef class Turn(Session):
    # One thread at a time; others queue for `lock`.
    cdef Turnstile turnstile            # of the connection's lanes, None when this is the only one
    cdef void* lock
    cdef unsigned long owner            # thread that holds the lock, 0 when nobody does
    cdef int inside                     # > 0: the owner runs user code (a callback, a generator), and no call within that: its calls nest
    cdef int queued                     # threads that wait for the lock
    cdef bint asked_for                 # by a thread that has something to do for others: whoever has the link may be waiting for just that one
    cdef dict pending                   # number -> Pending; None for one that was given up and whose answer is still to come
    cdef list flights                   # Flights that have calls here
    cdef Py_ssize_t flying              # how many calls those are
    cdef list waiting                   # Pendings whose threads want to read the link
    cdef list later                     # (kind, number): what could not be sent at once
    cdef list finished                  # Pendings with done-callbacks to run
    cdef public list watches            # weak references to _loops.Watches: event loops that wait for frames here
    cdef readonly Py_ssize_t awaited     # calls that they wait for
    cdef bint armed                     # the link makes their descriptors readable
    cdef object refusal                 # an error class and text once the link cannot be used any more
    cdef int owner_pid
    cdef bint called_back(self, unsigned long thread) noexcept
    cdef int urgency(self, Pending call, unsigned long me) except -2
    cdef int _lock(self, int64_t until, str what) except -1
    cdef inline void done(self, int locked) noexcept:
        # The end of what _lock() gave.
        if locked == HAS_TURN:
            self._unlock()
        elif locked == NESTED:
            self.inside += 1
    cdef int ask(self) except -1                        # whoever has the link to let go of it
    cdef bint queue(self, unsigned long me, int64_t until, long long slice_us) except -1
    cdef int part(self) except -2
    cdef int rejoin(self, int inside) except -1
    cdef void took(self, unsigned long me) noexcept     # this thread has the lock
    cdef bint stand_guard(self) noexcept
    cdef int nudge(self, bint all) except -1
    cdef void _unlock(self) noexcept
    cdef int lead(self, Pending call, int64_t until) except -1
    cdef int rouse(self, Pending call) except -1
    cdef Py_ssize_t under_way(self) noexcept
    cdef int update_duplex(self) except -1
    cdef int give_up(self, Pending call, int kind, int state, object error) except -1
    cdef int abandon(self, Pending call) except -1
    cdef int send_later(self, int kind, uint64_t number) except -1
    cdef int flush_later(self) except -1
