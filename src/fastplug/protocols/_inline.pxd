# Arrays inside the payload.

from fastplug._wire cimport ArrayPort


cdef class DeferredPort(ArrayPort):
    # Inline arrays, with numpy imported when the first one appears.
    cdef ArrayPort arrays
    cdef bint strict
    cdef ArrayPort _arrays(self)
