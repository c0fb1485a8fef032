# The segments of a lane.

from libc.stdint cimport uint32_t, uint64_t

from fastplug.shm._segment cimport Segment

cdef extern from "_atomics.h" nogil:
    ctypedef struct fp_lane:
        char magic[8]
        uint32_t version
        uint32_t ring_bytes
        uint64_t tail
        uint32_t cpu
        uint64_t head
        uint32_t waiting_data
        uint32_t waiting_space
        uint32_t doorbell
        uint32_t waiting_doorbell

# The size of the peer's ring, a power of two. RemoteProtocolError: it is no segment of a lane of this version.
cdef uint64_t ring_of(Segment theirs) except 0

# What a peer's ring may not have: RemoteProtocolError. `index`: where it lies in the ring.
cdef int lost_tail(uint64_t published, uint64_t ring_bytes) except -1
cdef int cut_off(uint32_t size, uint64_t published) except -1
cdef int bad_pad(uint64_t need, uint64_t index, uint64_t ring_bytes) except -1
