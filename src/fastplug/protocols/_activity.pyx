"""What is under way in a plugin besides plain calls: streams in both directions, and callbacks that were asked for.

The scheduling is in ``_serve.pyx``; here is what each frame means for the call that it belongs to.
"""

import collections
import logging
import os
import random

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from fastplug._wire cimport (
    FLAG_WAITS, FRAME_CALLBACK, FRAME_CANCEL, FRAME_CLOSE, FRAME_CREDIT, FRAME_END, FRAME_ERROR, FRAME_ITEM, FRAME_RAISE, FRAME_RELEASE, FRAME_RETURN,
    ArrayPort, Codec, FrameHeader, Link, References, decode_error, encode_error, skip_rest, skip_value,
)
from fastplug.protocols._callbacks cimport Asking, CallbackLine, Target, answer_of, target_of
from fastplug.protocols._streams cimport Incoming, Outgoing

from fastplug._wire_words import Unbuilt
from fastplug.errors import Cancelled, Closed, LocalProtocolError, RemoteError, RemoteProtocolError, ResultError

cdef extern from "pythread.h":
    unsigned long PyThread_get_thread_ident()

_log = logging.getLogger("fastplug.calls")


cdef class Activation:
    cdef int give_up(self) except -1:
        """Nobody waits for it any more."""
        self.given_up = True
        if self.context is not None:
            self.context.cancel()
        return 0

    cdef bint answerable(self, int depth) except -1:
        cdef bint submitted = self.codec.has_references and self.codec.item is None and not self.flags & FLAG_WAITS and not self.within
        if self.asynchronous or depth < (CROWDED if submitted else NESTED_MAX):
            return True
        if self.within:             # the handlers below wait for it
            self.error = RecursionError(
                f"{self.codec.qualified}() was called from within {depth} handlers that wait for each other; is the chain of callbacks endless?"
            )
        return self.within

    def way_back(self):
        """The server on whose lane the caller waits for this call, if the handler's own thread asks; else None."""
        if self.running and self.flags & FLAG_WAITS and self.thread == PyThread_get_thread_ident() and self.server.in_handler():
            return self.server
        return None


cdef class Input:
    """The stream that a method takes, as its handler gets it: an iterator, for the handler's own thread."""

    def __iter__(self):
        return self

    def __next__(self):
        cdef Activation call = self.call
        cdef Incoming feed = call.feed
        cdef Activity server = call.server
        while not feed.values:
            if self.over():
                raise StopIteration
            if call.asynchronous:
                raise LocalProtocolError(f"{call.codec.qualified}(): an asynchronous handler takes its stream with `async for`")
            if call.thread != PyThread_get_thread_ident() or not call.running or not server.in_handler():
                raise LocalProtocolError(
                    f"{call.codec.qualified}(): the stream that a method takes is iterated on the thread of its handler, while that runs"
                )
            if feed.due():
                server.credit(call.number, feed.grant())
            server.nested()
        value = feed.take()
        if feed.due() and call.thread == PyThread_get_thread_ident() and not server.sending:
            server.credit(call.number, feed.grant())
        return value

    cdef bint over(self) except -1:
        """Whether there will be no further item. Raises how the stream failed."""
        cdef Activation call = self.call
        if call.feed_closed:
            return True
        if call.feed.ended:
            if call.feed.error is not None:
                raise call.feed.error
            return True
        if call.given_up:
            raise Cancelled(f"{call.codec.qualified}(): the caller has given the call up")
        return False

    def __aiter__(self):
        if not self.call.asynchronous:
            raise LocalProtocolError(f"{self.call.codec.qualified}(): only asynchronous handlers take their stream with `async for`")
        return self

    async def __anext__(self):
        cdef Activation call = self.call
        while not call.feed.values:
            if self.over():
                raise StopAsyncIteration
            expected = call.task.expect()
            if not call.feed.values and not call.feed.ended:
                await expected
        value = call.feed.take()
        if call.feed.due():
            call.task.notify()
        return value

    def close(self) -> None:
        """Wants no more items: the caller's own generator ends. Idempotent."""
        cdef Activation call = self.call
        if not call.feed_closed:
            call.feed_closed = True
            call.feed.values.clear()
            if call.asynchronous:
                call.task.notify()
            elif call.thread == PyThread_get_thread_ident() and call.running and not call.feed.ended:
                call.server.signal(FRAME_CLOSE, call.number, NULL, 0, 0)

    def __repr__(self):
        return f"<fastplug stream for {self.call.codec.qualified}>"


