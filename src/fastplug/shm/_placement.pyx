"""Two processes on one CPU: when one of them leaves it.

A kernel may leave two processes that wake each other in turns on one CPU, with others idle. A guest of KVM does: it takes an idle virtual CPU
for a preempted one, so that it wakes nobody there. Measured: 7 us a call instead of 0.6, until something else came; with eight threads on a
handle a third of the time. docs/decisions/2026-11-26-one-cpu-for-two.md has the rest.
"""

from libc.stdint cimport int64_t

cdef extern from "_atomics.h" nogil:
    int64_t fp_now_ns()
    int fp_leave_cpu()

# After so many waits in a row, none further apart than SHARED_GAP_NS, this side goes: the host, and the plugin only if the host cannot, or
# they would go together.
HOST_PATIENCE = 16
PLUGIN_PATIENCE = 64
# Where that does not help, as when all CPUs are busy, it is tried ever more seldom: each time costs some 50 us.
PATIENCE_MAX = 1 << 14
cdef int _PATIENCE_MAX = PATIENCE_MAX
cdef int64_t SHARED_GAP_NS = 100_000


cdef class Placement:
    """Of one connection; all its lanes count together, since threads on several of them take turns with the GIL. The GIL guards it.

    Args:
        patience: waits on one CPU with the peer before this side leaves it.
    """

    def __init__(self, patience: int):
        self.least = self.patience = patience

    cdef bint leaves(self) noexcept:
        cdef int64_t now = fp_now_ns()
        self.shared = self.shared + 1 if now - self.shared_at < SHARED_GAP_NS else 1
        self.shared_at = now
        if self.shared < self.patience:
            return False
        self.shared = 0
        self.patience = min(2 * self.patience, _PATIENCE_MAX)
        if not fp_leave_cpu():
            return False
        self.moves += 1
        return True
