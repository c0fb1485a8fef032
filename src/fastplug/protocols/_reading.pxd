# The part of a caller that reads.

from libc.stdint cimport int64_t, uint64_t

from fastplug._wire cimport FrameHeader, MethodCodec
from fastplug.protocols._callbacks cimport Registry
from fastplug.protocols._turn cimport Pending, Turn


cdef class Reading(Turn):
    cdef object asked                   # callbacks that came and have not been run: (number, request)
    cdef readonly Registry registry
    cdef object lost                    # callable(method or None) -> the error for a connection that ended
    cdef public Py_ssize_t in_flight_max
    cdef readonly uint64_t late         # replies dropped because nobody waited for them any more
    cdef int stop_feed(self, Pending call) except -1
    cdef int take_item(self, FrameHeader* header, Pending call) except -1
    cdef object result_of(self, FrameHeader* header, MethodCodec codec, int64_t until)
    cdef object spoilt(self, FrameHeader* header, MethodCodec codec, object error)
    cdef object of_call(self, FrameHeader* header, MethodCodec codec, object error)
    cdef int dispatch(self, FrameHeader* header) except -1
    cdef int settle(self, FrameHeader* header, Pending call) except -1
    cdef int run_asked(self) except -1
    cdef int answer_asked(self, uint64_t number, tuple request) except -1
    cdef Py_ssize_t next_asked(self, unsigned long me) except -2        # where in ``asked``; -1: none is this thread's
    cdef int let_pass(self) except -1
    cdef int pump(self, Pending call, int64_t until) except -1
    cdef bint drawing                   # an event loop makes items for a call here: a task that queues for the link may hold that loop up
    cdef bint has_item(self, Pending call) except -1
    cdef int feed_one(self, Pending call) except -1
    cdef int send_fed(self, Pending call, object value) except -1
    cdef int end_feed(self, Pending call, object error) except -1
    cdef int make_room(self, int64_t until) except -1
    cdef int grant(self, Pending call) except -1
    cdef int fail_all(self, object error) except -1
    cdef object failure(self, Exception error, str method)
    cdef int _drop(self, FrameHeader* header) except -1
    cdef int unpack(self, FrameHeader* header) except -1
    cdef int came_late(self, uint64_t number) except -1
