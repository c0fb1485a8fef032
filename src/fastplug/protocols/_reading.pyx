"""What a caller makes of the frames that come: answers, items of streams, callbacks to run; and the stream that a call takes.

Nothing here sends requests or knows of threads: whoever reads the link has it (``_turn.pyx``).
"""

import collections
import time

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from fastplug._wire cimport (
    FLAG_SPILLED, FRAME_CALLBACK, FRAME_CLOSE, FRAME_CREDIT, FRAME_END, FRAME_ERROR, FRAME_ITEM, FRAME_RELEASE, FRAME_REPLIES, FRAME_REPLY, FrameHeader,
    MethodCodec, count_packed, decode_error, encode_error, skip_rest, skip_value,
)
from fastplug._wire_buffer cimport finish
from fastplug.protocols._callbacks cimport Registry, answered
from fastplug.protocols._streams cimport WINDOW_ITEMS, Outgoing
from fastplug.protocols._turn cimport ANSWERED, FAILED, PENDING, Pending, Turn
from fastplug.protocols._waiting cimport PyThread_acquire_lock, PyThread_get_thread_ident

from fastplug._wire_words import Unbuilt
from fastplug.errors import Cancelled, DeadlineExceeded, RemoteError, RemoteProtocolError, seen_by_handler
from fastplug.protocols._drawn import Drawn

cdef extern from "_atomics.h" nogil:
    int64_t fp_now_ns()

# Calls under way on one connection. One more first waits for answers. A plugin's ring holds 4096 answers, its queue as many requests.
IN_FLIGHT_MAX = 1024

# Time for a thread that asked for the link, or queues for it, to take it.
YIELD_S = 50e-6

cdef object UNKNOWN = object()


