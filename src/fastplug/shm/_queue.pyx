"""A queue for compiled code; ``_queue.pxd`` has what is called for each item."""


cdef class Queue:
    """First in, first out. The GIL guards it."""

    def __cinit__(self):
        self.items = []

    cdef list all(self):
        return self.items[self.first :]

    cdef int _shift(self) except -1:
        if 2 * self.first >= len(self.items):       # as many are moved as were taken at most
            del self.items[: self.first]
            self.first = 0
        return 0

    # -- faces for tests

    def __len__(self):
        return self.count()

    def add(self, item) -> None:
        """Behind the others."""
        self.put(item)

    def pop(self) -> object:
        """The first one; there must be one."""
        return self.take()

    def first_one(self) -> object:
        """The same, which stays; there must be one."""
        return self.front()

    def list(self) -> list:
        """What is in it, the first one first."""
        return self.all()
