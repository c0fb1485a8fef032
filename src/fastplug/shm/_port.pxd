# How one connection's payloads and arrays use an arena.

from libc.stdint cimport uint32_t

from fastplug._wire cimport ArrayPort, Codec, Decoder, Encoder
from fastplug.shm._arena cimport Arena, Block, Ledger
from fastplug.shm._borrowed cimport Borrowed
from fastplug.shm._lane cimport Lane


# The port of the connection whose handler runs on this thread, or in this task: fastplug.empty() makes its arrays there.
cdef object SERVING


cdef class ArenaPort(ArrayPort):
    # How payloads that are too long, and arrays, use an arena. Arrays themselves are in _ndarray.pyx, imported when the first one appears.
    cdef readonly Arena arena
    cdef readonly Ledger ledger
    cdef readonly Borrowed borrowed
    cdef readonly Lane lane
    cdef readonly bint strict           # CopyRequired instead of a copy
    cdef public object naming           # files.Naming: arrays over mapped files go by name, as the peer can open them; None: they do not
    cdef public bint opens_files        # the peer may name files
    cdef ArrayPort arrays               # _ndarray.ArenaArrays
    cdef ArrayPort _arrays(self)
    cdef set exclusive                  # ids of the arrays in the result that is being encoded that end with it; None: of none it is known
    cdef bint serving                   # handlers run on this port's thread, and numpy allocates their arrays in the arena
    cdef object numpy_before            # what numpy allocated with before
    cdef list lending                   # Loans named by the payload that is being encoded
    cdef list committed                 # Loans of the last commit
    cdef int lend(self, Block block, uint32_t* slot) except -1
    cdef int lend_taken(self, Block block, uint32_t* slot) except -1
    cdef int retract(self) except -1    # the frame of the last commit could not be sent: nobody saw it
    cdef int spill(self, Encoder enc) except -1
    cdef int unspill(self, Decoder dec) except -1
