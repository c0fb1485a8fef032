# Several lanes of one connection, read by one thread.

from libc.stdint cimport int64_t, uint64_t

from fastplug.shm._lane cimport Lane

cdef enum:
    LANES_MAX = 16                      # of a connection (fast-transport, 3.3)


cdef class Lanes:
    cdef list lanes
    cdef const uint64_t* words[LANES_MAX]
    cdef uint64_t seen[LANES_MAX]
    cdef int add(self, Lane lane) except -1
    # Waits until one of them has a frame, at most until then (0: as long as the peer lives): that lane; LANES_MAX: look at all, or the time
    # is up. `hot` is the lane that was used last. EOFError when the peer is gone.
    cdef int wait(self, int64_t until_ns, int hot) except -1
