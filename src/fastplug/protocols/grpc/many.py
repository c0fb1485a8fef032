"""Many calls under way over gRPC: what ``fastplug.submit`` and ``fastplug.map`` give."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from queue import Empty
from typing import TYPE_CHECKING, Any, TypeAlias

from fastplug.deadlines import remaining_s
from fastplug.errors import ArgumentError, Cancelled, DeadlineExceeded, RpcError
from fastplug.protocols._remote import Call
from fastplug.protocols._result_stream import POLL_NS
from fastplug.protocols._waiting import TimedQueue
from fastplug.protocols.grpc.calls import take
from fastplug.protocols.handle import iterated_already, returns_a_stream

if TYPE_CHECKING:
    from fastplug.protocols.grpc.client import GrpcClient, Remote
    from fastplug.protocols.grpc.exchange import Exchange

__all__ = ["GrpcCall", "GrpcMapped", "InFlight", "submitted"]

# A fastplug plugin takes twice as many and refuses more; the rest is for calls that are waited for.
IN_FLIGHT_MAX = 128
# Of a map whose calls pass callbacks: each has a server of its own.
REFERRING_MAX = 8
# To start a thread takes 50 us: it stays for the next done-callback.
READER_IDLE_S = 0.5
JOIN_TIMEOUT_S = 1.0

_log = logging.getLogger("fastplug.calls")


class InFlight:
    """The submitted calls of one connection: how many there may be, and the thread on which their done-callbacks run."""

    def __init__(self) -> None:
        self._slots: TimedQueue[None] = TimedQueue()
        for _ in range(IN_FLIGHT_MAX):
            self._slots.put(None)
        self._told: TimedQueue[Callable[[], None]] = TimedQueue()
        self._reader: threading.Thread | None = None
        self._lock = threading.Lock()

    def enter(self, what: str) -> None:
        """Waits until there is room. Raises DeadlineExceeded."""
        left_s = remaining_s()
        try:
            take(self._slots, left_s)  # ends with any answer, the deadline, or Ctrl-C
        except Empty:
            raise DeadlineExceeded(f"{what} was still waiting for other calls when its deadline ran out; nothing was sent") from None

    def leave(self) -> None:
        self._slots.put(None)

    def tell(self, act: Callable[[], None]) -> None:
        """Has ``act``, which must not raise, run on the thread ``fastplug reader``."""
        with self._lock:
            self._told.put(act)
            if self._reader is None:
                reader = threading.Thread(target=self._run, name="fastplug reader", daemon=True)
                reader.start()  # before join() can see it; it ends behind this lock
                self._reader = reader

    def _run(self) -> None:
        while True:
            try:
                act = self._told.get(timeout=READER_IDLE_S)
            except Empty:
                with self._lock:
                    if not self._told.empty():
                        continue
                    self._reader = None
                    return
            act()
            del act  # not kept until the next one comes

    def join(self) -> None:
        """Waits until all has been told, once nothing more comes."""
        reader = self._reader
        if reader is not None and reader is not threading.current_thread():
            reader.join(JOIN_TIMEOUT_S)


class GrpcCall(Call[Any]):
    """fastplug.Call over gRPC."""

    def __init__(self, client: GrpcClient, qualified: str, number: str) -> None:
        self._client = client
        self._qualified = qualified
        self._number = number
        left_s = remaining_s()
        self._until_s = None if left_s is None else time.monotonic() + left_s
        self._lock = threading.Lock()
        self._settled: TimedQueue[None] = TimedQueue()
        self._told: list[Callable[[Any], object]] | None = []
        self._value: Any = None
        self._error: BaseException | None = None
        self._decode: Callable[[Any], Any] | None = None  # what the value has still to go through
        self._decoding = threading.RLock()
        self.stop: Callable[[], None] = lambda: None

    def settle(self, value: Any, error: BaseException | None, decode: Callable[[Any], Any] | None = None) -> bool:
        """From any thread: it is done. False: it was before. ``decode`` makes the result of ``value``, on the thread of who asks for
        it: the user's constructors may run."""
        with self._lock:
            if self._told is None:
                return False
            self._value, self._error, self._decode = value, error, decode
            told, self._told = self._told, None
        self._settled.put(None)
        self._client.in_flight.leave()
        for function in told or ():
            self._client.in_flight.tell(functools.partial(self._tell, function))
        return True

    def _tell(self, function: Callable[[Any], object]) -> None:
        try:
            function(self)
        except Exception:  # noqa: BLE001  the user's own
            _log.exception("a done-callback of %s() raised", self._qualified)

    def __repr__(self) -> str:
        told = "under way" if not self.done() else "given up" if self.cancelled() else "failed" if self._error is not None else "answered"
        return f"<fastplug call of {self._qualified}, {told}>"

    def done(self) -> bool:
        return self._told is None

    def cancelled(self) -> bool:
        return isinstance(self._error, Cancelled)

    def look(self, until: int, on_loop: bool = False) -> bool:
        left_s = (until - time.monotonic_ns()) / 1e9 if until else None
        return self._wait(left_s)

    def _wait(self, timeout_s: float | None) -> bool:
        if self._told is None:
            return True
        try:
            take(self._settled, timeout_s)  # ends with the answer, the deadline, the connection, cancel(), or Ctrl-C
        except Empty:
            return self._told is None
        self._settled.put(None)  # for others who wait
        return True

    def result(self, timeout_s: float | None = None) -> Any:
        if not self._wait(timeout_s):
            raise DeadlineExceeded(f"{self._qualified}() was not answered within {timeout_s:g} s; the call goes on")
        return self._outcome()

    def _make_value(self) -> None:
        with self._decoding:
            if self._decode is None:
                return
            try:
                self._value = self._decode(self._value)
            except Exception as error:  # noqa: BLE001  malformed, or its constructor's: whoever asks for the result raises it
                self._value, self._error = None, error
            self._decode = None

    def _outcome(self) -> Any:
        if self._decode is not None:
            self._make_value()
        error = self._error
        if error is None:
            return self._value
        if isinstance(error, (Cancelled, DeadlineExceeded)):
            self._client.tell_where(error, self._number)
        raise error

    def exception(self, timeout_s: float | None = None) -> Exception | None:
        try:
            self.result(timeout_s)
        except Exception as error:
            if not self.done():
                raise
            return error
        return None

    def cancel(self) -> bool:
        self.end(Cancelled(f"{self._qualified}() was cancelled by its caller"))
        return self.cancelled()

    def end(self, error: Exception) -> None:
        if self.settle(None, error):
            self.stop()

    def expire(self) -> None:
        self.end(DeadlineExceeded(f"{self._qualified}() had no answer before the deadline; a late one will be dropped"))

    def add_done_callback(self, function: Callable[[Any], object]) -> None:
        with self._lock:
            told = self._told
            if told is not None:
                told.append(function)
                return
        function(self)

    @property
    def until_s(self) -> float | None:
        return None if self._until_s is None else self._until_s - time.monotonic()

    def __await__(self) -> Generator[Any, None, Any]:
        if not self._wait(POLL_NS / 1e9):
            from fastplug.protocols._loops import awaited  # asyncio alone takes 40 ms

            yield from awaited(self)
            if not self.done():
                self.expire()
        return self._outcome()