cdef class PluginReferences(References):
    cdef object get_callback(self, uint64_t number, Codec codec):
        return target_of(self.server.line, number, codec, self.call)

    cdef int drop_callback(self, uint64_t number) except -1:
        self.server.line.drop(number)
        return 0

    cdef object get_stream(self, Codec codec):
        self.call.feed = Incoming()
        made = Input.__new__(Input)
        (<Input>made).call = self.call
        return made


cdef class Activity(Asking):
    """The part of a Server that is about calls which take more than one frame.

    Args:
        link, port, line: see Server.
    """

    def __init__(self, Link link not None, ArrayPort port not None, CallbackLine line=None):
        Asking.__init__(self, link, port)
        self.line = line or CallbackLine()
        self.streams = collections.deque()
        self.active = {}
        self.asked = {}
        self.next_callback = random.getrandbits(48)

    # -- what a Server does

    cdef int step(self) except -1:
        raise LocalProtocolError(f"{type(self).__name__} does not serve")

    cdef int finish(self, Activation call, int kind) except -1:
        raise LocalProtocolError(f"{type(self).__name__} does not serve")

    cdef int reply(self, Activation call) except -1:
        raise LocalProtocolError(f"{type(self).__name__} does not serve")

    def cancel(self, call: int) -> bool:
        raise LocalProtocolError(f"{type(self).__name__} does not serve")

    cdef tuple enter(self, Activation call):
        raise LocalProtocolError(f"{type(self).__name__} does not serve")

    cdef int leave(self, Activation call, tuple outer) except -1:
        raise LocalProtocolError(f"{type(self).__name__} does not serve")

    cdef int pack_error(self, object error) except -1:
        """Encodes an error that a handler raised."""
        self.port.rollback()
        return encode_error(self.enc, error)

    cdef int check_home(self) except -1:
        if not self.at_home():
            raise Closed(
                f"a handler forked, and process {os.getpid()}, the child, came back from it: only the plugin itself answers. "
                "End the child in the handler (os._exit), or use subprocess."
            )
        return 0

    # -- waiting, and the end

    cdef int check_going(self) except -1:
        """A handler has come back: nothing is answered any more when the connection ended below it."""
        if self.broken is not None:
            raise self.broken
        if self.ended:
            raise EOFError
        return 0

    cdef int check_wanted(self, bint given_up) except -1:
        """A call that nobody waits for does not begin."""
        if given_up:
            raise Cancelled("the caller gave this call up before its handler began")
        return 0

    cdef int nested(self) except -1:
        """A handler waits: what comes is taken, and what can be run is run on top of it."""
        if self.stopping:
            raise Closed("the host is gone, or has asked the plugin to end")
        self.waits += 1
        try:
            if self.group is None:
                self.step()
            else:
                self.group.step()
        except EOFError:
            self.stopping = self.ended = True
            raise Closed("the host is gone, or has asked the plugin to end") from None
        except RemoteProtocolError as error:        # whatever the handler makes of it, the connection is over
            self.broken = error
            self.stopping = True
            raise
        finally:
            self.waits -= 1
            self.receiving = False      # a signal handler that raised may have left it
        return 0

    cdef bint in_handler(self) except -1:
        return self.running_handlers() > 0 if self.group is None else self.group.runs_handler()

    cdef int running_handlers(self) noexcept:
        """1 while a handler of this lane runs, and does not wait; of several lanes of one thread the sum counts: any of them may wait."""
        return self.depth - self.waits - self.sending

    def close_streams(self) -> None:
        """Generators that have not come to their end are closed: their clean-up runs."""
        calls, self.active = list(self.active.values()), {}
        for call in calls:
            try:
                (<Activation>call).give_up()
                if (<Activation>call).out is not None and not (<Activation>call).running:
                    (<Activation>call).out.stop()
            except Exception as error:          # there is nobody to tell but the log
                _log.error("the generator of %s() raised while it was closed", (<Activation>call).codec.qualified, exc_info=error)

    cdef int let_go(self, Activation call) except -1:
        self.active.pop(call.number, None)
        call.function = call.values = None      # callbacks among them refer to the call
        if call.feed is not None:
            call.feed.ended = True
            call.feed.values.clear()
        return 0

    # -- streams that methods return

    cdef int open_stream(self, Activation call, object result) except -1:
        try:
            iterator = iter(result)
        except TypeError:
            raise ResultError(f"{call.codec.qualified} returned {type(result).__qualname__}, which cannot be iterated; declared is a stream") from None
        call.out = Outgoing(iterator, self.stream_bytes)
        self.active[call.number] = call
        return 0

    cdef int attend(self, Activation call) except -1:
        """Something has happened to an asynchronous handler: an item, the end; or it has taken of its stream."""
        if self.active.get(call.number) is not call:
            return 0                    # it has been answered meanwhile
        call.task.told = False
        if call.feed is not None and not call.feed.ended:
            self.credit(call.number, call.feed.grant())
            if call.feed_closed and not call.close_told:
                call.close_told = True
                self.signal(FRAME_CLOSE, call.number, NULL, 0, 0)
        if call.out is None:
            return self.reply(call) if call.task.done else 0
        return self.queue(call)

    cdef int advance(self, Activation call) except -1:
        """One item of a stream, or its end; or whatever an asynchronous handler tells of."""
        cdef FrameHeader header
        cdef Outgoing out = call.out
        cdef Py_ssize_t size
        if call.asynchronous and (out is None or not out.queued):
            return self.attend(call)
        out.queued = False
        if call.given_up:
            return self.end_stream(call, None)
        outer = self.enter(call)
        try:
            value = next(out.iterator)
            self.check_home()
        except StopIteration:
            return self.end_stream(call, None)
        except BaseException as error:
            if not self.at_home():
                raise
            self.check_going()
            return self.end_stream(call, error)
        finally:
            self.leave(call, outer)
        if call.given_up:
            return self.end_stream(call, None)
        try:
            size = self.make_item(&header, call.number, call.codec, value, True)
        except Exception as error:
            return self.end_stream(call, error)
        value = None
        out.sent(size)                  # before the peer can see it, and give credit for it
        self.sending = True
        try:
            self.transmit(&header, 0)
        finally:
            self.sending = False
        return self.queue(call)

    cdef int end_stream(self, Activation call, object error) except -1:
        """END, or ERROR. The generator is closed first when it has not ended by itself: it may still raise."""
        outer = self.enter(call)
        try:
            call.out.stop()
        except BaseException as raised:
            if not self.at_home():
                raise
            error = error or raised
        finally:
            self.leave(call, outer)
        self.enc.reset()
        if error is not None:
            self.pack_error(error)
        return self.finish(call, FRAME_END if error is None else FRAME_ERROR)

    # -- frames about calls that run, or did

    cdef int about(self, FrameHeader* header) except -1:
        cdef int kind = header.kind
        cdef uint32_t items
        cdef Activation call
        if kind == FRAME_RETURN or kind == FRAME_RAISE:
            return self.returned(header)
        if kind != FRAME_ERROR and not FRAME_ITEM <= kind <= FRAME_CANCEL:
            raise RemoteProtocolError(f"the host sent a frame of kind {kind}")
        call = self.active.get(header.call)
        if call is None:
            return self.passed_over(header)
        if kind == FRAME_CREDIT or kind == FRAME_CLOSE:
            if call.codec.item is None:
                raise RemoteProtocolError(f"the host sent a frame of kind {kind} about a call that returns no stream")
        elif kind != FRAME_CANCEL and call.feed is None:
            raise RemoteProtocolError(f"the host sent a frame of kind {kind} about a call that takes no stream")
        if kind == FRAME_CREDIT:
            memcpy(&items, self.dec.need(sizeof(items)), sizeof(items))
            if call.out is None:
                raise RemoteProtocolError("the host gave credit for a stream that has not begun")
            call.out.granted(items)
            if call.asynchronous:
                call.task.granted(items)
        elif kind == FRAME_CLOSE or kind == FRAME_CANCEL:
            call.give_up()
        else:
            self.fed(header, call)
            if call.task is not None:       # else it has not begun
                call.task.fed()
        return self.queue(call)

    cdef int queue(self, Activation call) except -1:
        """Lets the stream of this call go on, if it can. One that takes a stream itself waits until it has an item of that: its generator
        would wait on top of others, and hold them up."""
        cdef Outgoing out = call.out
        if out is None or out.queued or call.running:
            return 0
        if not call.given_up and (not out.may_send() or not self.goes_on(call)):
            return 0
        out.queued = True
        if self.front is None and not self.streams:
            self.front = call           # nearly always: to go through the deque takes a twentieth of an item
        else:
            self.streams.append(call)
        return 0

    cdef Activation next_stream(self):
        cdef Activation call = self.front
        if call is None:
            return self.streams.popleft()
        self.front = None
        return call

    cdef bint goes_on(self, Activation call) except -1:
        """Whether its next item comes without waiting, as far as can be told."""
        if call.asynchronous:
            return call.task.ready
        return call.feed is None or bool(call.feed.values) or call.feed.ended or call.feed_closed

    cdef int fed(self, FrameHeader* header, Activation call) except -1:
        """An item of the stream that a call takes, or its end."""
        self.unspill(header)
        try:
            if header.kind == FRAME_ITEM:
                value = call.codec.decode_fed(self.dec)
                if not call.feed_closed:
                    call.feed.arrived(value, self.prompts(header))
            else:
                if call.feed.ended:
                    raise RemoteProtocolError("the host ended a stream twice")
                if header.kind == FRAME_ERROR:
                    call.feed.error = decode_error(self.dec, call.codec.qualified, "host")
                call.feed.ended = True
        except Unbuilt as error:
            skip_rest(self.dec)
            call.feed.error, call.feed.ended = error.__cause__, True
            call.feed_closed = False
        return self.link.consumed()

    cdef bint in_hand(self, uint64_t call) noexcept:
        return call - self.hand_next < self.hand_end - self.hand_next       # unsigned

    cdef int passed_over(self, FrameHeader* header) except -1:
        """It crossed the answer of its call: the blocks that it names go back."""
        if header.call > self.last and not self.in_hand(header.call):
            raise RemoteProtocolError(f"the host sent a frame of kind {header.kind} about call {header.call}, which it never made")
        if header.kind == FRAME_CANCEL:
            self.cancel(header.call)    # it may be a plain one, below the handler that waits
        self.unspill(header)
        if header.kind == FRAME_ITEM:
            skip_value(self.dec)
        return self.link.consumed()

    # -- callbacks, while the caller waits on this lane

    cdef object ask(self, Target target, tuple args, dict kwargs):
        cdef FrameHeader header
        cdef Asked asked = Asked.__new__(Asked)
        self.let_out()
        self.sending = True
        try:
            target.encode(self.enc, args, kwargs)
            memset(&header, 0, sizeof(FrameHeader))
            self.spill(&header)
            header.kind = FRAME_CALLBACK
            self.next_callback += 1
            header.call = self.next_callback
            asked.codec = target.codec
            self.asked[header.call] = asked
            self.transmit(&header, 0)
        except BaseException:
            self.port.rollback()
            self.asked.pop(self.next_callback, None)
            raise
        finally:
            self.sending = False
        while not asked.done:
            self.nested()
            if (<Activation>target.passed.call).given_up:
                raise Cancelled(f"{target!r}: the caller has given the call up")
        if asked.error is not None:
            raise asked.error
        return asked.value

    cdef int returned(self, FrameHeader* header) except -1:
        cdef Asked asked = self.asked.pop(header.call, None)
        if asked is None:
            raise RemoteProtocolError(f"the host answered callback {header.call}, which was never asked or has been answered")
        self.unspill(header)
        try:
            asked.value = answer_of(header, self.dec, asked.codec)
        except (RemoteError, Unbuilt) as error:
            if isinstance(error, Unbuilt):
                skip_rest(self.dec)
            asked.error = error
        asked.done = True
        return self.link.consumed()

    cdef int tell_released(self) except -1:
        """On the lane of an answer, in front of it: the caller finds its callbacks released when the call is over."""
        cdef bytes payload
        cdef const unsigned char* raw
        while self.line.released and (payload := self.line.take_released()) is not None:
            raw = payload
            self.signal(FRAME_RELEASE, 0, raw, <uint32_t>len(payload), 0)
        return 0
