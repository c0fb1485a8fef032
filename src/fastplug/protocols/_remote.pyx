"""Methods as the user calls them, and what they give: ``Call`` for one under way, ``Mapped`` for many."""

import contextvars
import threading
import types

from libc.stdint cimport int64_t, uint64_t

from fastplug._wire cimport FRAME_CANCEL, MethodCodec
from fastplug.protocols._call cimport Bound, Caller, caller_until
from fastplug.protocols._flight cimport CALLED, Flight
from fastplug.protocols._pool cimport Pool
from fastplug.protocols._result_stream cimport stream_of
from fastplug.protocols._turn cimport ANSWERED, FAILED, GIVEN_UP, PENDING, Pending

from fastplug.errors import ArgumentError, Cancelled, DeadlineExceeded
from fastplug.protocols._drawn import drawn
from fastplug.protocols._pool import LANES_MAX
from fastplug.protocols._reading import IN_FLIGHT_MAX as _in_flight_max
from fastplug.protocols._result_stream import POLL_NS
from fastplug.protocols.handle import RemoteMethod, iterated_already, returns_a_stream

__all__ = ["Call"]        # what users name; the rest is for the protocols

cdef extern from "_atomics.h" nogil:
    int64_t fp_now_ns()

cdef int64_t _POLL_NS = POLL_NS
# Whoever waits for a call that has a thread of its own looks up this often, for signals.
FED_SLICE_S = 0.1
# Requests of a map go out together when so many may go, or half of what may be under way: the plugin runs the other half meanwhile.
cdef Py_ssize_t BATCH_CALLS = 32
# Of a map whose calls take a stream: each has a thread, which has a lane to itself.
cdef Py_ssize_t FED_CALLS = LANES_MAX


cdef class Remote(Bound):
    """One method of a dispensed interface, callable from any thread.

    Raises what the declared handler raises (as RemoteError), ArgumentError, ResultError, DeadlineExceeded, PluginDied, Closed,
    ArenaExhausted, CopyRequired, RemoteProtocolError.
    """

    def __init__(self, caller, MethodCodec codec not None, interface: int, index: int, doc, signature):
        self.pool = caller if isinstance(caller, Pool) else Pool(caller)
        self.codec = codec
        self.interface = interface
        self.index = index
        self.__name__ = codec.name
        self.__qualname__ = codec.qualified
        self.__doc__ = doc
        self.__signature__ = signature

    def __call__(self, *args, **kwargs):
        if self.codec.item is not None:
            return stream_of(self.lane().call(self, args, kwargs))
        return self.lane().call(self, args, kwargs)

    cdef Caller lane(self):
        if self.pool.limit == 1:
            return <Caller>self.pool.callers[0]
        return self.pool.pick(caller_until(), self.codec.qualified)

    def submit(self, args, kwargs):
        """A Call of this method. Raises what a call raises before it sends anything."""
        cdef Call call = Call.__new__(Call)
        if self.codec.item is not None:
            raise returns_a_stream(self.codec.qualified)
        if self.codec.fed is not None:
            return fed_call(self, args, kwargs)
        self.lane().submit(call, self, args, kwargs, False)
        return call

    def mapped(self, iterables, in_flight: int, ordered: bool, goes_on: bool):
        """What ``fastplug.map`` gives."""
        return Mapped(self, iterables, in_flight, ordered, goes_on)

    def __repr__(self):
        return f"<fastplug method {self.codec.qualified}>"

    def __reduce__(self):
        raise TypeError("a live method cannot be pickled; pickle a fastplug.Spec and open it where it is needed")


RemoteMethod.register(Remote)


