"""The caller's half of calls over a Link: many under way, each answered by frames with its number.

Whoever waits reads the link and gives each frame to the call it belongs to. A call that was given up (deadline, Ctrl-C, cancel) stays in the
table until its late answer comes, which is dropped, and the blocks it names go back. docs/wire.md, docs/decisions/2026-11-26-many-calls.md.
"""

import random

from cpython.contextvars cimport get_value
from libc.stdint cimport int64_t, uint16_t, uint64_t
from libc.string cimport memcpy, memset

from fastplug._wire cimport (
    FLAG_METADATA, FLAG_WAITS, FRAME_CANCEL, FRAME_ERROR, FRAME_REPLY, FRAME_REQUEST, FRAME_REQUESTS, PACKED_MAX, ArrayPort, Codec, FrameHeader, Link,
    References, put_metadata,
)
from fastplug.protocols._callbacks cimport Registry
from fastplug.protocols._flight cimport Flight
from fastplug.protocols._streams cimport Incoming, Outgoing
from fastplug.protocols._told cimport Told
from fastplug.protocols._turn cimport FAILED, GIVEN_UP, NESTED, NO_TURN, PENDING, Pending
from fastplug.protocols._waiting cimport PY_LOCK_ACQUIRED, PyLockStatus, PyThread_acquire_lock_timed, PyThread_get_thread_ident, PyThread_release_lock

from fastplug._wire import Unfit
from fastplug.contexts import METADATA as _metadata
from fastplug.deadlines import UNTIL_NS as _until_ns
from fastplug.errors import ArgumentError, Cancelled, DeadlineExceeded, PluginError, RemoteProtocolError
from fastplug.protocols._drawn import drawn

cdef extern from "_atomics.h" nogil:
    int64_t fp_now_ns()

cdef object UNTIL_NS = _until_ns
cdef object METADATA = _metadata

# Callers have been woken by the end of their link; this long for a machine that is busy with something else.
cdef long long RELEASE_US = 1_000_000


cdef int64_t caller_until() except? -1:
    """The caller's deadline, CLOCK_MONOTONIC in nanoseconds; 0 without one."""
    until = get_value(UNTIL_NS)
    return 0 if until is None else until


cdef class HostReferences(References):
    cdef uint64_t put_callback(self, object value, Codec codec) except? 0:
        number = self.caller.registry.register(value, codec, self.call)
        if self.call.passed is None:
            self.call.passed = []
        self.call.passed.append(number)
        return number

    cdef int put_stream(self, object value, Codec codec) except -1:
        try:
            iterator = iter(value if hasattr(value, "__iter__") else drawn(value))
        except TypeError:
            raise Unfit(f"{type(value).__qualname__}, which cannot be iterated") from None
        self.call.feed = Outgoing(iterator, self.caller.stream_bytes)
        return 0


cdef class Bound:
    pass