cdef class Reading(Turn):
    """The part of a Caller that reads.

    Args:
        link, port: see Caller.
        lost: called with the method in flight or None when the link ends; returns the error to raise.
        registry: what callbacks have for numbers.
    """

    def __init__(self, link, port, lost, Registry registry=None):
        Turn.__init__(self, link, port)
        self.lost = lost
        self.registry = Registry() if registry is None else registry      # an empty one is false
        self.asked = collections.deque()
        self.in_flight_max = IN_FLIGHT_MAX

    cdef int pump(self, Pending call, int64_t until) except -1:
        """Reads the link, which is this thread's, for one call. Feeds its stream, and runs the callbacks that come, meanwhile."""
        cdef FrameHeader header
        cdef int more
        while not call.ready():
            if self.asked:
                self.run_asked()
                if self.asked:
                    return 0            # those of another thread, which needs the link
                continue
            if call.feed is not None and not call.feed.running:     # else it is, below, on a thread that let go of the link
                if call.feed.done:
                    self.stop_feed(call)
                elif call.feed.may_send() and not self.link.has_frame() and (not call.until or fp_now_ns() < call.until):
                    if self.has_item(call):
                        self.feed_one(call)
                        continue
            if call.items is not None and call.items.due():
                self.credit(call.number, call.items.grant())
            if not self.link.receive(&header, self.dec, until):
                return 0
            self.dispatch(&header)
        if (call.items is not None or call.greedy) and self.link is not None:
            for more in range(WINDOW_ITEMS):        # what has come with it: one turn for several
                if not self.link.receive(&header, self.dec, 1):
                    break
                self.dispatch(&header)
        return 1

    cdef bint called_back(self, unsigned long thread) noexcept:
        return thread == self.registry.thread or self.drawing or self.asked and self.next_asked(thread) >= 0

    cdef int urgency(self, Pending call, unsigned long me) except -2:
        if self.asked:
            return 1 if self.next_asked(me) >= 0 else -1
        if me == self.registry.thread or call.items is not None and call.items.due():
            return 1
        if call.feed is not None and call.feed.iterator is not None and not call.feed.running and (call.feed.done or call.feed.may_send()):
            return 1
        return -1 if self.asked_for else 0

    cdef int let_pass(self) except -1:
        """In the middle of a call: a thread that has asked for the link has it first."""
        cdef int inside = self.part()
        try:
            time.sleep(YIELD_S)
        finally:
            self.rejoin(inside)
        if self.link is None:
            raise self._refused()
        return 0

    cdef int make_room(self, int64_t until) except -1:
        cdef FrameHeader header
        while self.under_way() >= self.in_flight_max:
            if not self.link.receive(&header, self.dec, until):
                if not until or fp_now_ns() < until:
                    if self.asked_for:
                        self.let_pass()
                    continue            # stirred
                raise DeadlineExceeded(f"{self.in_flight_max} calls are under way, and none was answered before the deadline; nothing was sent")
            self.dispatch(&header)
            if self.asked:
                self.run_asked()
                if self.asked_for:
                    self.let_pass()
        return 0

    # -- the stream that a call takes

    cdef bint has_item(self, Pending call) except -1:
        """Not so while the caller's event loop makes it: the link is stirred then."""
        if not isinstance(call.feed.iterator, Drawn):
            return True
        self.drawing = True
        self.link.await_stirs()
        return call.feed.iterator.prepare(self.link.stir)

    cdef int feed_one(self, Pending call) except -1:
        cdef Outgoing feed = call.feed
        self.inside += 1
        feed.running = self.owner
        try:
            value = next(feed.iterator)
        except StopIteration:
            return self.end_feed(call, None)
        except Exception as error:
            return self.end_feed(call, error)
        except BaseException as error:          # Ctrl-C: the plugin's handler must not wait for the rest
            self.end_feed(call, error)
            raise
        finally:
            feed.running = 0
            self.inside -= 1
        if call.state != PENDING or feed.done:
            return 0
        return self.send_fed(call, value)

    cdef int send_fed(self, Pending call, object value) except -1:
        cdef FrameHeader header
        cdef Py_ssize_t size
        self.sending = True
        try:
            try:
                size = self.make_item(&header, call.number, call.codec, value, False)
            except Exception as error:
                self.port.rollback()
                self.enc.let_go()
                return self.end_feed(call, error)
            self.transmit(&header, call.until)
        finally:
            self.sending = False
        return call.feed.sent(size)

    cdef int end_feed(self, Pending call, object error) except -1:
        cdef FrameHeader header
        call.feed.done = True
        if call.state != PENDING:
            return 0
        if error is None:
            return self.signal(FRAME_END, call.number, NULL, 0, 0)
        call.feed_error = error
        memset(&header, 0, sizeof(FrameHeader))
        encode_error(self.enc, error)
        self.spill(&header)
        header.kind = FRAME_ERROR
        header.call = call.number
        return self.transmit(&header, 0)

    cdef int stop_feed(self, Pending call) except -1:
        """The user's generator runs its clean-up, on the thread of its call."""
        cdef bint mine = self.owner == PyThread_get_thread_ident()
        cdef int before = self.inside
        if call.feed is None or call.feed.iterator is None:
            return 0
        if mine:
            self.inside = 1
        try:
            call.feed.stop()
        finally:
            if mine:
                self.inside = before
        return 0

    cdef int grant(self, Pending call) except -1:
        """The consumer has taken items: tells the plugin, unless somebody else has the link; then before the next wait."""
        if self.at_home() and PyThread_acquire_lock(self.lock, 0):      # not a forked child, on its parent's socket
            self.took(PyThread_get_thread_ident())
            try:
                if self.refusal is None and call.state == PENDING:
                    self.credit(call.number, call.items.grant())
            except EOFError:
                pass                    # what has come is still taken; then the stream ends with an error
            finally:
                self._unlock()
        return 0

    # -- frames that came

    cdef int absorb(self, FrameHeader* header) except -1:
        return self.dispatch(header)

    cdef int dispatch(self, FrameHeader* header) except -1:
        """Gives a frame to the call it belongs to. Runs no user code but constructors."""
        cdef int kind = header.kind
        if self.flying and (kind == FRAME_REPLY or kind == FRAME_ERROR):
            for flight in self.flights:
                if (<Pending>flight).claim(self, header):
                    return 0
        if kind == FRAME_REPLIES:
            return self.unpack(header)
        if kind == FRAME_CALLBACK:
            if len(self.asked) >= IN_FLIGHT_MAX:
                raise RemoteProtocolError(f"the plugin asks for more than {IN_FLIGHT_MAX} callbacks at a time")
            self.unspill(header)
            self.asked.append((header.call, self.registry.request(self.dec)))
            if self.waiting and self.next_asked(self.owner) < 0:
                for call in self.waiting:       # one of them runs it
                    (<Pending>call).wake()
            return self.link.consumed()
        if kind == FRAME_RELEASE:
            return self.registry.release(self.dec)
        if not FRAME_REPLY <= kind <= FRAME_CLOSE:
            raise RemoteProtocolError(f"a frame of kind {kind} came where only replies may come")
        found = self.pending.get(header.call, UNKNOWN)
        if found is UNKNOWN:
            raise RemoteProtocolError(f"a reply to call {header.call} came, which was never made or has been answered")
        if found is None:
            return self._drop(header)
        return self.settle(header, <Pending>found)

    cdef int unpack(self, FrameHeader* header) except -1:
        """Several results, in the order of their calls."""
        cdef uint64_t number = header.call
        cdef int taken, left = count_packed(header, self.dec)
        while left:
            for flight in self.flights:
                taken = (<Pending>flight).claim_packed(self, number, left)
                if taken:
                    break
            else:
                if self.pending.get(number, UNKNOWN) is not None:
                    raise RemoteProtocolError(f"a packed reply to call {number} came, which was never packed or has been answered")
                self.came_late(number)
                skip_value(self.dec)
                taken = 1
            number += taken
            left -= taken
        finish(self.dec)
        return self.link.consumed()

    cdef int came_late(self, uint64_t number) except -1:
        """The end of a call that was given up."""
        del self.pending[number]
        self.late += 1
        return self.update_duplex()

    cdef int _drop(self, FrameHeader* header) except -1:
        """A frame that nobody waits for any more: the blocks it names go back."""
        if header.kind == FRAME_CREDIT or header.kind == FRAME_CLOSE:
            return 0
        self.unspill(header)
        if header.kind != FRAME_ITEM:
            self.came_late(header.call)
        if header.kind == FRAME_REPLY or header.kind == FRAME_ITEM:
            skip_value(self.dec)
        return self.link.consumed()

    cdef int settle(self, FrameHeader* header, Pending call) except -1:
        cdef int kind = header.kind
        cdef bint fits
        cdef uint32_t items
        # What comes for which half: CREDIT and CLOSE for the stream that the call takes, ITEM and END for the one that it returns.
        if kind == FRAME_CREDIT or kind == FRAME_CLOSE:
            fits = call.feed is not None
        elif kind == FRAME_ITEM or kind == FRAME_END:
            fits = call.items is not None
        else:
            fits = kind == FRAME_ERROR or call.items is None
        if not fits:
            raise RemoteProtocolError(f"{call.codec.qualified}() was answered by a frame of kind {kind}")
        if kind == FRAME_CLOSE:
            call.feed.done = True
            return call.wake()
        if kind == FRAME_CREDIT:
            memcpy(&items, self.dec.need(sizeof(items)), sizeof(items))
            call.wake()
            return call.feed.granted(items)
        if kind == FRAME_ITEM:
            return self.take_item(header, call)
        del self.pending[header.call]
        self.update_duplex()
        if kind == FRAME_END:
            call.items.ended = True
            return call.finish(ANSWERED, None)
        try:
            value = self.result_of(header, call.codec, call.until)
        except Exception as raised:
            error = self.of_call(header, call.codec, raised)
            if call.items is not None:
                call.items.ended, call.items.error = True, error
            return call.finish(FAILED, error)
        return call.finish(ANSWERED, value)

    cdef int take_item(self, FrameHeader* header, Pending call) except -1:
        self.unspill(header)
        try:
            call.items.arrived(call.codec.decode_item(self.dec), self.prompts(header))
            call.wake()
        except Unbuilt as error:
            skip_rest(self.dec)
            call.items.ended, call.items.error = True, error
            self.give_up(call, FRAME_CLOSE, FAILED, error)
        return self.link.consumed()

    cdef int run_asked(self) except -1:
        """Runs the callbacks that came for calls of this thread, and answers them. Other threads are left theirs, and need the link for them."""
        cdef unsigned long me = PyThread_get_thread_ident()
        cdef Py_ssize_t at = self.next_asked(me)
        while at >= 0:
            number, request = self.asked[at]
            del self.asked[at]
            self.answer_asked(number, request)
            at = self.next_asked(me)
        if self.asked:
            self.asked_for = True
        return 0

    cdef Py_ssize_t next_asked(self, unsigned long me) except -2:
        cdef Py_ssize_t at = 0
        for number, request in self.asked:
            owner = (<tuple>request)[4]
            if owner is None or (<Pending>owner).thread in (0, me) or (<Pending>owner).state != PENDING:
                return at
            at += 1
        return -1

    cdef int answer_asked(self, uint64_t number, tuple request) except -1:
        cdef FrameHeader header
        owner = request[4]
        if owner is None or (<Pending>owner).state != PENDING:
            gone = Cancelled("the caller has given the call up; its callbacks are not run any more")
            request = (request[0], None, None, gone, None)
        interrupt = []
        self.inside += 1
        try:
            memset(&header, 0, sizeof(FrameHeader))
            header.kind = <uint16_t>answered(self.enc, request, interrupt)
        finally:
            self.inside -= 1
        if self.link is None:
            raise self._refused()       # it has ended while the callback let others have it
        header.call = number
        self.spill(&header)
        self.transmit(&header, 0)
        if interrupt:
            raise interrupt[0]
        return 0

    cdef object result_of(self, FrameHeader* header, MethodCodec codec, int64_t until):
        """What an answer brings. Whoever calls this handles errors with ``spoilt`` or ``of_call``."""
        if header.flags & FLAG_SPILLED:
            self.unspill(header)
        if header.kind == FRAME_ERROR:
            error = decode_error(self.dec, codec.qualified)
            raise seen_by_handler(error) if until else error
        value = codec.take_result(self.dec)
        self.link.consumed()
        return value

    cdef object spoilt(self, FrameHeader* header, MethodCodec codec, object error):
        """An error of result_of: the frame is done with."""
        if header.kind == FRAME_ERROR:
            return error
        if isinstance(error, Unbuilt):
            skip_rest(self.dec)         # what it did not come to is given back
        self.link.consumed()
        return codec.located(error)

    cdef object of_call(self, FrameHeader* header, MethodCodec codec, object error):
        """The same, when it is this call's alone; others, which concern the connection, are raised."""
        error = self.spoilt(header, codec, error)
        if isinstance(error, (RemoteError, Unbuilt, DeadlineExceeded)):
            return error
        raise error

    cdef object failure(self, Exception error, str method):
        """What to raise for an error of a call: an end of the link is told by ``lost``, and one who breaks the protocol is not spoken to again."""
        if isinstance(error, RemoteError) or isinstance(error, Unbuilt):
            return error                # the handler's own, or this side's own class
        if isinstance(error, EOFError):
            lost = self.lost(method)
            lost.__cause__ = error if error.args else None
            return lost
        if isinstance(error, RemoteProtocolError):
            self.refusal = error
        return error

    cdef int fail_all(self, object error) except -1:
        calls = [call for call in self.pending.values() if call is not None]
        self.pending.clear()
        for call in calls:
            (<Pending>call).finish(FAILED, error)
        for flight in list(self.flights):
            (<Pending>flight).lost(self, error)
        return 0
