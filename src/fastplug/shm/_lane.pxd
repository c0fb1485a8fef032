# A lane: two rings, one in each direction, and the two ways of waiting on them. One user at a time on each side.
#
# State of a lane: OPEN -> GONE (the peer is gone or the end was asked for: what is in the ring is still delivered, then EOFError).

cimport cython
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from fastplug._wire cimport Decoder, FrameHeader, Link
from fastplug.shm._placement cimport Placement
from fastplug.shm._rings cimport fp_lane
from fastplug.shm._segment cimport Segment

cdef enum:
    STAGE_BYTES = 4096                  # 16 answers of 200 bytes; whatever is larger goes to the ring itself


@cython.final
cdef class Lane(Link):
    # Shared memory. Each side writes only its own segment.
    cdef Segment my_segment
    cdef Segment their_segment
    cdef fp_lane* mine
    cdef const fp_lane* theirs
    cdef readonly Lane first            # of the connection, whose segments have the doorbell; None: this one
    cdef fp_lane* mine_first
    cdef const fp_lane* theirs_first
    cdef unsigned char* out_ring
    cdef const unsigned char* in_ring
    cdef uint64_t out_bytes             # ring sizes, powers of two, as checked when the lane was made
    cdef uint64_t in_bytes
    # Private truth: what the shared words repeat. Never read back from shared memory.
    cdef uint64_t tail                  # written to the out ring
    cdef uint64_t head                  # consumed from the in ring
    cdef uint64_t told_head             # what our shared head says
    cdef uint64_t fetched               # as far as lines of the in ring were asked for ahead of their use; behind head: none
    cdef bint decoding                  # the frame taken last names blocks, and its leases are not taken yet: head stays in front of it
    cdef uint64_t their_head            # what their shared head said when it was last looked at
    cdef int32_t gone
    cdef bint may_spin
    cdef public int64_t slice_ns        # longest sleep between two looks at signals and leases
    cdef object backlog                 # frames drained while waiting for space
    cdef Py_ssize_t backlog_bytes       # with headers: 0 when there is none
    cdef object holds                   # (position, lease): leases of blocks that frames still in the out ring name
    cdef Py_ssize_t held_leases         # how many those are
    cdef list unsent_holds              # of the frame that is being encoded; None when there are none
    cdef readonly Placement placement   # of the connection
    cdef object eventfd                 # that the peer writes for this side's event loops; None: it does not
    cdef object peer_eventfd            # that this side writes for the peer's, and its descriptor or -1
    cdef int peer_fd
    cdef int unpublished                # frames written since the last store of tail
    # Frames that are published together are made here, and go to the ring together: the last `staged` bytes before the tail.
    cdef unsigned char stage[STAGE_BYTES]
    cdef uint64_t staged

    cdef int hold(self, object lease) except -1         # until the peer has consumed the frame sent next
    cdef int forget_unsent(self) except -1              # that frame will not be sent
    cdef int drop_holds(self) except -1
    cdef int _settle_holds(self) except -1
    cdef uint64_t _inbound(self) except? 0xFFFFFFFFFFFFFFFF
    cdef void _read_ahead(self, uint64_t published) noexcept
    cdef int _take(self, FrameHeader* header, Decoder dec) except -1
    cdef int _wait_data(self, int64_t until_ns) except -1
    cdef int _wait_space(self, uint64_t need, int64_t until_ns) except -1
    cdef uint64_t _consumed(self) except? 0xFFFFFFFFFFFFFFFF
    cdef int _drain(self) except -1
    cdef void _tell_head(self) noexcept
    cdef void before_sleep(self) noexcept               # what was consumed is told
    cdef void _publish(self) noexcept
    cdef unsigned char* _place(self, uint64_t need, uint64_t index, uint64_t pad) noexcept
    cdef uint64_t _fill_end(self, uint64_t pad) noexcept
    cdef void _unstage(self) noexcept
    cdef void _fetch_to_write(self, uint64_t size) noexcept
