"""The caller's half of calls with streams and callbacks.

Whoever waits for such a call runs what belongs to it meanwhile: the caller's own generator, when the engine wants the next item, and what
the handler calls back. All that happens comes to it through one queue.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from queue import Empty
from typing import Any, Self

from fastplug._wire import pack_error
from fastplug._wire_words import Unfit
from fastplug.annotation import TypeNode
from fastplug.errors import DeadlineExceeded, LocalProtocolError, RemoteError, RemoteProtocolError, RpcError
from fastplug.protocols._drawn import Drawn, drawn
from fastplug.protocols._waiting import TimedQueue
from fastplug.protocols.grpc.callbacks import INSIDE, Asked, Callbacks, Entry
from fastplug.protocols.grpc.calls import take
from fastplug.protocols.grpc.channel import Code
from fastplug.protocols.grpc.codec import MethodCodec
from fastplug.protocols.grpc.schema import Rpc
from fastplug.protocols.grpc.streaming import BEGUN, END, Driver, RequestQueue, StreamCalls
from fastplug.protocols.handle import iterated_already

__all__ = ["Exchange", "ResultStream"]

# A thread that waits for an item in the place of a task looks up this often whether the task still wants it.
ASYNC_SLICE_S = 0.5
# Longest single wait. A signal that comes just before it does not end it, and its Python handler runs only behind it.
SLICE_S = 0.1

_WANTED = object()


class _Feed(RequestQueue):
    """The requests of a call that takes a stream: says when the engine wants the next one."""

    def __init__(self, events: TimedQueue[Any]) -> None:
        super().__init__()
        self._events = events

    def __next__(self) -> Any:
        self._events.put(_WANTED)
        return super().__next__()


class Exchange:
    """One call.

    Args: ``translate`` makes an error of the tree of the status with which it ended; ``until_s`` is its deadline; ``understands`` says
    whether the plugin is one of fastplug's, which can be told that a stream failed, and says when the handler begins. Until then the
    caller's generator does not run: a call that it makes could be taken up first, and would wait for the handler that runs on top of it.
    """

    def __init__(
        self,
        codec: MethodCodec,
        number: str,
        callbacks: Callbacks,
        translate: Callable[[RpcError], Exception],
        *,
        until_s: float | None,
        understands: bool,
    ) -> None:
        self.codec = codec
        self.until_s = until_s
        self.events: TimedQueue[Any] = TimedQueue()
        self._number = number
        self._callbacks = callbacks
        self._translate = translate
        self._understands = understands
        self._begun = not understands
        self._wanted_early = 0
        self._passed: list[Entry] = []
        self._iterator: Any = None
        self._left: list[Any] = []  # the iterator, when no more is wanted of it: whoever takes it out closes it
        self._feed: _Feed | None = None
        self._feed_error: BaseException | None = None
        self._feeding = 0  # the thread on which the iterable makes an item now
        self._driver: Driver | None = None
        self._cancel: Callable[[], None] | None = None
        self._given_up = False

    # -- Passing

    def stream(self, value: Any) -> None:
        try:
            self._iterator = iter(drawn(value))
        except TypeError:
            raise Unfit(f"{type(value).__qualname__}, which cannot be iterated") from None
        self._feed = _Feed(self.events)

    def callback(self, value: Any, node: TypeNode, rpcs: tuple[Rpc, ...]) -> int:
        entry = self._callbacks.register(value, node, rpcs, self._number)
        self._passed.append(entry)
        return entry.number

    # -- the call

    def begin(
        self, streams: StreamCalls, args: tuple[Any, ...], kwargs: dict[str, Any], timeout_s: float | None, metadata: Any, *, here: bool
    ) -> None:
        """Sends the request. ``here``: callbacks run on the thread that waits. Raises ArgumentError and its kin; nothing was sent."""
        try:
            request = self.codec.encode_arguments(args, kwargs, self)
            if self._feed is not None and not self.codec.only_stream:
                self._feed.put(request)
            if here and self._passed:
                self._callbacks.wait_here(self._number, self.events)
            requests = self._feed if self._feed is not None else (request,)
            self._driver, self._cancel = streams.begin(self.codec.path, requests, timeout_s, metadata, self.events)
        except BaseException:
            for entry in self._passed:
                self._callbacks.release(entry)
            self.finish()
            raise

    def next_event(self, timeout_s: float | None = None) -> Any:
        """A response, RpcError, END; None: nothing that concerns the reader. Raises queue.Empty."""
        event = take(self.events, timeout_s)
        if event is BEGUN:
            self._begin_feed()
            return None
        if event is _WANTED and not self._begun:
            self._wanted_early += 1
            return None
        if event is not _WANTED and not isinstance(event, Asked):
            if isinstance(event, RpcError) and event.code in (Code.CANCELLED, Code.DEADLINE_EXCEEDED):
                self._given_up = True
            return event
        INSIDE.depth += 1
        try:
            if isinstance(event, Asked):
                event.perform()
            else:
                self._feed_one()
        finally:
            INSIDE.depth -= 1
        return None

    def _begin_feed(self) -> None:
        self._begun = True
        for _ in range(self._wanted_early):
            self.events.put(_WANTED)
        self._wanted_early = 0

    def _feed_one(self) -> None:
        iterator, feed = self._iterator, self._feed
        if iterator is None or feed is None:
            return
        if isinstance(iterator, Drawn) and not iterator.prepare(self._tell_wanted):
            return
        try:
            request = self._made(iterator)
        except StopIteration:
            self._iterator = None
            feed.end()
        except BaseException as error:
            self._feed_error = error
            self.stop_feed()
            if not isinstance(error, Exception):
                raise
            if self._understands:
                feed.put(self.codec.encode_failure(pack_error(error)))
                feed.end()
            else:
                self.cancel()
        else:
            feed.put(request)

    def check_not_feeding(self) -> None:
        """Raises LocalProtocolError: this thread is in the iterable that the stream is fed from."""
        if self._feeding == threading.get_ident():
            raise LocalProtocolError(
                f"{self.codec.qualified}(): the iterable that feeds this stream cannot take from it on the same thread, which makes its "
                "next item just now; feed the stream from an asynchronous generator instead"
            )

    def _made(self, iterator: Any) -> bytes:
        """The next item. Raises StopIteration, and what the caller's iterator raises."""
        self._feeding = threading.get_ident()
        try:
            if self._iterator is not iterator:
                raise StopIteration
            return self.codec.encode_item(next(iterator))
        finally:
            self._feeding = 0
            self._close_left()

    def _tell_wanted(self) -> bool:
        """The item is there. A queue never misses it."""
        self.events.put(_WANTED)
        return False

    def taken(self) -> None:
        """The reader has taken a response: there is room for another."""
        assert self._driver is not None
        self._driver.more()

    def wait(self) -> Any:
        """The result of a method that returns a value. Raises what the call ends with."""
        response: bytes | None = None
        try:
            while True:
                event = self.next_event()  # ends with the answer, the deadline, the connection, cancel(), or Ctrl-C
                if isinstance(event, bytes):
                    response = event
                    self.taken()
                elif event is not None:
                    break
        except BaseException:
            self.cancel()
            raise
        finally:
            self.finish()
        if event is not END:
            raise self.failure(event)
        if response is None:
            raise RemoteProtocolError(f"{self.codec.qualified}(): the plugin ended the call without a response")
        return self.codec.decode_result(response)

    def failure(self, event: Any) -> BaseException:
        """The error for the end of a call that failed; what the caller's own generator raised comes first."""
        error = self._translate(event) if isinstance(event, RpcError) else event
        if self._feed_error is not None:
            return self._feed_error
        error.__cause__ = event if error is not event else None
        found: BaseException = error
        return found

    @property
    def feed_error(self) -> BaseException | None:
        """What the caller's own generator raised."""
        return self._feed_error

    @property
    def draws(self) -> bool:
        """Whether the caller's event loop makes the items that it takes."""
        return isinstance(self._iterator, Drawn)

    def cancel(self) -> None:
        """Ends the call. From any thread; idempotent."""
        self._given_up = True
        if self._cancel is not None:
            self._cancel()

    def stop_feed(self) -> None:
        """The caller's own generator runs its clean-up: now, or when it has made the item that it is at."""
        iterator, self._iterator = self._iterator, None
        if iterator is not None:
            self._left.append(iterator)
        if not self._feeding:
            self._close_left()

    def _close_left(self) -> None:
        try:
            iterator = self._left.pop()
        except IndexError:
            return
        close = getattr(iterator, "close", None)
        if close is not None:
            close()

    def finish(self) -> None:
        """Nobody waits any more. Idempotent."""
        passed, self._passed = self._passed, []
        if passed:
            self._callbacks.wait_no_more(self._number, self.events)
            for entry in passed:
                self._callbacks.call_over(entry, given_up=self._given_up and self._understands)
        self.stop_feed()


