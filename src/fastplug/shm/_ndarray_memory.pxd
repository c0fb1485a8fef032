# Whose memory an array lies in; numpy's own allocations from an arena (NEP 49); private views of what a peer lent.

from cpython.object cimport PyObject

from fastplug.shm._loans cimport Block


# Under a view: Lease (a peer's block), OwnLease (an own one, from empty()), Block (an own one that numpy allocated), or None.
cdef object owner_of(object array)

# Ids of the arrays in a result, to which the caller has the only reference, that end with it: nobody can change them any more.
# None: numpy has allocated nothing in an arena.
cdef set exclusive_in(PyObject* result)
