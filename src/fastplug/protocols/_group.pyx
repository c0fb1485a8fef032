"""Several lanes that one thread serves, in turns: a frame, a handler or an item of each that has one; else it sleeps until one has."""

from libc.stdint cimport int64_t

from fastplug.protocols._serve cimport Server
from fastplug.shm._lane cimport Lane
from fastplug.shm._lanes cimport Lanes

__all__ = ["Group"]

cdef extern from "_atomics.h" nogil:
    int64_t fp_now_ns()

# While the plugin keeps callbacks, an idle server looks this often whether one was dropped (as one lane does, _serve.pyx).
cdef int64_t RELEASE_SLICE_NS = 500_000_000


cdef class Group:
    """The lanes of a connection whose handlers all run on one thread. ``first`` is the server that this thread runs."""

    def __init__(self, Server first not None):
        self.servers = [first]
        self.lanes = Lanes(<Lane>first.link)

    @property
    def first(self) -> Server:
        """Whose doorbell the serving thread sleeps on."""
        return self.servers[0]

    def add(self, Server server not None) -> None:
        """Any thread: one more lane. The serving thread may sleep on the first one, so it is stirred."""
        cdef Server first = self.servers[0]
        server.group = self
        server.thread = first.thread
        self.lanes.add(<Lane>server.link)
        self.servers.append(server)
        first.group = self
        (<Lane>first.link).stir()

    cpdef int step(self) except -1:
        """What Server.step does, for whichever lane is next."""
        cdef Server server
        cdef int i, place, count = len(self.servers)
        for i in range(count):
            place = (self.hot + 1 + i) % count
            server = self.servers[place]
            if server.runnable():
                return self.serve(place)
        server = self.servers[0]
        if server.line.released:
            server.line.tell_released()
        server.receiving = True
        place = self.lanes.wait(fp_now_ns() + RELEASE_SLICE_NS if server.line.alive else 0, self.hot)
        server.receiving = False
        return self.serve(place) if place < count else 0

    cpdef bint runs_handler(self) except -1:
        """Whether a handler runs now on the thread that serves, and does not wait."""
        cdef Server server
        cdef int running = 0
        for server in self.servers:
            running += server.running_handlers()
        return running > 0

    cdef int serve(self, int place) except -1:
        cdef Server server = self.servers[place]
        cdef Server before = self.at
        self.hot = place
        self.at = server
        try:
            server.step()
            return server.link.flush()      # the next handler may be another lane's
        finally:
            self.at = before

    def close(self) -> None:
        """After the end: generators that have not come to theirs are closed, on the thread that served."""
        cdef Server server
        for server in self.servers[1:]:
            server.stopping = True
            server.close_streams()
            server.references.server = None
            server.group = None
