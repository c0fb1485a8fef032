# The caller's half of calls over a Link. Which link (shared memory, socket, queue) is not known here.

cimport cython
from libc.stdint cimport int64_t, uint16_t, uint64_t

from fastplug._wire cimport MethodCodec, References
from fastplug.protocols._flight cimport Flight
from fastplug.protocols._told cimport Told
from fastplug.protocols._turn cimport Pending


cdef class Bound:
    # One method of a dispensed interface, on one connection.
    cdef readonly MethodCodec codec
    cdef uint16_t interface
    cdef uint16_t index


@cython.final
cdef class Caller(Told):
    # One connection's calling side.
    cdef public object gave_up          # callable(lane, call, stack wanted) -> (stack, why there is none), for a call nobody waits for any more; or None
    cdef public int lane                # which of the connection's lanes this is
    cdef uint64_t next_call
    cdef HostReferences references
    cdef readonly uint64_t calls
    cdef object call(self, Bound method, tuple args, dict kwargs)
    cdef int open(self, Pending call, Bound method, tuple args, dict kwargs, int flags) except -1
    cdef object call_with(self, Pending call, Bound method, tuple args, dict kwargs, int64_t until, uint64_t* under_way)
    cdef int submit(self, Pending call, Bound method, tuple args, dict kwargs, bint lazy) except -1
    cdef int publish(self, str what) except -1
    cdef int submit_all(self, Flight flight, Bound method, list batch, bint bare) except -1
    cdef Py_ssize_t send_batch(self, Flight flight, Bound method, list batch, Py_ssize_t at, bint bare, int64_t until) except -1
    cdef Py_ssize_t send_packed(self, Flight flight, Bound method, list batch, Py_ssize_t at, bint bare, int64_t until) except -1
    cdef int transmit_packed(self, Flight flight, Bound method, Py_ssize_t count, int64_t until) except -1
    cdef uint64_t begin(self, Bound method, tuple args, dict kwargs, int64_t until, int flags) except 0
    cdef uint64_t request(self, Bound method, object args, dict kwargs, bint bare, int64_t until, int flags, object metadata) except 0
    cdef int64_t remaining_ns(self, Bound method, int64_t until) except -1      # DeadlineExceeded when there is none
    cdef object unsent(self, Bound method, tuple args, dict kwargs, object error)
    # The request that is being made: its number, once it is whole; what the link had sent before; which argument is encoded.
    cdef uint64_t made
    cdef uint64_t sent_before
    cdef Py_ssize_t argument
    cdef int wait(self, Pending call, int64_t until, bint on_loop=*) except -1
    cdef int share(self, Pending call, int64_t until) except -1
    cdef int follow(self, Pending call, int64_t until, int* locked) except -1
    cdef object plain(self, Bound method, tuple args, dict kwargs, int64_t until, uint64_t* under_way)
    cdef Pending made_pending(self, Bound method, uint64_t number, int64_t until)
    cdef object shared(self, Pending call, int64_t until, uint64_t* under_way)
    cdef object tell_plugin(self, uint64_t number, object error)


cdef class HostReferences(References):
    # What the arguments of one call bring: callbacks get numbers, a stream becomes its feed.
    cdef Caller caller
    cdef Pending call


cdef int64_t caller_until() except? -1
