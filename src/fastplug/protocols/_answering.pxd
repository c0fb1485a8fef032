# How a plugin answers.

from libc.stdint cimport int64_t, uint64_t

from fastplug._wire cimport Decoder, Encoder, FrameHeader, MethodCodec
from fastplug.protocols._activity cimport Activity
from fastplug.protocols._served cimport Served

cdef enum:
    # After so many quick runs in a row (QUICK_NS) an answer may wait for the next ones, at most BATCH_ANSWERS, to be published.
    QUICK_RUNS = 64
    BATCH_ANSWERS = 16
    # From then on the tick is looked at, after so many: when it has changed, which a quick one, too, sees now and then, DOUBTED_RUNS show what it was.
    TICK_FRAMES = 4
    DOUBTED_RUNS = 8


cdef class Answering(Activity):
    cdef tuple interfaces               # index -> tuple of Served
    cdef bint more                      # a frame was there already when the last request was decoded
    cdef int64_t run_began              # when a handler that is not known to be quick did; 0: not of interest
    # Results of calls that came in one frame, which wait to be sent in one.
    cdef Encoder results
    cdef Decoder spare                  # for the next such requests: what comes while a handler waits must not overwrite these
    cdef uint64_t first                 # the call of the first one
    cdef int packed                     # how many there are
    cdef Py_ssize_t packed_end          # in bytes
    cdef bint open_batch(self, Served served, bint more) except -1
    cdef int judge(self, Served served) except -1
    cdef int doubt(self) except -1
    cdef int answer(self, FrameHeader* header, int kind) except -1
    cdef bint adds(self, FrameHeader* header, MethodCodec codec, object result) except -1
    cdef int send_results(self) except -1