def submitted(remote: Remote, args: tuple[Any, ...], kwargs: dict[str, Any]) -> GrpcCall:
    """A call that nobody waits for yet. Raises what a call raises before it sends anything."""
    client, codec = remote.client, remote.codec
    what = f"{codec.qualified}()"
    if codec.streams:
        raise returns_a_stream(codec.qualified)
    client.in_flight.enter(what)
    try:
        if codec.has_references:
            exchange, number = client.exchange(remote, args, kwargs, here=False)
            call = GrpcCall(client, codec.qualified, number)
            call.stop = exchange.cancel
            threading.Thread(target=_wait_for, args=(call, exchange), name=f"fastplug call {codec.qualified}", daemon=True).start()
            return call
        request, timeout_s, number, metadata = client.prepared(remote, args, kwargs)
        call = GrpcCall(client, codec.qualified, number)

        def failed(status: RpcError) -> None:
            try:
                call.settle(None, client.failure(status, codec.qualified, what, call.until_s))
            except Exception as error:  # noqa: BLE001  malformed: whoever asks for the result raises it
                call.settle(None, error)

        def done(outcome: bytes | RpcError) -> None:
            """On a thread of the engine, which all calls need."""
            if isinstance(outcome, RpcError):
                client.in_flight.tell(functools.partial(failed, outcome))  # why a connection has ended can take a second to learn
            else:
                call.settle(outcome, None, codec.decode_result)

        made = client.begin(remote.codec.path, request, timeout_s, metadata, done)
        call.stop = lambda: client.post(made.cancel)
        return call
    except BaseException:
        client.in_flight.leave()
        raise


