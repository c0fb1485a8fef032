# The plugin's half of calls over a Link.

cimport cython
from libc.stdint cimport int64_t, uint64_t

from fastplug._wire cimport Decoder, FrameHeader, MethodCodec
from fastplug.protocols._activity cimport Activation, PluginReferences
from fastplug.protocols._running cimport Running
from fastplug.protocols._served cimport Served


cdef enum Phase:        # of a plain request
    DECODING, RUNNING, ENCODING


@cython.final
cdef class Server(Running):
    # One connection's serving side: runs handlers one after another on the thread that calls run().
    cdef PluginReferences references
    cdef object ready                   # Activations whose handler has not been run: a deque
    cdef bint kept                      # there may be some
    cdef readonly object tasks          # the event loop of the connection
    cdef readonly uint64_t calls
    cdef bint runnable(self) except -1  # step() would not wait
    cdef int take(self, FrameHeader* header) except -1
    cdef Py_ssize_t next_kept(self) except -2
    cdef int go_on(self) except -1
    cdef Served served(self, FrameHeader* header)
    cdef Activation request(self, FrameHeader* header, bint last)
    cdef int keep(self, Activation call) except -1
    cdef int unpack(self, FrameHeader* header) except -1
    cdef int packed_requests(self, FrameHeader* header) except -1
    cdef int packed_count(self, FrameHeader* header, Served served) except -1
    cdef int run_together(self, FrameHeader* one, Served served, Decoder dec, uint64_t end) except -1
    cdef int plain(self, FrameHeader* header, Served served, Decoder dec, bint last) except -1
    cdef int refuse(self, FrameHeader* header, MethodCodec codec, Phase phase, tuple outer, object error) except -1
    cdef object unbuilt(self, FrameHeader* header, object error)
    cdef object encoded(self, Activation call, object result)
    cdef int run_one(self, Activation call) except -1
    cdef int launch(self, Activation call) except -1
