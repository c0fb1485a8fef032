"""The calls of one map that are under way: places in a ring, without an object for each.

Answers come in the order of the requests but for several workers' and for calls that were put aside: the place where the next one belongs is
looked at first. A call that is given up leaves its place and goes to the table that all other calls are in.
"""

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free

from fastplug._wire cimport FRAME_CANCEL, FrameHeader, MethodCodec
from fastplug.protocols._reading cimport Reading
from fastplug.protocols._turn cimport ANSWERED, FAILED, GIVEN_UP, PENDING, Pending, Turn


cdef class Flight(Pending):
    """The items of a map between their requests and the taking of their results.

    Args:
        codec: of the method.
        size: how many items there may be.
        ordered: results are taken in the order of the items, else those that are there first.
    """

    def __init__(self, MethodCodec codec not None, size: int, ordered: bool):
        cdef Py_ssize_t places = 1
        while places < size:
            places *= 2
        self.places = <Place*>calloc(places, sizeof(Place))
        if self.places == NULL:
            raise MemoryError
        self.mask = places - 1
        self.callers = []
        self.codec = codec
        self.ordered = ordered
        self.greedy = True

    def __dealloc__(self):
        cdef Py_ssize_t i
        if self.places != NULL:
            for i in range(self.mask + 1):
                Py_XDECREF(self.places[i].value)
            free(self.places)

    cdef Py_ssize_t count(self) noexcept:
        return self.tail - self.head

    cdef Place* first(self) noexcept:
        return &self.places[self.head & self.mask]

    cdef bint ready(self) noexcept:
        if self.head == self.tail or self.first().state != PENDING:
            return True
        return self.closed or not self.ordered and self.settled > 0

    cdef int enlist(self, Turn caller) except -1:
        """Requests are about to be sent there."""
        if caller not in self.callers:
            self.callers.append(caller)
            caller.flights.append(self)
        caller.link.duplex = True
        return 0

    cdef int add(self, Turn caller, uint64_t number, int64_t until) except -1:
        """A request has been sent."""
        cdef Place* place = &self.places[self.tail & self.mask]
        place.number, place.until, place.caller, place.state = number, until, <PyObject*>caller, PENDING
        self.tail += 1
        caller.flying += 1
        return 0

    cdef int add_done(self, int state, object value) except -1:
        """An item that needs no request, or has a Call."""
        cdef Place* place = &self.places[self.tail & self.mask]
        Py_INCREF(value)
        place.caller, place.value, place.state = NULL, <PyObject*>value, state
        self.tail += 1
        self.settled += state != CALLED
        return 0

    cdef object pop(self):
        """What the next item's place holds, which is free from now on."""
        cdef Place* place = self.first()
        value = <object>place.value
        Py_DECREF(value)
        place.value = NULL
        place.number = 0
        self.head += 1
        self.settled -= place.state != CALLED
        return value

    cdef object take(self, int* state):
        """The next item's outcome, which is there: its result, its error, or its Call."""
        cdef Place* place = self.first()
        cdef Place* other
        cdef Place moved
        cdef Py_ssize_t i
        if not self.ordered and place.state != ANSWERED and place.state != FAILED and self.settled:
            for i in range(self.head + 1, self.tail):
                other = &self.places[i & self.mask]
                if other.state == ANSWERED or other.state == FAILED:
                    moved = place[0]
                    place[0] = other[0]
                    other[0] = moved
                    break
        state[0] = place.state
        return self.pop()

    # -- answers

    cdef Place* place_of(self, Turn caller, uint64_t number) noexcept:
        cdef Py_ssize_t i
        cdef Place* place
        if self.head <= self.expected < self.tail:
            place = &self.places[self.expected & self.mask]
            if place.number == number and place.state == PENDING and place.caller == <PyObject*>caller:
                self.expected += 1
                return place
        for i in range(self.head, self.tail):
            place = &self.places[i & self.mask]
            if place.number == number and place.state == PENDING and place.caller == <PyObject*>caller:
                self.expected = i + 1
                return place
        return NULL

    cdef bint claim(self, Turn caller, FrameHeader* header) except -1:
        cdef Place* place = self.place_of(caller, header.call)
        cdef int state = ANSWERED
        if place == NULL:
            return False
        try:
            value = (<Reading>caller).result_of(header, self.codec, place.until)
        except Exception as error:
            state, value = FAILED, (<Reading>caller).of_call(header, self.codec, error)
        self.arrived(caller, place, header.call, state, value)
        return True

    cdef int claim_packed(self, Turn caller, uint64_t number, int count) except -1:
        cdef Place* place
        cdef int taken = 0
        while taken < count and self.codec.packs:
            place = self.place_of(caller, number)
            if place == NULL:
                break
            self.arrived(caller, place, number, ANSWERED, self.codec.result.decode(caller.dec))
            number += 1
            taken += 1
        return taken

    cdef int moved(self, Turn caller, uint64_t number, int state, object value) except -1:
        cdef Place* place = self.place_of(caller, number)
        if place != NULL:
            return self.settle(place, state, value)
        caller.pending.pop(number, None)            # given up while its answer was decoded
        return caller.update_duplex()

    cdef int lost(self, Turn caller, object error) except -1:
        cdef Py_ssize_t i
        cdef Place* place
        for i in range(self.head, self.tail):
            place = &self.places[i & self.mask]
            if place.state == PENDING and place.caller == <PyObject*>caller:
                self.settle(place, FAILED, error)
        return 0

    # -- nobody waits any more

    cdef int abandon(self, Place* place) except -1:
        """Its late answer will be dropped; the plugin is told."""
        cdef Turn caller = <Turn>place.caller
        place.state = GIVEN_UP
        caller.pending[place.number] = None
        caller.flying -= 1
        caller.send_later(FRAME_CANCEL, place.number)
        return 0

    cdef int expire(self, object error) except -1:
        """The next item's time is over."""
        cdef Place* place = self.first()
        self.abandon(place)
        Py_INCREF(error)
        place.value, place.state = <PyObject*>error, FAILED
        self.settled += 1
        return 0

    cdef object drop(self, uint64_t* number):
        """The next item is left: its Call; or the caller on whose lane ``number`` is under way; or None, when it has an outcome."""
        cdef Place* place = self.first()
        cdef int state = 0
        if place.state != PENDING:
            value = self.take(&state)
            return value if state == CALLED else None
        number[0] = place.number
        self.head += 1
        self.abandon(place)
        return <object>place.caller

    cdef int leave(self) except -1:
        """There will be no further requests, and none is under way."""
        for caller in self.callers:
            (<Turn>caller).flights.remove(self)
        self.callers.clear()
        return 0
