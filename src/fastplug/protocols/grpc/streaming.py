"""Calls that stream, so that Ctrl-C can do no harm (see ``calls.py``) and neither side runs ahead without bound.

A thread of its own drives each call: it asks the engine for the next response when the reader has room, and hands it over in a
queue. The reader touches no object of the engine. Requests are taken from the caller's iterable by the engine, as it sends them.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from typing import Any, Self

from fastplug.errors import Cancelled, RpcError
from fastplug.protocols._waiting import TimedQueue
from fastplug.protocols.grpc.calls import take
from fastplug.protocols.grpc.channel import Channel, Code, rpc_error

__all__ = ["BEGUN", "END", "Driver", "RequestQueue", "Responses", "StreamCalls"]

# Responses that may wait for the reader, beside what the engine's own windows hold.
AHEAD_MAX = 16
# A driver that was cancelled has nothing left to wait for.
JOIN_TIMEOUT_S = 2.0

# The last of what a driver puts into its outcomes, when the call ended well.
END = object()
# Before the first response, for a reader that feeds a RequestQueue: the peer's handler has begun, or the call is over.
BEGUN = object()


class RequestQueue:
    """Requests that are made one by one while the call runs: an iterator for the engine, ``put`` and ``end`` for the caller."""

    def __init__(self) -> None:
        self._waiting: SimpleQueue[Any] = SimpleQueue()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        item = self._waiting.get()  # ends with end(), which every way out of the call leads to
        if item is END:
            self._waiting.put(END)
            raise StopIteration
        return item

    def put(self, request: Any) -> None:
        self._waiting.put(request)

    def end(self) -> None:
        self._waiting.put(END)


class Driver:
    """What the thread of one call has. ``outcomes`` gets responses, then once an exception or END."""

    def __init__(self, requests: Iterable[Any], encode: Callable[[Any], bytes], outcomes: TimedQueue[Any] | None = None) -> None:
        self.outcomes: TimedQueue[Any] = TimedQueue() if outcomes is None else outcomes
        self._tells_begun = outcomes is not None and isinstance(requests, RequestQueue)
        self._room: SimpleQueue[bool] = SimpleQueue()
        for _ in range(AHEAD_MAX):
            self._room.put(True)
        self._requests = requests
        self._encode = encode
        self._broken: Exception | None = None  # what the caller's iterable raised
        self._call: Any = None
        self._cancelled = False
        self._thread: threading.Thread | None = None

    def run(self, channel: Channel, path: str, timeout_s: float | None, metadata: tuple[tuple[str, str], ...]) -> None:
        outcome: Any = END
        try:
            call = channel.stream_stream(path)(self._encoded(), timeout=timeout_s, metadata=metadata)
            self._call = call
            if self._tells_begun and not self._cancelled:
                call.initial_metadata()  # ends with the headers, the deadline, the connection, or cancel()
                self.outcomes.put(BEGUN)
            while not self._cancelled and self._room.get():
                response = next(call, END)
                if response is END:
                    break
                self.outcomes.put(response)
            else:
                outcome = RpcError(Code.CANCELLED, "the stream was cancelled")
                call.cancel()
        except ValueError as error:  # the channel was closed
            outcome = RpcError(Code.CANCELLED, str(error))
        except Exception as error:  # noqa: BLE001  each engine has its own class for a failed call
            outcome = rpc_error(error)
        finally:
            self._call = None
            if isinstance(self._requests, RequestQueue):
                self._requests.end()
            self.outcomes.put(self._broken or outcome)

    def _encoded(self) -> Iterator[bytes]:
        try:
            for request in self._requests:
                yield self._encode(request)
        except Exception as error:
            self._broken = error
            raise

    def start(self, *run: Any) -> None:
        thread = threading.Thread(target=self.run, args=run, name="fastplug-grpc-stream", daemon=True)
        thread.start()  # before join() can see it
        self._thread = thread

    def more(self) -> None:
        self._room.put(True)

    def cancel(self) -> None:
        """Ends the call. Not on the main thread: it may have been interrupted inside the engine."""
        self._cancelled = True
        self._room.put(False)
        call = self._call
        if call is not None:
            call.cancel()

    def join(self) -> None:
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(JOIN_TIMEOUT_S)


class Responses:
    """The responses of one call: an iterator, and a context manager that cancels what is left. One reader at a time.

    Raises while it is read: what the call ended with, as an error of the tree; what the caller's own iterable of requests raised.
    """

    def __init__(
        self,
        driver: Driver,
        decode: Callable[[bytes], Any],
        translate: Callable[[RpcError], Exception],
        cancel: Callable[[], None],
    ) -> None:
        self._driver = driver
        self._decode = decode
        self._translate = translate
        self._ended = False
        self._finalizer = weakref.finalize(self, cancel)  # nobody will read the rest
        self._finalizer.atexit = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        if self._ended:
            raise StopIteration
        outcome = take(self._driver.outcomes)  # ends with the answer, the deadline, the connection, cancel(), or Ctrl-C
        if isinstance(outcome, bytes):
            self._driver.more()
            return self._decode(outcome)
        self._ended = True
        error = self._error(outcome) if isinstance(outcome, RpcError) else outcome
        self._finalizer.detach()
        if error is not outcome:
            raise error from outcome
        if isinstance(error, Exception):
            raise error
        raise StopIteration

    def _error(self, status: RpcError) -> Exception:
        error = self._translate(status)
        by_cancel = not self._finalizer.alive and isinstance(error, RpcError) and error.code == Code.CANCELLED
        return Cancelled("the stream was cancelled by its reader") if by_cancel else error

    def cancel(self) -> None:
        """Ends the call; what has not been read is dropped. Idempotent, from any thread."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.cancel()


