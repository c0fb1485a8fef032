"""The plugin's half of calls over a Link: takes requests, runs handlers, advances streams, answers.

Frames come first, then one handler that has not run, then one item of a stream, in turns. A handler that waits itself (for the answer to a
callback, for an item of the stream that it takes) does the same meanwhile: requests that come then run on top of it.
docs/decisions/2026-11-26-many-calls.md says why.
"""

import collections
import functools

from cpython.object cimport PyObject
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from libc.stdint cimport int64_t, uint64_t

from fastplug._wire cimport (
    FLAG_METADATA, FLAG_WAITS, FRAME_ERROR, FRAME_REPLY, FRAME_REQUEST, FRAME_REQUESTS, ArrayPort, Decoder, FrameHeader, Link, MethodCodec, Values,
    count_packed, drop_values, get_metadata, skip_rest,
)
from fastplug.protocols._activity cimport CROWDED, Activation, PluginReferences
from fastplug.protocols._answering cimport BATCH_ANSWERS, QUICK_RUNS, TICK_FRAMES
from fastplug.protocols._running cimport Running
from fastplug.protocols._served cimport Served
from fastplug.protocols._streams cimport WINDOW_ITEMS, Outgoing
from fastplug.shm._port cimport SERVING as SERVING_PORT

from fastplug._wire_words import Unbuilt
from fastplug.contexts import CALLS, Context
from fastplug.errors import RemoteProtocolError
from fastplug.protocols._callbacks import SERVING

cdef extern from "_atomics.h" nogil:
    int64_t fp_now_ns()
    int64_t fp_tick_ns()
    void fp_point(const char*)
    enum: FP_DEBUG

cdef extern from "pythread.h":
    unsigned long PyThread_get_thread_ident()

# Requests that were decoded while there was no room to answer. A host has at most 1024 calls under way on a lane.
QUEUED_MAX = 4096
cdef Py_ssize_t _QUEUED_MAX = QUEUED_MAX
# While the plugin keeps callbacks, an idle server looks this often whether one was dropped.
cdef int64_t RELEASE_SLICE_NS = 500_000_000