class ResultStream:
    """What a call returns that is declared ``Iterator[T]``: an iterator, also for ``async for``, and a context manager.

    Items come as the plugin makes them. Closing it, also by dropping it or from another thread while one waits for an item, ends the
    plugin's generator, and the iteration. For one thread or task at a time: a second one's next() raises LocalProtocolError.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._ready: deque[bytes] = deque()
        self._end: Any = None  # what the call ended with
        self._error: BaseException | None = None  # what that is for the caller, once it is known
        self._closed = False
        self._iterated = False  # somebody waits for an item
        self._looking = threading.Lock()  # a task that was cancelled leaves a thread behind that looks for it

    def __iter__(self) -> Iterator[Any]:
        return self

    def __aiter__(self) -> Self:
        return self

    def look(self, timeout_s: float | None) -> bool:
        """Waits at most so long: whether there is an item, or the end. Raises DeadlineExceeded."""
        if not self._its_turn(timeout_s):
            return self._closed
        try:
            while not self._ready and self._end is None and not self._closed:
                try:
                    event = self._exchange.next_event(timeout_s)  # ends with an item, the end, the deadline, the connection, or Ctrl-C
                except Empty:
                    return False
                if isinstance(event, bytes):
                    self._ready.append(event)
                elif event is not None:
                    self._end = event
        finally:
            self._looking.release()
        return True

    def _its_turn(self, timeout_s: float | None) -> bool:
        """Who looks may run the caller's generator, and nobody hears of the deadline meanwhile."""
        until_s = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._looking.acquire(timeout=SLICE_S if until_s is None else min(SLICE_S, max(0, until_s - time.monotonic()))):
            now = time.monotonic()
            if self._closed or (until_s is not None and now >= until_s):
                return False
            if self._exchange.until_s is not None and now >= self._exchange.until_s:
                raise self._late()
        return True

    def _late(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"{self._exchange.codec.qualified}(): the deadline came before the end of the stream")

    def _enter(self) -> None:
        if self._iterated:
            raise iterated_already(f"stream of {self._exchange.codec.qualified}()")
        self._iterated = True  # threads do not switch between the two: nothing is called

    def _leave(self) -> None:
        self._iterated = False
        if self._closed:
            self._exchange.finish()

    def __next__(self) -> Any:
        self._exchange.check_not_feeding()
        self._enter()
        try:
            self.look(None)
            return self._take()
        except BaseException:
            self.close()
            raise
        finally:
            self._leave()

    def _take(self) -> Any:
        if self._closed:
            raise StopIteration
        if self._ready:
            response = self._ready.popleft()
            self._exchange.taken()
            return self._exchange.codec.decode_result(response)
        end = self._end
        if end is END:
            raise StopIteration
        error = self._error or self._exchange.failure(end)
        if isinstance(error, DeadlineExceeded) and not isinstance(error, RemoteError):
            error = self._late()
        raise error

    async def _learn(self, end: RpcError) -> None:
        """Why a connection has ended takes a second to learn when the plugin's process lives on; a loop has other affairs meanwhile."""
        import asyncio

        self._error = await asyncio.to_thread(self._exchange.failure, end)

    async def __anext__(self) -> Any:
        self._enter()
        try:
            if self._exchange.draws or not self.look(0):  # the loop must go on meanwhile
                import asyncio

                loop = asyncio.get_running_loop()
                # Another thread waits, so that an item which comes when this task is cancelled is not lost.
                while not await loop.run_in_executor(None, self.look, ASYNC_SLICE_S):
                    continue
            if not self._ready and isinstance(self._end, RpcError):
                await self._learn(self._end)
        finally:
            self._leave()
        try:
            return self._take()
        except StopIteration:
            self.close()
            raise StopAsyncIteration from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Wants no more items: the plugin's generator ends (GeneratorExit), and so does the caller's own. Any thread; idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._end is None:
            self._exchange.cancel()
        if self._iterated:
            self._exchange.events.put(None)  # who waits for an item is woken, and finishes as it leaves
        else:
            self._exchange.finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<fastplug stream of {self._exchange.codec.qualified}{', closed' if self._closed else ''}>"

    def __reduce__(self) -> Any:
        raise TypeError("a stream cannot be pickled: it belongs to its connection")
