"""The lanes of one connection: a caller takes one that nobody has, the lowest first; when there is none, one more is opened, up to 16.

The lowest free lane is the one used last but when calls overlap: the lane whose memory is warm (fast-transport, 3.3, "LIFO"). Nobody waits for
another caller's lane while fewer than the limit are open; it waits for whichever is free first, an old one or the new one.

A plugin with several workers has a thread for each lane. Then a lane counts as free only if no call is under way on it: a call behind a slow
one would wait for it.
"""

from libc.stdint cimport int64_t

from fastplug.protocols._call cimport Caller
from fastplug.protocols._turn cimport ASK_SLICE_US
from fastplug.protocols._waiting cimport QUEUE_SLICE_US, PyThread_get_thread_ident, Turnstile

from fastplug.errors import DeadlineExceeded

__all__ = ["LANES_MAX", "Pool"]

cdef extern from "_atomics.h" nogil:
    int64_t fp_now_ns()

# fast-transport, 3.3: a host with more threads in calls at once gains nothing, its GIL is busy; each lane is a quarter MiB on both sides.
LANES_MAX = 16
# A plugin that does not answer a question for a lane (C code holds its GIL) must not keep a call from a lane that has others under way.
cdef int64_t OPEN_TIMEOUT_NS = 100_000_000


cdef class Pool(Turnstile):
    """The lanes of one connection.

    Args:
        first: the caller of the first lane.
        limit: how many may be open.
        spread: whether each has a worker of its own.
        opener: ``opener(index)`` asks the plugin for one more; it may raise OSError and ArenaExhausted.
    """

    def __init__(self, Caller first not None, limit: int = 1, spread: bool = False, opener=None):
        self.callers = [first]
        self.limit = min(limit, LANES_MAX) if opener is not None else 1
        self.spread = spread
        self.opener = opener
        first.turnstile = self

    def add(self, Caller caller not None) -> None:
        """Any thread: the lane that was asked for is there."""
        caller.turnstile = self
        self.callers.append(caller)
        self.opening = False
        self.open()

    def refused(self) -> None:
        """Any thread: there will be no further lane."""
        self.limit = len(self.callers)
        self.opening = False
        self.open()

    @property
    def lanes(self) -> int:
        """How many are open."""
        return len(self.callers)

    cdef Caller pick(self, int64_t until, str what):
        cdef Caller caller, first = <Caller>self.callers[0]
        cdef unsigned long me
        cdef int64_t patience
        cdef bint asks = False
        if self.limit == 1:
            return first
        me = PyThread_get_thread_ident()
        caller = self.free(me)
        if caller is not None and (not self.spread or caller.owner == me or not caller.under_way()):
            return caller
        if self.spread:                     # answers that came and that nobody has looked at yet
            for caller in self.callers:
                if caller.owner == 0:
                    caller.drain()
        patience = fp_now_ns() + OPEN_TIMEOUT_NS
        while True:
            if first.refusal is not None or not first.at_home():
                return first                # the call says why; a forked child asks for no lane
            caller = self.free(me)
            if caller is None or self.spread and caller.owner != me and caller.pending:
                self.grow()
                caller = self.free(me)                      # over sockets the new one is there at once
                if caller is None and (not self.opening or fp_now_ns() >= patience):
                    asks = self.ask(me)
            if caller is not None:
                if not self.spread or caller.owner == me or not caller.under_way() or not self.opening or fp_now_ns() >= patience:
                    if asks:
                        self.relieve()
                    return caller
            if not self.wait(until, ASK_SLICE_US if asks else QUEUE_SLICE_US):
                raise DeadlineExceeded(f"{what}() was still waiting for other calls on this handle when its deadline ran out; nothing was sent")

    cdef Caller free(self, unsigned long me):
        """The first free lane, of several workers the one with the fewest calls; this thread's own when it is inside a call; else None."""
        cdef Caller caller, best = None
        cdef Py_ssize_t least = 0, count
        for caller in self.callers:
            if caller.owner == me:
                return caller
            if caller.owner == 0:
                count = caller.under_way() if self.spread else 0
                if best is None or count < least:
                    best, least = caller, count
        return best

    cdef bint ask(self, unsigned long me) except -1:
        """Every lane is held: asks for one whose holder may be waiting for this thread, and for another one the next time, since that one may be
        in a callback of its own."""
        cdef Caller caller
        for _ in self.callers:
            self.asked = (self.asked + 1) % len(self.callers)
            caller = self.callers[self.asked]
            if caller.called_back(me):
                caller.ask()
                return True
        return False

    cdef int relieve(self) except -1:
        """Who asked has a lane."""
        cdef Caller caller
        for caller in self.callers:
            caller.asked_for = False
        return 0

    cdef int grow(self) except -1:
        """Asks for one more lane, unless one has been asked for."""
        if self.opening or len(self.callers) >= self.limit:
            return 0
        self.opening = True
        try:
            self.opener(len(self.callers))
        except Exception:                   # a peer that is gone, no memory: calls say so, or do with the lanes that there are
            self.refused()
        return 0