cdef class Call(Pending):
    """A call under way: what ``fastplug.submit`` gives. Usable from any thread, and awaitable in any asyncio task."""

    __class_getitem__ = classmethod(types.GenericAlias)

    def __repr__(self):
        told = {PENDING: "under way", ANSWERED: "answered", FAILED: "failed", GIVEN_UP: "given up"}[self.state]
        return f"<fastplug call of {self.codec.qualified}, {told}>"

    def done(self):
        """Whether there is a result or an error, as far as anybody has looked: ``result()`` looks."""
        if self.state == PENDING:
            self.look(1)
        return self.state != PENDING

    def cancelled(self):
        """Whether ``cancel()`` came before the answer."""
        return self.state == GIVEN_UP and isinstance(self.value, Cancelled)

    def result(self, timeout_s=None):
        """What the method returned; waits for it.

        Args:
            timeout_s: seconds; None waits as long as the deadline of the call allows, and without one as long as the plugin lives.

        Raises:
            What the method raises; DeadlineExceeded: not answered in time (after ``timeout_s`` the call goes on, and may be asked again);
            Cancelled; PluginDied, Closed.
        """
        cdef int64_t until = self.until
        if self.state == PENDING:
            if timeout_s is not None:
                until = fp_now_ns() + <int64_t>(timeout_s * 1e9)
                if self.until:
                    until = min(until, self.until)
            if not self.look(until):
                if self.until and fp_now_ns() >= self.until:
                    self.expire()
                else:
                    raise DeadlineExceeded(f"{self.codec.qualified}() was not answered within {timeout_s:g} s; the call goes on")
        return self.outcome()

    def exception(self, timeout_s=None):
        """The error that ``result()`` would raise, or None. Raises DeadlineExceeded when there is neither in time."""
        try:
            self.result(timeout_s)
        except Exception as error:
            if self.state == PENDING:
                raise
            return error
        return None

    def cancel(self):
        """Gives the call up: True, unless it has been answered. The plugin is told; ``result()`` raises Cancelled."""
        if self.state != PENDING:
            return self.cancelled()
        self.end(Cancelled(f"{self.codec.qualified}() was cancelled by its caller"))
        return self.state == GIVEN_UP

    def add_done_callback(self, function):
        """``function(call)`` once the call is done: at once if it is, else on the thread ``fastplug reader``. What it raises is logged."""
        if self.done():
            function(self)
            return
        (<Caller>self.caller).watch(self, function)

    def __await__(self):
        if not self.look(fp_now_ns() + _POLL_NS, True):
            from fastplug.protocols._loops import awaited       # here and not above: it takes asyncio, whose import takes 40 ms

            yield from awaited(self, None if self.fed else self.caller)
            if self.state == PENDING:
                self.expire()
        return self.outcome()

    def tell(self, function):
        """``function()`` at once when there is an outcome, on whichever thread finds it, which has the link then. False: there is one already."""
        if self.state != PENDING:
            return False
        if self.tellers is None:
            self.tellers = []
        self.tellers.append(function)
        return True

    def tell_no_more(self, function):
        """Takes that back, if it has not been called."""
        if self.tellers is not None and function in self.tellers:
            self.tellers.remove(function)

    @property
    def until_s(self):
        """Seconds until its deadline; None without one."""
        return (self.until - fp_now_ns()) / 1e9 if self.until else None

    def look(self, int64_t until, bint on_loop=False):
        """Waits until then (CLOCK_MONOTONIC in nanoseconds; 0: for ever): whether there is an outcome. For what is built on calls; ``on_loop``: on a
        loop's thread, which must not wait for why a connection has ended."""
        if self.fed:
            while self.state == PENDING:        # its own thread reads
                left_s = FED_SLICE_S if not until else min(FED_SLICE_S, (until - fp_now_ns()) / 1e9)
                if left_s <= 0:
                    return False
                if self.outstanding.acquire(timeout=left_s):
                    self.outstanding.release()
            return True
        if self.state == PENDING:
            try:
                return (<Caller>self.caller).wait(self, until, on_loop) == 1
            except Exception as error:
                if self.state == PENDING:
                    self.finish(FAILED, error)
                    return True
                raise
        return True

    def end(self, error):
        """Gives the call up with this error, unless it is done."""
        if self.state == PENDING:
            self.caller.abandon(self)
            self.finish(GIVEN_UP, error)        # one that has not been sent, too
            if self.number:                     # the frame comes last: an asynchronous handler that it ends could not be asked where it is
                (<Caller>self.caller).tell_plugin(self.number, error)
                self.caller.send_later(FRAME_CANCEL, self.number)
            if self.fed:                        # its thread has the lane, and may be waiting for an answer
                self.caller.rouse(self)

    def expire(self):
        """Its deadline is over."""
        self.end(DeadlineExceeded(f"{self.codec.qualified}() had no answer before the deadline; a late one will be dropped"))


cdef Call fed_call(Remote method, tuple args, dict kwargs):
    """A call that takes a stream: its iterable has to be run, so it gets a thread, and its Call is completed from there."""
    cdef Call call = Call.__new__(Call)
    cdef Caller caller = method.lane()
    caller.check_usable()
    call.caller, call.codec, call.until = caller, method.codec, caller_until()
    args, kwargs = tuple(map(drawn, args)), {name: drawn(value) for name, value in kwargs.items()}
    call.fed = True
    call.outstanding = threading.Lock()
    call.outstanding.acquire()
    call.tellers = [call.outstanding.release]

    def run() -> None:
        cdef uint64_t under_way = 0
        try:
            caller.call_with(call, method, args, kwargs, call.until, &under_way)
        except BaseException as error:
            call.finish(FAILED, error)
            if under_way:
                caller.tell_plugin(under_way, error)
        caller.run_finished()

    variables = contextvars.copy_context()      # the caller's metadata
    threading.Thread(target=variables.run, args=(run,), name=f"fastplug call {method.codec.qualified}", daemon=True).start()
    return call


