"""Credit: how many items of a stream may be under way. The same on both sides and in both directions."""

import collections

from libc.stdint cimport uint32_t

from fastplug.errors import RemoteProtocolError


cdef class Outgoing:
    """The sender's half of a stream.

    Args:
        iterator: what makes the items.
        limit: bytes of items that may be under way; one item alone may be longer.
    """

    def __init__(self, iterator, limit: int):
        self.iterator = iterator
        self.credit = WINDOW_ITEMS
        self.limit = limit

    cdef bint may_send(self) noexcept:
        return not self.done and self.credit > 0 and (self.under_way < self.limit or not self.under_way)

    cdef int sent(self, Py_ssize_t size) except -1:
        self.credit -= 1                # may_send() was true: fewer than WINDOW_ITEMS are under way
        self.sizes[(self.oldest + self.items) % WINDOW_ITEMS] = size
        self.items += 1
        self.under_way += size
        return 0

    cdef int granted(self, uint32_t items) except -1:
        if not 0 < items <= self.items:
            raise RemoteProtocolError(f"the peer gave credit for {items} items of a stream that has {self.items} under way")
        self.credit += items
        self.items -= items
        while items:
            self.under_way -= self.sizes[self.oldest]
            self.oldest = (self.oldest + 1) % WINDOW_ITEMS
            items -= 1
        return 0

    def stop(self) -> None:
        """Nothing more is sent; a generator runs its clean-up. Raises what that raises."""
        self.done = True
        iterator, self.iterator = self.iterator, None
        close = getattr(iterator, "close", None)
        if close is not None:
            close()


cdef class Incoming:
    """The receiver's half of a stream."""

    def __init__(self):
        self.values = collections.deque()

    cdef int arrived(self, object value, bint prompt) except -1:
        if self.ended:
            raise RemoteProtocolError("the peer sent an item of a stream behind its end")
        if self.untold >= WINDOW_ITEMS:
            raise RemoteProtocolError(f"the peer sent an item of a stream without credit: {self.untold} are under way")
        self.untold += 1
        self.prompt = self.prompt or prompt
        self.values.append(value)
        return 0

    cdef object take(self):
        self.taken += 1
        return self.values.popleft()

    cdef bint due(self) noexcept:
        return self.taken >= GRANT_ITEMS or self.prompt and 2 * self.taken >= self.untold

    cdef uint32_t grant(self) noexcept:
        cdef Py_ssize_t items = self.taken
        if self.ended:
            return 0
        self.taken = 0
        self.untold -= items
        if not self.untold:
            self.prompt = False
        return <uint32_t>items