cdef class Server(Running):
    """The serving side of one connection.

    Args:
        link, port: as for Caller.
        interfaces: one list per interface, of (MethodCodec, handler or None), in the order that was announced.
        first: the server of the connection's first lane, when this is a further one: lanes share an event loop, and how callbacks reach
            the host when no call waits.
    """

    def __init__(self, Link link not None, ArrayPort port not None, interfaces, Server first=None):
        Running.__init__(self, link, port, None if first is None else first.line, interfaces)
        self.references = PluginReferences.__new__(PluginReferences)
        self.references.server = self
        self.dec.references = self.spare.references = self.references
        self.ready = collections.deque()
        self.tasks = None if first is None else first.tasks
        if first is not None:
            self.version = first.version
        if any((<Served>one).asynchronous for methods in self.interfaces for one in methods):
            self.link.await_stirs()
            if self.tasks is None:
                from fastplug.protocols._tasks import Tasks     # asyncio alone takes 40 ms

                self.tasks = Tasks()

    def run(self) -> None:
        """Handles calls until the link ends. Raises RemoteProtocolError when the host breaks the protocol."""
        SERVING_PORT.set(self.arena_port)
        CALLS.current, SERVING.server = self.current_context, self
        self.thread = PyThread_get_thread_ident()
        if self.arena_port is not None:
            self.arena_port.begin_serving()
        try:
            while True:
                if self.group is None:
                    self.step()
                else:
                    self.group.step()
        except EOFError:
            return
        finally:
            self.stopping = True
            self.close_streams()
            if self.arena_port is not None:
                self.arena_port.end_serving()
            SERVING_PORT.set(None)
            CALLS.current = SERVING.server = None
            self.references.server = None

    # -- what comes next

    cdef bint runnable(self) except -1:
        return self.link.has_frame() or self.front is not None or bool(self.streams) or self.kept and self.next_kept() >= 0

    cdef int step(self) except -1:
        """One frame, one handler, or one item."""
        cdef FrameHeader header
        cdef Py_ssize_t place
        cdef int came
        if self.kept:
            place = self.next_kept()
            if place >= 0:
                call = self.ready[place]
                del self.ready[place]
                return self.run_one(call)
            self.kept = bool(self.ready)
        if (self.front is not None or self.streams) and not self.link.has_frame():
            if self.stopping:
                raise EOFError
            self.link.flush()
            return self.advance(self.next_stream())
        if self.line.released and not self.link.has_frame():
            self.line.tell_released()
        self.receiving = True
        came = self.link.receive(&header, self.dec, fp_now_ns() + RELEASE_SLICE_NS if self.line.alive else 0)
        self.receiving = False
        if came:
            self.take(&header)
            if self.more and not self.depth:
                self.go_on()
        return 0

    cdef Py_ssize_t next_kept(self) except -2:
        """Which of the requests in ``ready`` comes next; -1: none can."""
        cdef Py_ssize_t place
        for place, call in enumerate(self.ready):
            if (<Activation>call).answerable(self.depth):
                return place
        return -1

    cdef int go_on(self) except -1:
        """The frames behind one, up to a batch: all else comes after frames, but for what is in ``ready``."""
        cdef FrameHeader header
        cdef int frames
        cdef int64_t tick = fp_tick_ns()
        for frames in range(1, BATCH_ANSWERS):
            if not self.more or self.kept or not self.link.receive(&header, self.dec, 1):       # 1: a time in the past
                break
            self.take(&header)
            if frames % TICK_FRAMES == 0 and fp_tick_ns() != tick:
                break
        return self.doubt() if fp_tick_ns() != tick else 0

    cdef int absorb(self, FrameHeader* header) except -1:
        """While there is no room to send, or not for any handler: takes a frame in, and runs nothing."""
        if header.kind == FRAME_REQUESTS:
            return self.unpack(header)
        if header.kind != FRAME_REQUEST:
            return self.about(header)
        return self.keep(self.request(header, True))

    cdef int keep(self, Activation call) except -1:
        if len(self.ready) >= _QUEUED_MAX:
            raise RemoteProtocolError(f"the host has more than {_QUEUED_MAX} requests under way")
        self.ready.append(call)
        self.kept = True
        return 0

    cdef int unpack(self, FrameHeader* header) except -1:
        """Requests that came in one frame, for later, each by itself."""
        cdef FrameHeader one = header[0]
        cdef int count = self.packed_count(header, self.served(header))
        while count:
            count -= 1
            self.keep(self.request(&one, count == 0))
            one.call += 1
        return 0

    cdef int take(self, FrameHeader* header) except -1:
        cdef Served served
        self.more = False
        if header.kind != FRAME_REQUEST:
            return self.packed_requests(header) if header.kind == FRAME_REQUESTS else self.about(header)
        if self.depth >= CROWDED:
            return self.absorb(header)
        served = self.served(header)
        if served.plain:
            return self.plain(header, served, self.dec, True)
        return self.run_one(self.request(header, True))

    cdef Served served(self, FrameHeader* header):
        cdef PyObject* methods
        if header.interface < PyTuple_GET_SIZE(self.interfaces):
            methods = PyTuple_GET_ITEM(self.interfaces, header.interface)
            if header.method < PyTuple_GET_SIZE(<tuple>methods):
                return <Served>PyTuple_GET_ITEM(<tuple>methods, header.method)
        raise RemoteProtocolError(f"the host called method {header.method} of interface {header.interface}; there is none")

    cdef Activation request(self, FrameHeader* header, bint last):
        """A request with its arguments decoded. ``last``: nothing is behind them."""
        cdef Activation call = Activation.__new__(Activation)
        cdef Served served = self.served(header)
        call.server = self
        call.codec, call.function, call.asynchronous = served.codec, served.function, served.asynchronous
        call.number, call.interface, call.method, call.flags = header.call, header.interface, header.method, header.flags
        call.thread = PyThread_get_thread_ident()
        if call.number in self.active:
            raise RemoteProtocolError(f"the host made call {call.number} twice")
        call.until_ns = fp_now_ns() + header.remaining_ns if header.remaining_ns else 0
        self.active[call.number] = call
        call.given_up = self.came(call.number)
        call.within = self.awaited > 0
        self.unspill(header)
        call.metadata = get_metadata(self.dec) if header.flags & FLAG_METADATA else None
        self.references.call = call
        try:
            call.values = call.codec.decode_arguments(self.dec, last)
        except Unbuilt as error:        # as if the handler had raised it: the caller chose the values
            skip_rest(self.dec)
            call.error = error.__cause__
        finally:
            self.references.call = None
        self.link.consumed()
        self.calls += 1
        return call

    # -- handlers

    cdef int plain(self, FrameHeader* header, Served served, Decoder dec, bint last) except -1:
        """A request without streams and callbacks: the fast road. ``last``: nothing is behind its arguments."""
        cdef Values values
        cdef MethodCodec codec = served.codec
        cdef tuple outer = None
        cdef dict metadata = None
        cdef object result = None
        cdef Phase phase = DECODING
        cdef bint lazy = False
        values.count = 0
        if header.flags:
            self.unspill(header)
            metadata = get_metadata(self.dec) if header.flags & FLAG_METADATA else None
        try:
            codec.decode_values(dec, &values, last)
            self.link.consumed()
            self.calls += 1
            lazy = self.open_batch(served, not last)
            if self.depth:
                outer = self.suspend()
            phase = RUNNING
            self.running, self.depth = header.call, self.depth + 1
            self.until_ns = fp_now_ns() + header.remaining_ns if header.remaining_ns else 0
            if metadata is not self.metadata or self.context is not None or self.current is not None:   # to store None again costs more
                self.metadata, self.context, self.current = metadata, None, None
            if FP_DEBUG:
                fp_point("handler about to run")
            if self.came(header.call):
                self.check_wanted(True)
            result = codec.call_values(served.bare, <PyObject*>served.owner if served.owner is not None else NULL, &values)
            phase = ENCODING
            self.left(outer)
            drop_values(&values)        # arguments go back before the reply does, so that the host can use their memory again at once
            if not self.at_home():
                self.check_home()
            self.enc.reset()
            codec.put_result(self.enc, result)
            result = None
        except BaseException as raised: # SystemExit too: a handler must not end the plugin by raising
            error = codec.unfit_result(result, raised) if phase == ENCODING and self.at_home() else raised
            result = None
            drop_values(&values)
            self.refuse(header, codec, phase, outer, error)
        else:
            self.link.lazy = lazy
            self.answer(header, FRAME_REPLY)
            self.link.lazy = False
        if self.stopping and not self.depth:
            self.check_going()              # the link has ended, or was broken, while the handler waited
        return 0 if served.quick >= QUICK_RUNS else self.judge(served)

    cdef int packed_requests(self, FrameHeader* header) except -1:
        """Requests that came in one frame."""
        cdef FrameHeader one = header[0]
        cdef Decoder dec = self.dec
        cdef Served served = self.served(header)
        cdef uint64_t end
        if self.depth or not served.plain:
            return self.unpack(header)
        end = header.call + self.packed_count(header, served)
        self.dec, self.spare = self.spare, dec
        self.hand_next, self.hand_end = header.call, end
        while one.call != end:
            if served.quick < QUICK_RUNS:
                self.hand_next = one.call + 1
                self.plain(&one, served, dec, one.call == end - 1)
                one.call += 1
            else:
                self.run_together(&one, served, dec, end)
                if self.stopping:
                    self.check_going()      # as plain() does
        return self.send_results()

    cdef int packed_count(self, FrameHeader* header, Served served) except -1:
        if not served.codec.packs:
            raise RemoteProtocolError(f"the host packed calls of {served.codec.qualified}(), which may not be")
        return count_packed(header, self.dec)

    cdef int run_together(self, FrameHeader* one, Served served, Decoder dec, uint64_t end) except -1:
        """As ``plain`` for quick handlers, up to the first that raises; the results go out together."""
        cdef Values values
        cdef MethodCodec codec = served.codec
        cdef object result = None
        cdef Phase phase = DECODING
        cdef int64_t tick = fp_tick_ns()
        cdef bint added
        values.count = 0
        self.until_ns = fp_now_ns() + one.remaining_ns if one.remaining_ns else 0
        self.metadata, self.context, self.current = None, None, None
        try:
            while one.call != end:
                self.hand_next = one.call + 1
                codec.decode_values(dec, &values, one.call == end - 1)
                self.calls += 1
                phase = RUNNING
                self.running, self.depth = one.call, 1
                if self.came(one.call):
                    self.check_wanted(True)
                result = codec.call_values(served.bare, <PyObject*>served.owner if served.owner is not None else NULL, &values)
                phase = ENCODING
                self.left(None)
                drop_values(&values)
                if not self.at_home():
                    self.check_home()
                added = self.adds(one, codec, result)
                result = None
                phase = DECODING            # what is raised from here on is about the connection
                if not added:
                    self.send_results()
                    self.answer(one, FRAME_REPLY)
                one.call += 1
                if one.call % TICK_FRAMES == 0 and fp_tick_ns() != tick:
                    return self.doubt()
        except BaseException as raised:
            error = codec.unfit_result(result, raised) if phase == ENCODING and self.at_home() else raised
            result = None
            drop_values(&values)
            self.refuse(one, codec, phase, None, error)
            one.call += 1
        return 0

    cdef int refuse(self, FrameHeader* header, MethodCodec codec, Phase phase, tuple outer, object error) except -1:
        """The answer to a plain request is an error, behind the results before it; or it is about the connection, and raised."""
        if phase == RUNNING:
            self.left(outer)
        if not self.at_home() or phase == DECODING and not isinstance(error, Unbuilt):
            raise codec.located(error)
        self.send_results()
        self.pack_error(self.unbuilt(header, error) if phase == DECODING else error)
        return self.answer(header, FRAME_ERROR)

    cdef object unbuilt(self, FrameHeader* header, object error):
        """A constructor refused an argument: as if the handler had raised it, since the caller chose the values."""
        self.came(header.call)
        skip_rest(self.dec)
        self.link.consumed()
        return error.__cause__

    cdef int run_one(self, Activation call) except -1:
        if call.asynchronous:
            return self.launch(call)
        self.link.flush()
        error, result = call.error, None
        outer = self.enter(call)
        try:
            if error is None:
                self.check_wanted(call.given_up)
                values, call.values = call.values, None
                result = call.codec.call(call.function, values)
                values = None
                self.check_home()
                if call.codec.item is not None:
                    self.open_stream(call, result)
        except BaseException as raised:
            values = None
            if not self.at_home():
                raise
            error = raised
        finally:
            self.leave(call, outer)
        self.check_going()
        if error is None and call.out is not None:
            return self.queue(call)
        if error is None:
            error = self.encoded(call, result)
        result = None
        if error is None:
            return self.finish(call, FRAME_REPLY)
        self.pack_error(error)
        error = None
        return self.finish(call, FRAME_ERROR)

    cdef object encoded(self, Activation call, object result):
        """Encodes what a handler returned: None, or why it cannot be."""
        self.enc.reset()
        try:
            call.codec.encode_result(self.enc, result)
        except BaseException as error:
            if not self.at_home():
                raise
            return error
        return None

    cdef int launch(self, Activation call) except -1:
        """Hands a call to the event loop. What becomes of it is told to attend()."""
        from fastplug.protocols._tasks import Producing, Running

        if len(self.active) > _QUEUED_MAX:
            raise RemoteProtocolError(f"the host has more than {_QUEUED_MAX} calls under way")
        try:
            if call.error is not None:
                raise call.error
            self.check_wanted(call.given_up)
            values, call.values = call.values, None
            made = call.codec.call(call.function, values)
            values = None
            call.context = Context(call.until_ns or None, call.metadata)
            if call.given_up:               # meanwhile
                call.context.cancel()
            what = self.tasks, made, call.context, functools.partial(self.attend_to, call)
            if call.codec.item is None:
                call.task = Running(*what)
            else:
                call.task = Producing(*what, window=WINDOW_ITEMS)
                call.out = Outgoing(call.task, self.stream_bytes)
            call.task.start()
            return 0
        except BaseException as raised:
            self.pack_error(raised)
        return self.finish(call, FRAME_ERROR)
