"""The call whose handler runs: its context, what runs on top of it, and that nobody waits for it any more."""

from libc.stdint cimport uint64_t

from fastplug._wire cimport FLAG_WAITS
from fastplug.protocols._activity cimport Activation
from fastplug.protocols._answering cimport Answering

from fastplug.contexts import Context

# Cancellations that came before their calls: a host has no more calls under way, and one that makes them up gets no further.
CANCELLED_MAX = 1024


cdef class Running(Answering):
    def __cinit__(self):
        self.cancelled, self.below = {}, {}

    def current_context(self) -> object:
        """The context of the call whose handler runs on this thread; None when none does."""
        cdef Running at = self if self.group is None else self.group.at or self
        return at.own_context() if at.running else None

    cdef object own_context(self):
        """Any thread. While one makes a context others run: the handler may ask for it, too, or have come back."""
        cdef Activation current = self.current
        cdef uint64_t call = self.running
        made = self.context or Context(self.until_ns or None, self.metadata)
        if self.running != call:
            return made                 # nobody's any more; what runs now has its own
        if self.context is None:
            self.context = made
            if current is not None:
                current.context = made  # of a stream: the same for each of its items
                if current.given_up:
                    made.cancel()
        return self.context

    def cancel(self, call: int) -> bool:
        """Any thread: the caller does not wait for this call any more. Whether its handler runs now, or waits below one that does."""
        cdef Activation known = self.active.get(call)
        if known is not None:
            known.give_up()
        below = self.below.get(call)
        if below is not None or self.running == call:
            (below or self.own_context()).cancel()
            return True
        if known is not None and (known.running or known.task is not None):
            return True
        if known is None and (call > self.last or self.in_hand(call)):
            self.cancelled[call] = None
            if len(self.cancelled) > CANCELLED_MAX:
                del self.cancelled[next(iter(self.cancelled))]
        return False

    def task_stack(self, call: int) -> str:
        """Any thread: where the asynchronous handler of this call is; empty when there is none."""
        cdef Activation known = self.active.get(call)
        return "" if known is None or known.task is None else known.task.stack()

    cdef bint given_up(self, uint64_t call) except -1:
        return self.cancelled.pop(call, self) is None

    cdef tuple enter(self, Activation call):
        """This call's handler or generator runs from now on: what ran before, for leave(); None when nothing did."""
        cdef tuple outer = self.suspend() if self.depth else None
        self.depth += 1
        self.awaited += call.flags & FLAG_WAITS != 0
        call.running = True
        self.running, self.until_ns, self.metadata, self.context, self.current = call.number, call.until_ns, call.metadata, call.context, call
        return outer

    cdef int leave(self, Activation call, tuple outer) except -1:
        self.awaited -= call.flags & FLAG_WAITS != 0
        call.running = False
        self.current = None
        return self.left(outer)

    cdef tuple suspend(self):
        """Another call runs on top of what runs now: what resume() wants to know. A plain call has nothing else that its cancellation finds."""
        if self.running and self.current is None:
            self.below[self.running] = self.own_context()
        return self.running, self.until_ns, self.metadata, self.context, self.current

    cdef int resume(self, tuple outer) except -1:
        self.running, self.until_ns, self.metadata, self.context, self.current = outer
        if self.below:
            self.below.pop(self.running, None)
        return 0
