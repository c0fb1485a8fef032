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
    cdef Segment segment(self, uint64_t segment_id)
    cdef Segment table_of(self, uint64_t* slot)         # slot becomes the index in that table
    cdef int give_back(self, uint64_t slot) except -1
    cdef Lease lease(self, uint64_t segment_id, uint64_t slot)


cdef class Lease:
    # One naming of a peer's block: the base of received arrays. Its dealloc gives the block back.
    cdef Borrowed owner
    cdef Segment segment                # keeps the mapping, also after the peer died
    cdef Segment table
    cdef uint64_t* returned
    cdef readonly uint32_t segment_id
    cdef readonly uint32_t slot
    cdef uint32_t mark                  # of the process that made it
