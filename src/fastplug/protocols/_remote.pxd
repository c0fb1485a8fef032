# Methods as the user sees them, and what they give: calls under way.

cimport cython

from fastplug.protocols._call cimport Bound, Caller
from fastplug.protocols._flight cimport Flight
from fastplug.protocols._pool cimport Pool
from fastplug.protocols._turn cimport Pending


cdef class Remote(Bound):
    # What `dsp.total` is.
    cdef Pool pool
    cdef Caller lane(self)              # the one for the next call, see Pool.pick
    cdef dict __dict__                  # __name__, __doc__, __signature__: for help()


cdef class Call(Pending):
    # A call under way, as the user has it: what `submit` gives.
    cdef bint fed                       # it takes a stream, and has a thread of its own
    cdef object outstanding             # a lock, held until that thread has an outcome


@cython.final
cdef class Mapped:
    # What `fastplug.map` gives.
    cdef Remote method
    cdef object arguments               # an iterator of tuples; of the values themselves, where there is only one:
    cdef bint bare
    cdef Flight flight
    cdef Py_ssize_t in_flight
    cdef Py_ssize_t low                 # so many under way, or fewer: more are sent
    cdef bint goes_on                   # behind a failure
    cdef bint exhausted
    cdef bint iterated                  # a thread is inside __next__, and ends what is under way when it leaves a closed map
    cdef Call current                   # the one that it waits for, if that is no place of the flight
    cdef object end                     # what the iterable or the sending raised
    cdef list draw(self)
    cdef int fill(self) except -1
    cdef int send(self, list batch) except -1
    cdef int submit_each(self, list batch) except -1
    cdef int wait(self) except -1
    cdef object outcome(self)
    cdef int drop(self) except -1