cdef class Caller(Told):
    """The calling side of one connection.

    Args:
        link: where frames go.
        port: how arrays go.
        lost: called with the method in flight or None when the link ends; returns the error to raise.
        registry: where callbacks get their numbers; one for all lanes of a connection.
    """

    def __init__(self, Link link not None, ArrayPort port not None, lost, Registry registry=None):
        Told.__init__(self, link, port, lost, registry)
        self.references = HostReferences.__new__(HostReferences)
        self.references.caller = self
        self.enc.references = self.references
        self.next_call = random.getrandbits(48)         # wire.md: a reply of an earlier connection can hardly match

    def release(self) -> None:
        """After close() and the end of the link: gives the memory back, though handles live on.

        A call that does not come back in time, or that this very thread is in (kill() in a signal handler), keeps it until it has ended.
        """
        cdef PyLockStatus status
        with nogil:
            status = PyThread_acquire_lock_timed(self.lock, RELEASE_US, 0)
        if status == PY_LOCK_ACQUIRED:
            self.fail_all(self._refused())
            for reference in list(self.watches):
                watch = reference()
                if watch is not None:
                    watch.end()
            self.references.caller = None
            self.registry.close()
            self.link = None
            self.port = None
            self.arena_port = None
            self.enc = None
            self.dec = None
            PyThread_release_lock(self.lock)

    # -- one call

    cdef object call(self, Bound method, tuple args, dict kwargs):
        cdef int64_t until = caller_until()
        cdef uint64_t under_way = 0
        if not self.at_home() or self.refusal is not None:
            raise self._refused()
        try:
            if method.codec.has_references:
                return self.call_with(Pending.__new__(Pending), method, args, kwargs, until, &under_way)
            return self.plain(method, args, kwargs, until, &under_way)
        except BaseException as error:          # a deadline, Ctrl-C, whatever a signal handler raises
            if under_way:
                self.tell_plugin(under_way, error)
            raise

    cdef object tell_plugin(self, uint64_t number, object error):
        """Nobody waits for this call any more: the plugin is told, and says where it is. Without the lane's lock, since that may take 100 ms."""
        if self.gave_up is None or isinstance(error, PluginError) and not isinstance(error, (DeadlineExceeded, Cancelled)):
            return                  # the connection is of no use any more
        try:
            stack, reason = self.gave_up(self.lane, number, isinstance(error, PluginError))
        except Exception as failed:
            stack, reason = "", f"{type(failed).__name__}: {failed}"
        if isinstance(error, PluginError):
            error.plugin_stack, error.no_stack = stack, reason

    cdef object plain(self, Bound method, tuple args, dict kwargs, int64_t until, uint64_t* under_way):
        """The fast road: one request, and its answer. ``under_way`` is the number of a call that was given up."""
        cdef FrameHeader header
        cdef uint64_t number = 0
        cdef Pending shared = None
        cdef bint answered = False
        cdef int locked = self._lock(until, method.codec.qualified)
        try:
            if self.refusal is not None:
                raise self._refused()
            number = self.begin(method, args, kwargs, until, 0)
            while True:
                if not self.link.receive(&header, self.dec, until):
                    if self.asked_for:
                        shared = self.made_pending(method, number, until)
                        break
                    if not until or fp_now_ns() < until:
                        continue        # stirred, and not in time
                    raise DeadlineExceeded(f"{method.codec.qualified}() had no answer before the deadline; a late one will be dropped")
                if header.call == number and FRAME_REPLY <= header.kind <= FRAME_ERROR:
                    break
                self.dispatch(&header)
                if self.asked:
                    shared = self.made_pending(method, number, until)       # calls that a callback makes may read the answer
                    self.run_asked()
                    break
            number = 0
            if shared is None:
                answered = True
                return self.result_of(&header, method.codec, until)
        except EOFError as error:
            number = 0
            raise self.failure(error, method.codec.qualified)
        except Exception as error:
            if answered:
                error = self.spoilt(&header, method.codec, error)
            raise self.failure(error, method.codec.qualified)
        finally:
            if number and (shared is None or shared.state == PENDING):
                self.pending[number] = None
                self.link.duplex = True
                under_way[0] = number
            self.done(locked)
        return self.shared(shared, until, under_way)

    cdef Pending made_pending(self, Bound method, uint64_t number, int64_t until):
        """From now on others may read its answer."""
        cdef Pending call = Pending.__new__(Pending)
        call.caller, call.codec, call.until, call.number = self, method.codec, until, number
        self.pending[number] = call
        self.link.duplex = True
        return call

    cdef object shared(self, Pending call, int64_t until, uint64_t* under_way):
        """The answer to a call that has left the fast road: another thread needs the link, or this one a callback."""
        try:
            if not self.share(call, until):
                raise DeadlineExceeded(f"{call.codec.qualified}() had no answer before the deadline; a late one will be dropped")
            return call.outcome()
        except BaseException:
            if call.state == PENDING:
                self.give_up(call, FRAME_CANCEL, GIVEN_UP, None)
                under_way[0] = call.number
            raise

    cdef uint64_t begin(self, Bound method, tuple args, dict kwargs, int64_t until, int flags) except 0:
        """Encodes and sends a REQUEST: its number."""
        try:
            return self.request(method, args, kwargs, False, until, flags, get_value(METADATA))
        except BaseException as error:
            raise self.unsent(method, args, kwargs, error)

    cdef uint64_t request(self, Bound method, object args, dict kwargs, bint bare, int64_t until, int flags, object metadata) except 0:
        """The same, for who handles errors with ``unsent``. Bare: ``args`` is the only argument itself."""
        cdef FrameHeader header
        memset(&header, 0, sizeof(FrameHeader))
        self.sending, self.made, self.sent_before, self.argument = True, 0, self.link.sent, -1
        self.enc.reset()
        if metadata is not None:
            put_metadata(self.enc, (<tuple>metadata)[1])
            flags |= FLAG_METADATA
        if bare:
            method.codec.put_only(self.enc, args, &self.argument)
        else:
            method.codec.put_arguments(self.enc, <tuple>args, kwargs, &self.argument)
        header.flags = <uint16_t>flags
        self.spill(&header)
        header.remaining_ns = self.remaining_ns(method, until) if until else 0
        self.next_call += 1
        self.made = self.next_call
        header.kind, header.call, header.interface, header.method = FRAME_REQUEST, self.made, method.interface, method.index
        self.transmit(&header, until)
        self.calls += 1
        self.sending = False
        return header.call

    cdef int64_t remaining_ns(self, Bound method, int64_t until) except -1:
        cdef int64_t left = until - fp_now_ns()
        if left <= 0:
            raise DeadlineExceeded(f"{method.codec.qualified}(): the deadline was over before the call; nothing was sent")
        return left

    cdef object unsent(self, Bound method, tuple args, dict kwargs, object error):
        """A request was not, or not wholly, sent: the error to raise."""
        if not self.sending:
            return error                # it is not about a request
        self.sending = False
        if not self.made:
            self.port.rollback()
            self.enc.let_go()
        elif self.link.sent != self.sent_before:
            self.pending[self.made] = None      # a part of it went out: the peer will answer it
        return method.codec.refused(args, kwargs, self.argument, error) if isinstance(error, Exception) else error

    # -- calls with streams and callbacks, and calls that nobody waits for yet

    cdef object call_with(self, Pending call, Bound method, tuple args, dict kwargs, int64_t until, uint64_t* under_way):
        """A call that passes callbacks or a stream, or returns one: a result, or the Pending behind a ResultStream."""
        cdef bint stream = method.codec.item is not None
        cdef bint opened = False
        cdef int locked = self._lock(until, method.codec.qualified)
        call.caller, call.codec, call.until = self, method.codec, until
        call.thread = 0 if stream else PyThread_get_thread_ident()
        try:
            self.open(call, method, args, kwargs, 0 if stream else FLAG_WAITS)
            opened = stream
            if call.state != PENDING:       # cancelled before it was sent, by another thread than the one that feeds it
                self.pending[call.number] = None
                self.send_later(FRAME_CANCEL, call.number)
            if not stream and not self.follow(call, until, &locked):
                raise DeadlineExceeded(f"{method.codec.qualified}() had no answer before the deadline; a late one will be dropped")
        except BaseException as error:
            failed = self.failure(error, method.codec.qualified) if isinstance(error, Exception) else error
            if call.state == PENDING and call.number and not opened:
                # Of a Call another thread asks for the outcome. A Pending is this thread's, and callbacks that are kept refer to it.
                self.give_up(call, FRAME_CANCEL, GIVEN_UP, None if type(call) is Pending else failed)
                under_way[0] = call.number
            raise failed
        finally:
            if not opened:
                self.stop_feed(call)
            self.done(locked)
        if stream:
            return call
        try:
            return call.outcome()
        finally:
            if type(call) is Pending:
                call.value = None           # nobody else has it, but a callback that the plugin keeps refers to its call

    cdef int follow(self, Pending call, int64_t until, int* locked) except -1:
        """wait() for a call on whose link this thread is. ``locked``: whether it still has the link to itself."""
        while not self.pump(call, until):
            if until and fp_now_ns() >= until:
                return 0
            if self.asked_for:
                if locked[0]:
                    locked[0] = NO_TURN
                    self._unlock()
                return self.share(call, until)
        return 1

    cdef int submit(self, Pending call, Bound method, tuple args, dict kwargs, bint lazy) except -1:
        """Sends a request that nobody waits for yet."""
        cdef int64_t until = caller_until()
        cdef int locked
        if not self.at_home() or self.refusal is not None:
            raise self._refused()
        locked = self._lock(until, method.codec.qualified)
        call.caller, call.codec, call.until = self, method.codec, until
        try:
            if self.under_way() >= self.in_flight_max:
                self.make_room(until)
            self.link.lazy = lazy
            self.open(call, method, args, kwargs, 0)
        except (EOFError, RemoteProtocolError) as error:
            raise self.failure(error, method.codec.qualified)
        finally:
            if self.link is not None:
                self.link.lazy = False
            self.done(locked)
        return 0

    cdef int publish(self, str what) except -1:
        """Requests that were submitted lazily go out, at the latest."""
        cdef int locked = self._lock(caller_until(), what)
        try:
            if self.link is not None:
                self.link.flush()
        except EOFError as error:
            raise self.failure(error, what)
        finally:
            self.done(locked)
        return 0

    cdef int submit_all(self, Flight flight, Bound method, list batch, bint bare) except -1:
        """Sends one request for each tuple of arguments (bare: for each value that is the only one), published together. What does not fit fails at its place."""
        cdef int64_t until = caller_until()
        cdef Py_ssize_t at = 0
        cdef bint packs
        cdef int locked
        if not self.at_home() or self.refusal is not None:
            raise self._refused()
        locked = self._lock(until, method.codec.qualified)
        try:
            if self.refusal is not None:
                raise self._refused()
            packs = self.version >= 3 and method.codec.packs and get_value(METADATA) is None
            self.link.lazy = not packs
            flight.enlist(self)
            while at < len(batch):
                if packs and len(batch) - at > 1:
                    at = self.send_packed(flight, method, batch, at, bare, until)
                else:
                    at = self.send_batch(flight, method, batch, at, bare, until)
            self.link.flush()
        except (EOFError, RemoteProtocolError) as error:
            raise self.failure(error, method.codec.qualified)
        finally:
            if self.link is not None:
                self.link.lazy = False
            self.done(locked)
        return 0

    cdef Py_ssize_t send_batch(self, Flight flight, Bound method, list batch, Py_ssize_t at, bint bare, int64_t until) except -1:
        """Sends the requests from that one on, or up to one that does not fit: which is next."""
        cdef Py_ssize_t room = self.in_flight_max - self.under_way()
        metadata = get_value(METADATA)
        try:
            while at < len(batch):
                if room <= 0:
                    self.make_room(until)
                    room = self.in_flight_max - self.under_way()
                flight.add(self, self.request(method, batch[at], None, bare, until, 0, metadata), until)
                room -= 1
                at += 1
        except BaseException as error:
            failed = self.unsent(method, (batch[at],) if bare else batch[at], None, error)
            if not isinstance(failed, ArgumentError):
                raise failed
            flight.add_done(FAILED, failed)
            at += 1
        return at

    cdef Py_ssize_t send_packed(self, Flight flight, Bound method, list batch, Py_ssize_t at, bint bare, int64_t until) except -1:
        """Sends the requests from that one on in one frame, as many as it takes, or up to one that does not fit its parameters: which is next."""
        cdef Py_ssize_t end, size = sizeof(uint16_t), first = at
        cdef object failed = None
        if self.under_way() >= self.in_flight_max:
            self.make_room(until)
        end = at + min(PACKED_MAX, len(batch) - at, self.in_flight_max - self.under_way())
        self.sending, self.made, self.sent_before = True, 0, self.link.sent
        self.enc.reset()
        self.enc.take(size)
        try:
            self.argument = -1
            if bare:
                method.codec.put_each(self.enc, batch, &at, end, &size, self.packed_bytes, &self.argument)
            while not bare and at < end:
                self.argument = -1
                method.codec.put_arguments(self.enc, <tuple>batch[at], None, &self.argument)
                if self.enc.size > self.packed_bytes:
                    break
                size = self.enc.size
                at += 1
        except BaseException as error:
            failed = self.unsent(method, (batch[at],) if bare else batch[at], None, error)
            if not isinstance(failed, ArgumentError):
                raise failed
        if at > first:
            self.enc.size = size
            self.transmit_packed(flight, method, at - first, until)
        self.sending = False
        if failed is not None:
            flight.add_done(FAILED, failed)
            return at + 1
        if at == first:
            self.link.lazy = True       # each by itself: they are large
            return self.send_batch(flight, method, batch, at, bare, until)
        return at

    cdef int transmit_packed(self, Flight flight, Bound method, Py_ssize_t count, int64_t until) except -1:
        cdef FrameHeader header
        cdef uint16_t calls = <uint16_t>count
        cdef Py_ssize_t i
        memset(&header, 0, sizeof(FrameHeader))
        memcpy(self.enc.data, &calls, sizeof(calls))
        self.sending = True
        try:
            header.remaining_ns = self.remaining_ns(method, until) if until else 0
            self.made = self.next_call + 1
            self.next_call += count
            header.kind, header.call, header.interface, header.method = FRAME_REQUESTS, self.made, method.interface, method.index
            self.transmit(&header, until)
        except BaseException:
            if self.made and self.link.sent != self.sent_before:
                for i in range(count):
                    self.pending[self.made + i] = None      # a part of it went out: the peer will answer it
            raise
        finally:
            self.sending = False
        self.calls += count
        for i in range(count):
            flight.add(self, self.made + i, until)
        return 0

    cdef int open(self, Pending call, Bound method, tuple args, dict kwargs, int flags) except -1:
        if self.refusal is not None:
            raise self._refused()
        if call.codec.item is not None:
            call.items = Incoming()
        self.references.call = call
        try:
            call.number = self.begin(method, args, kwargs, call.until, flags)
        except BaseException:
            for number in call.passed or ():
                self.registry.forget(number)
            call.feed = None            # it was never asked for anything
            raise
        finally:
            self.references.call = None
        self.pending[call.number] = call
        self.link.duplex = True
        return 0

    cdef int wait(self, Pending call, int64_t until, bint on_loop=False) except -1:
        """1: the call has an answer, or its stream an item. 0: the time is up; on a loop's thread also: the link has ended, and it will be told."""
        cdef int turn
        while not call.ready():
            if until and fp_now_ns() >= until:
                return 0
            if not self.at_home():
                raise self._refused()
            turn = self.lead(call, until)
            if turn == -2:
                continue
            try:
                if call.ready():
                    return 1
                if self.refusal is not None:
                    raise self._refused()
                if self.pump(call, until):
                    return 1
            except (EOFError, RemoteProtocolError) as error:
                if on_loop and isinstance(error, EOFError):
                    return self.fail_soon(error)
                raise self.failure(error, call.codec.qualified)
            finally:
                self.done(turn)
            if turn == NESTED and self.asked_for:
                return self.share(call, until)
        return 1

    cdef int share(self, Pending call, int64_t until) except -1:
        """wait() for a call whose thread lets others have the link. One that is inside a callback has it again behind."""
        cdef int inside = self.part()
        try:
            return self.wait(call, until)
        finally:
            self.rejoin(inside)