cdef class Mapped:
    """An iterator of results, with at most ``in_flight`` calls under way. For one thread at a time: a second one's next() raises LocalProtocolError."""

    def __init__(self, Remote method not None, tuple iterables, in_flight: int, ordered: bool, goes_on: bool):
        if method.codec.item is not None:
            raise returns_a_stream(method.codec.qualified)
        self.method = method
        self.bare = len(iterables) == 1 and method.codec.takes_one() and not method.codec.has_references
        self.arguments = iter(iterables[0]) if self.bare else zip(*iterables)
        self.in_flight = min(in_flight, _in_flight_max if method.codec.fed is None else FED_CALLS)
        self.low = self.in_flight - min(BATCH_CALLS, (self.in_flight + 1) // 2)
        self.flight = Flight(method.codec, self.in_flight + 1, ordered)         # one for what ends it
        self.goes_on = goes_on

    def __iter__(self):
        return self

    def __next__(self):
        cdef Flight flight = self.flight
        if self.iterated:
            raise iterated_already(f"map of {self.method.codec.qualified}()")
        if flight.count() > self.low and flight.first().state == ANSWERED and not flight.closed:
            return flight.pop()         # nothing to do besides
        self.iterated = True
        try:
            if self.flight.count() <= self.low and not self.exhausted:
                self.fill()
            if not self.flight.ready():
                self.wait()
            if self.flight.closed or not self.flight.count():
                self.flight.closed = True
                raise StopIteration
            return self.outcome()
        finally:
            self.iterated = False
            if self.flight.closed:
                self.drop()

    cdef list draw(self):
        """The arguments of the calls that may be sent."""
        cdef Py_ssize_t room = self.in_flight - self.flight.count()
        cdef list batch = []
        try:
            while room > 0 and not self.flight.closed:
                batch.append(next(self.arguments))
                room -= 1
        except StopIteration:
            self.exhausted = True
        except Exception as error:
            self.end = error
        return batch

    cdef int fill(self) except -1:
        """Sends what may be under way. What ends the iterable, or the sending, is raised at its place: behind the results of what was sent."""
        cdef Py_ssize_t before = self.flight.tail
        cdef list batch
        try:
            batch = self.draw()
            if batch and not self.flight.closed:
                self.send(batch)
        except DeadlineExceeded:                # of each item by itself, as it would be of calls one by one
            while self.flight.tail - before < len(batch):
                over = DeadlineExceeded(f"{self.method.codec.qualified}(): the deadline was over before the call; nothing was sent")
                self.flight.add_done(FAILED, over)
        except Exception as error:
            self.end = error
        except BaseException:                   # Ctrl-C: what was drawn is lost
            self.flight.closed = True
            raise
        if self.end is not None:
            self.exhausted = True
            self.flight.add_done(FAILED, self.end)
            self.end = None
        return 0

    cdef int send(self, list batch) except -1:
        if self.method.codec.has_references:
            return self.submit_each(batch)
        return self.method.lane().submit_all(self.flight, self.method, batch, self.bare)

    cdef int submit_each(self, list batch) except -1:
        """Calls that pass streams or callbacks have more to them than an answer."""
        cdef Caller caller = None
        cdef Call call
        if self.method.codec.fed is not None:
            for args in batch:
                self.flight.add_done(CALLED, fed_call(self.method, <tuple>args, {}))
            return 0
        caller = self.method.lane()
        try:
            for args in batch:
                call = Call.__new__(Call)
                try:
                    caller.submit(call, self.method, <tuple>args, None, True)
                except ArgumentError as error:      # the others concern the connection, or the whole map
                    self.flight.add_done(FAILED, error)
                else:
                    self.flight.add_done(CALLED, call)
        finally:
            caller.publish(self.method.codec.qualified)
        return 0

    cdef int wait(self) except -1:
        """Until the next item has an outcome, or the map is closed."""
        cdef Caller caller = <Caller>self.flight.first().caller
        cdef uint64_t number = self.flight.first().number
        try:
            if not caller.wait(self.flight, self.flight.first().until):
                error = DeadlineExceeded(f"{self.method.codec.qualified}() had no answer before the deadline; a late one will be dropped")
                self.flight.expire(error)
                caller.tell_plugin(number, error)
        except Exception as error:
            if not self.flight.ready():
                self.flight.expire(error)
        except BaseException:
            self.flight.closed = True
            raise
        return 0

    cdef object outcome(self):
        cdef int state = 0
        value = self.flight.take(&state)
        if state == ANSWERED:
            return value
        try:
            if state == CALLED:
                self.current = <Call>value
                return self.current.result()
            raise value
        except BaseException as error:
            if state == CALLED:
                (<Call>value).cancel()              # Ctrl-C: this one has no place any more
            if self.flight.closed and isinstance(error, Cancelled):
                raise StopIteration from None
            if not self.goes_on or not isinstance(error, Exception):
                self.flight.closed = True
            raise
        finally:
            self.current = None

    def close(self) -> None:
        """Cancels what is under way; there are no further results, also for a thread that waits for one. Any thread; idempotent."""
        cdef Call current = self.current
        self.exhausted = True
        self.flight.closed = True
        if not self.iterated:
            self.drop()
            return
        if current is not None:
            current.cancel()
            (<Caller>current.caller).rouse(current)
        for caller in list(self.flight.callers):
            (<Caller>caller).rouse(self.flight)

    cdef int drop(self) except -1:
        cdef uint64_t number = 0
        self.exhausted = True
        while self.flight.count():
            left = self.flight.drop(&number)
            if isinstance(left, Call):
                left.cancel()
            elif left is not None:
                (<Caller>left).tell_plugin(number, None)
        return self.flight.leave()

    def __del__(self):
        if self.flight is not None:
            self.close()