def _wait_for(call: GrpcCall, exchange: Exchange) -> None:
    try:
        call.settle(exchange.wait(), None)
    except BaseException as error:  # noqa: BLE001  whoever asks for the result raises it
        call.settle(None, error)


class GrpcMapped:
    """What ``fastplug.map`` gives: an iterator of results, with at most ``in_flight`` calls under way.

    For one thread at a time: a second one's next() raises LocalProtocolError.
    """

    def __init__(self, remote: Remote, arguments: Iterator[tuple[Any, ...]], in_flight: int, ordered: bool, goes_on: bool) -> None:
        self._calls: deque[_Outcome] = deque()
        self._iterated = self._closed = False
        if remote.codec.streams:
            raise returns_a_stream(remote.codec.qualified)
        self._remote = remote
        self._arguments = arguments
        self._in_flight = min(in_flight, REFERRING_MAX) if remote.codec.has_references else in_flight
        self._ordered = ordered
        self._goes_on = goes_on
        self._exhausted = False
        self._current: GrpcCall | None = None  # that is waited for
        self._done: TimedQueue[_Outcome | None] = TimedQueue()

    def __iter__(self) -> Iterator[Any]:
        return self

    def _fill(self) -> None:
        while not self._exhausted and not self._closed and len(self._calls) < self._in_flight:
            outcome: _Outcome
            try:
                args = next(self._arguments)
            except StopIteration:
                self._exhausted = True
                return
            except Exception as error:  # noqa: BLE001  raised at its place, behind the results of what was sent
                self._exhausted = True
                outcome = error
            else:
                outcome = self._submitted(args)
            self._calls.append(outcome)
            if not self._ordered:
                if isinstance(outcome, Exception):
                    self._done.put(outcome)
                else:
                    outcome.add_done_callback(self._done.put)

    def _submitted(self, args: tuple[Any, ...]) -> _Outcome:
        try:
            return submitted(self._remote, args, {})
        except ArgumentError as error:  # this and the next are this item's alone
            return error
        except DeadlineExceeded:
            return DeadlineExceeded(f"{self._remote.codec.qualified}(): the deadline was over before the call; nothing was sent")
        except Exception as error:  # noqa: BLE001  the connection's: as what the iterable raises
            self._exhausted = True
            return error

    def __next__(self) -> Any:
        if self._iterated:
            raise iterated_already(f"map of {self._remote.codec.qualified}()")
        self._iterated = True  # threads do not switch between the two: nothing is called
        try:
            self._fill()
            return self._outcome(self._next())
        except BaseException as error:
            if not self._goes_on or not isinstance(error, Exception) or isinstance(error, StopIteration):
                self._closed = True
            raise
        finally:
            self._iterated = False
            self._current = None
            if self._closed:
                self._drop()

    def _next(self) -> _Outcome:
        if self._closed or not self._calls:
            raise StopIteration
        if self._ordered:
            return self._calls.popleft()
        outcome = take(self._done)  # each that is under way comes there, however it ends; None from close()
        if outcome is None:
            raise StopIteration
        self._calls.remove(outcome)
        return outcome

    def _outcome(self, outcome: _Outcome) -> Any:
        if isinstance(outcome, Exception):
            raise outcome
        self._current = outcome  # before the question whether the map is closed, as close() asks the other way round
        try:
            if self._closed:
                raise Cancelled
            return outcome.result()
        except BaseException as error:
            outcome.cancel()  # Ctrl-C: this one has no place any more
            if self._closed and isinstance(error, Cancelled):
                raise StopIteration from None
            raise

    def close(self) -> None:
        """Cancels what is under way; there are no further results, also for a thread that waits for one. Any thread; idempotent."""
        self._closed = True
        if not self._iterated:
            self._drop()
            return
        self._done.put(None)
        current = self._current
        if current is not None:
            current.cancel()

    def _drop(self) -> None:
        while self._calls:
            outcome = self._calls.popleft()
            if isinstance(outcome, GrpcCall):
                outcome.cancel()

    def __del__(self) -> None:
        self.close()


# Of an item: its call, or why there is none.
_Outcome: TypeAlias = GrpcCall | Exception
