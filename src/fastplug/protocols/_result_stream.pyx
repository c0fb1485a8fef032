"""What a call gives that is declared to return a stream."""

from libc.stdint cimport int64_t

from fastplug._wire cimport FRAME_CLOSE
from fastplug.protocols._call cimport Caller
from fastplug.protocols._streams cimport Outgoing
from fastplug.protocols._turn cimport FAILED, GIVEN_UP, PENDING, Pending

from fastplug.errors import DeadlineExceeded, LocalProtocolError
from fastplug.protocols._drawn import Drawn
from fastplug.protocols.handle import iterated_already

cdef extern from "_atomics.h" nogil:
    int64_t fp_now_ns()

cdef extern from "pythread.h":
    unsigned long PyThread_get_thread_ident()

# An awaited item, or call, is looked at for this long before its task is suspended: about what the suspension itself takes (fast-transport, 3.8).
POLL_NS = 10_000
cdef int64_t _POLL_NS = POLL_NS
# A thread that waits for an item in the place of a task looks up this often whether the task still wants it.
cdef int64_t ASYNC_SLICE_NS = 500_000_000


cdef object stream_of(Pending call):
    cdef ResultStream stream = ResultStream.__new__(ResultStream)
    stream.call = call
    return stream


cdef class ResultStream:
    """What a call returns that is declared ``Iterator[T]``: an iterator, also for ``async for``, and a context manager.

    Items come as the plugin makes them, at most 32 ahead. Closing it, also by dropping it or from another thread while one waits for an item,
    ends the plugin's generator, and the iteration. For one thread or task at a time: a second one's next() raises LocalProtocolError.
    """

    def __iter__(self):
        return self

    def __aiter__(self):
        return self

    def __next__(self):
        cdef bint found = False
        value = self.fetch(&found)
        if not found:
            raise StopIteration
        return value

    async def __anext__(self):
        cdef bint found = False
        self.check_free()
        self.iterated = True
        try:
            feed = self.call.feed
            drawing = feed is not None and isinstance((<Outgoing>feed).iterator, Drawn)     # the loop must go on meanwhile
            if not self.closed and not self.look(1 if drawing else fp_now_ns() + _POLL_NS, True):
                import asyncio

                loop = asyncio.get_running_loop()
                while not self.look(1, True):   # another thread waits, so that an item which comes when this task is cancelled is not lost
                    await loop.run_in_executor(None, self.look, fp_now_ns() + ASYNC_SLICE_NS)
                    if self.call.until and fp_now_ns() >= self.call.until:
                        break
        finally:
            self.leave()
        value = self.fetch(&found)
        if not found:
            raise StopAsyncIteration
        return value

    def look(self, int64_t until, bint on_loop=False):
        """Waits until then: whether there is an item, or the end. For what is built on streams; ``on_loop`` as of a Call."""
        cdef Pending call = self.call
        return self.closed or bool(call.items.values) or call.state != PENDING or (<Caller>call.caller).wait(call, until, on_loop) == 1

    cdef int check_free(self) except -1:
        cdef Pending call = self.call
        if call.feed is not None and call.feed.running == PyThread_get_thread_ident():
            raise LocalProtocolError(
                f"{call.codec.qualified}(): the iterable that feeds this stream cannot take from it on the same thread, which makes its next "
                "item just now; feed the stream from an asynchronous generator instead"
            )
        if self.iterated:
            raise iterated_already(f"stream of {call.codec.qualified}()")
        return 0

    cdef int leave(self) except -1:
        self.iterated = False
        if self.closed:
            (<Caller>self.call.caller).stop_feed(self.call)
        return 0

    cdef object fetch(self, bint* found):
        self.check_free()
        self.iterated = True
        try:
            return self.take(found)
        finally:
            self.leave()

    cdef object take(self, bint* found):
        cdef Pending call = self.call
        cdef Caller caller = <Caller>call.caller
        if self.closed:
            return None
        if not call.items.values and call.state == PENDING:
            try:
                if not caller.wait(call, call.until):
                    raise DeadlineExceeded(f"{call.codec.qualified}(): the deadline came before the end of the stream")
            except BaseException:
                self.give_up()
                raise
        if call.items.values and not self.closed:
            found[0] = True
            value = call.items.take()
            if call.items.due() and call.state == PENDING:
                caller.grant(call)
            return value
        self.give_up()
        if call.state == FAILED:
            call.outcome()
        return None

    def close(self) -> None:
        """Wants no more items: the plugin's generator ends (GeneratorExit), and so does the caller's own if the call takes one. Any thread; idempotent."""
        if self.closed:
            return
        self.give_up()
        if self.iterated:
            self.call.caller.rouse(self.call)
        else:
            self.leave()

    cdef int give_up(self) except -1:
        self.closed = True
        if self.call.state == PENDING:
            self.call.caller.give_up(self.call, FRAME_CLOSE, GIVEN_UP, None)
        return 0

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    def __del__(self):
        if self.call is not None:
            self.close()

    def __repr__(self):
        return f"<fastplug stream of {self.call.codec.qualified}{', closed' if self.closed else ''}>"

    def __reduce__(self):
        raise TypeError("a stream cannot be pickled: it belongs to its connection")
