# The calls of one map that are under way, and the results that nobody has taken yet.

cimport cython
from libc.stdint cimport int64_t, uint64_t

from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF

from fastplug._wire cimport FrameHeader, MethodCodec
from fastplug.protocols._turn cimport PENDING, Pending, Turn


cdef struct Place:
    # One item. PENDING -> ANSWERED | FAILED; or CALLED from the start.
    uint64_t number
    int64_t until
    PyObject* caller                    # borrowed: whose lane it is on; the pool keeps it
    PyObject* value                     # the result, the error, or the Call
    int state


cdef enum:
    CALLED = 4                          # its outcome is the business of a Call


@cython.final
cdef class Flight(Pending):
    # As a Pending it stands for the result that comes next.
    cdef Place* places                  # a ring
    cdef Py_ssize_t mask
    cdef Py_ssize_t head                # of the item that is taken next
    cdef Py_ssize_t tail
    cdef Py_ssize_t expected            # where the next answer belongs if answers come in order
    cdef Py_ssize_t settled             # ANSWERED or FAILED, not taken
    cdef bint ordered
    cdef bint closed                    # nobody wants further results: whoever waits for one looks up
    cdef list callers
    cdef Py_ssize_t count(self) noexcept
    cdef Place* first(self) noexcept
    cdef int enlist(self, Turn caller) except -1
    cdef int add(self, Turn caller, uint64_t number, int64_t until) except -1
    cdef int add_done(self, int state, object value) except -1
    cdef object take(self, int* state)
    cdef object pop(self)

    cdef inline int arrived(self, Turn caller, Place* place, uint64_t number, int state, object value) except -1:
        if place.number != number or place.caller != <PyObject*>caller or place.state != PENDING:
            return self.moved(caller, number, state, value)     # while it was decoded others took results, and places were exchanged
        return self.settle(place, state, value)

    cdef inline int settle(self, Place* place, int state, object value) except -1:
        cdef Turn caller = <Turn>place.caller
        Py_INCREF(value)
        place.value, place.state = <PyObject*>value, state
        self.settled += 1
        caller.flying -= 1
        if not caller.flying:
            caller.update_duplex()
        if self.waiter is not None:
            self.wake()
        return 0

    cdef int moved(self, Turn caller, uint64_t number, int state, object value) except -1
    cdef int expire(self, object error) except -1
    cdef object drop(self, uint64_t* number)
    cdef int leave(self) except -1
    cdef int abandon(self, Place* place) except -1
    cdef Place* place_of(self, Turn caller, uint64_t number) noexcept
