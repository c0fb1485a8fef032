# The reader's side of lent memory: see _arena.pxd for the parties.

from libc.stdint cimport uint32_t, uint64_t

from fastplug.shm._segment cimport Segment


cdef class Borrowed:
    cdef readonly str peer
    cdef list segments                  # id -> Segment, or None
    cdef list tables                    # own Segments
    cdef uint64_t slots
    cdef Segment first_table            # nearly every lease is in it
    cdef uint64_t first_slots
    cdef object more_slots              # callable() or None: announces a further table to the peer
    cdef object missing                 # callable(segment_id) -> None: reads the control socket for a segment that a frame names
    cdef object fetch                   # callable(segment_id, start, end) -> private Segment, or None: what a lost segment has there
    cdef public object fetch_file       # callable(device, inode, start, end, why) -> private Segment, or None: a named file that cannot be opened
    cdef dict lost                      # id -> bytes, of segments that were announced and could not be mapped
    cdef uint64_t taken                 # leases ever taken
    cdef public object lent_on          # the Arena whose peers may see this one's memory too, or None
    cdef public uint64_t private_copies     # of arrays whose private view was asked for and could not be had
    cdef int find(self, Lease lease, uint64_t segment_id) except -1
    cdef Segment table_of(self, uint64_t* slot)         # slot becomes the index in that table
    cdef int give_back(self, uint64_t slot) except -1
    cdef Lease lease(self, uint64_t segment_id, uint64_t slot)


cdef class Lease:
    # One naming of a peer's block: the base of received arrays. Its dealloc gives the block back.
    cdef Borrowed owner
    cdef Segment segment                # keeps the mapping, also after the peer died; None before what was lost is fetched
    cdef unsigned char* base            # where the segment's first byte is, or would be
    cdef uint64_t bytes                 # of the segment
    cdef Segment table
    cdef uint64_t* returned
    cdef readonly uint32_t segment_id
    cdef readonly uint32_t slot
    cdef uint32_t mark                  # of the process that made it
    cdef int reach(self, uint64_t start, uint64_t end) except -1    # [start, end) can be read from now on: 1 when it had to be copied