class StreamCalls:
    """Makes calls that stream over one channel, from any thread.

    Args: ``later(act)`` runs ``act`` on a thread that may touch the engine; ``metadata`` goes with each call.
    """

    def __init__(self, channel: Channel, later: Callable[[Callable[[], None]], None], metadata: tuple[tuple[str, str], ...]) -> None:
        self._channel = channel
        self._later = later
        self._metadata = metadata
        self._drivers: weakref.WeakSet[Driver] = weakref.WeakSet()
        self._lock = threading.Lock()

    def call(
        self,
        path: str,
        requests: Iterable[Any],
        timeout_s: float | None,
        *,
        metadata: tuple[tuple[str, str], ...] = (),
        encode: Callable[[Any], bytes] = bytes,
        decode: Callable[[bytes], Any] = bytes,
        translate: Callable[[RpcError], Exception] = lambda status: status,
    ) -> Responses:
        """Begins the call and waits for nothing. ``metadata`` goes beside that of all calls."""
        driver = Driver(requests, encode)
        later = self._later
        responses = Responses(driver, decode, translate, lambda: later(driver.cancel))
        self._start(driver, path, timeout_s, metadata)
        return responses

    def begin(
        self,
        path: str,
        requests: Iterable[bytes],
        timeout_s: float | None,
        metadata: tuple[tuple[str, str], ...],
        outcomes: TimedQueue[Any],
    ) -> tuple[Driver, Callable[[], None]]:
        """As ``call``, for a reader of its own: the driver, which puts into ``outcomes`` what comes, and what cancels the call."""
        driver = Driver(requests, bytes, outcomes)
        later = self._later
        self._start(driver, path, timeout_s, metadata)
        return driver, lambda: later(driver.cancel)

    def _start(self, driver: Driver, path: str, timeout_s: float | None, metadata: tuple[tuple[str, str], ...]) -> None:
        with self._lock:
            self._drivers.add(driver)
        driver.start(self._channel, path, timeout_s, (*self._metadata, *metadata))

    def close(self) -> None:
        """Ends all calls, after the channel was closed. Idempotent."""
        with self._lock:
            drivers = list(self._drivers)
        for driver in drivers:
            driver.cancel()
        for driver in drivers:
            driver.join()
