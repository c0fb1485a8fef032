# One method that is served.

cimport cython

from fastplug._wire cimport MethodCodec


@cython.final
cdef class Served:
    # One method that is served.
    cdef MethodCodec codec
    cdef object function
    cdef object bare                    # what is under it when it is a bound method, and whose: a bound one costs each call 15 ns more
    cdef object owner
    cdef readonly bint asynchronous     # it runs on the event loop
    cdef bint plain                     # neither that, nor has it streams and callbacks
    cdef int quick                      # how often in a row it was, at most QUICK_RUNS
