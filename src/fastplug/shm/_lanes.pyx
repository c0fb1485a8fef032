"""One thread waits for frames on several lanes: it polls their tails, and sleeps on the one doorbell of their peer."""

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int32_t, int64_t, uint64_t

from fastplug.shm._lane cimport Lane, fp_lane

from fastplug.errors import LocalProtocolError
from fastplug.shm._lane import SPIN_HOLDING_GIL_NS, SPIN_NS

__all__ = ["Lanes"]

cdef extern from "_atomics.h" nogil:
    int64_t fp_now_ns()
    int fp_shares_cpu(const fp_lane*)
    int fp_any_moved(const uint64_t* const*, const uint64_t*, int, int)
    int fp_spin_any(const uint64_t* const*, const uint64_t*, int, int, int64_t)
    void fp_sleep_any(fp_lane*, const fp_lane*, const uint64_t* const*, const uint64_t*, int, int64_t, const int32_t*)
    int fp_is_gone(const int32_t*)
    int fp_was_stirred(int32_t*)
    enum: __ATOMIC_ACQUIRE

# As for one lane: shm/_lane.pyx has the reasons.
cdef int64_t _SPIN_HOLDING_GIL_NS = SPIN_HOLDING_GIL_NS
cdef int64_t _SPIN_NS = SPIN_NS


cdef class Lanes:
    """The lanes that one thread reads, the connection's first lane first. Only that thread uses it."""

    def __init__(self, Lane first not None):
        self.lanes = []
        self.add(first)

    cdef int add(self, Lane lane) except -1:
        cdef int i = len(self.lanes)
        if i == LANES_MAX or (lane.first is not None) != (i > 0):
            raise LocalProtocolError(f"a connection has a first lane and at most {LANES_MAX - 1} further ones")
        self.words[i] = &lane.theirs.tail
        self.lanes.append(lane)
        return 0

    cdef int wait(self, int64_t until_ns, int hot) except -1:
        cdef Lane first = self.lanes[0]
        cdef Lane lane
        cdef int i, found, count = len(self.lanes)
        cdef int64_t left
        for i in range(count):
            lane = self.lanes[i]
            if lane.has_frame():
                return i
            lane.flush()
            if lane.held_leases:        # others may be busy for long, and then nobody sleeps
                lane.drop_holds()
            self.seen[i] = lane.head
        if first.may_spin and (not fp_shares_cpu((<Lane>self.lanes[hot]).theirs) or first.placement.leaves()):
            found = fp_spin_any(self.words, self.seen, count, hot, _SPIN_HOLDING_GIL_NS)
            if found < 0:
                with nogil:
                    found = fp_spin_any(self.words, self.seen, count, hot, _SPIN_NS)
            if found >= 0:
                first.placement.spun()
                return found
        first.placement.sleeps += 1
        for lane in self.lanes:
            lane.before_sleep()
        while not fp_any_moved(self.words, self.seen, count, __ATOMIC_ACQUIRE):
            if fp_is_gone(&first.gone) and not fp_any_moved(self.words, self.seen, count, __ATOMIC_ACQUIRE):
                raise EOFError
            if fp_was_stirred(&first.gone):
                return LANES_MAX
            left = first.slice_ns
            if until_ns:
                left = min(left, until_ns - fp_now_ns())
                if left <= 0:
                    return LANES_MAX
            with nogil:
                fp_sleep_any(first.mine, first.theirs, self.words, self.seen, count, left, &first.gone)
            PyErr_CheckSignals()
            for lane in self.lanes:
                if lane.holds:
                    lane.drop_holds()
        return LANES_MAX
