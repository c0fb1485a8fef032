# The two halves of a stream as numbers and buffers: who may send how much. Pure; docs/wire.md, "Streams".

from libc.stdint cimport uint32_t, uint64_t


cdef enum:
    WINDOW_ITEMS = 32       # wire.md: the credit that a stream starts with, and the most that may be under way
    GRANT_ITEMS = 16        # the receiver tells what was taken when it is as much as this, or when the sender is soon at its limit (Incoming.due)


cdef class Outgoing:
    # The sender's half. OPEN -> done (ended, failed, or closed by the receiver).
    cdef object iterator
    cdef Py_ssize_t credit              # items that may be sent
    cdef Py_ssize_t sizes[WINDOW_ITEMS] # bytes of each item under way: a ring, oldest first
    cdef uint32_t oldest                # its place in the ring
    cdef uint32_t items                 # under way
    cdef Py_ssize_t under_way           # their sum
    cdef Py_ssize_t limit               # more than this is not under way, unless one item alone is
    cdef bint done
    cdef unsigned long running          # the caller's: thread on which the iterator makes an item now, else 0
    cdef bint queued                    # in the server's queue of streams that may send
    cdef bint may_send(self) noexcept
    cdef int sent(self, Py_ssize_t size) except -1
    cdef int granted(self, uint32_t items) except -1        # RemoteProtocolError: more than are under way


cdef class Incoming:
    # The receiver's half: what came and was not taken yet, and how it ended.
    cdef object values
    cdef Py_ssize_t untold              # items that came, less those that CREDIT told
    cdef Py_ssize_t taken               # by the consumer, since the last CREDIT
    cdef bint ended                     # END or ERROR came
    cdef object error                   # what to raise behind the last value
    # One that came and was not told may be so large that its sender is at its limit. Invariant: a sender that waits for credit while all has been
    # taken has it due, or it would wait for ever: without a large item it waits only behind WINDOW_ITEMS.
    cdef bint prompt
    cdef int arrived(self, object value, bint prompt) except -1         # RemoteProtocolError: it had no credit
    cdef object take(self)
    cdef bint due(self) noexcept                             # enough was taken to tell
    cdef uint32_t grant(self) noexcept                       # what CREDIT is to say now; 0: nothing
