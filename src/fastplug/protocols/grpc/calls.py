"""How calls leave and outcomes come back, so that Ctrl-C can do no harm.

grpcio guards its state with Python locks. KeyboardInterrupt can strike between taking one and the `with` that gives it back, and then no
call on the channel ever ends. Signals reach the main thread only, so the main thread touches no object of the engine: another
thread makes its calls, and it waits in a TimedQueue, which has no such moment. Other threads make theirs themselves.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from fastplug.errors import RpcError
from fastplug.protocols._waiting import TimedQueue
from fastplug.protocols.grpc.channel import Channel, Code, rpc_error

__all__ = ["Calls", "UnaryCall", "take"]

# The thread that makes calls has nothing to wait for but its queue.
JOIN_TIMEOUT_S = 2.0

_T = TypeVar("_T")


def take(queue: TimedQueue[_T], timeout_s: float | None = None) -> _T:
    """The next of a queue. Waits in slices, also without a time: Ctrl-C is never missed. Raises queue.Empty after ``timeout_s``."""
    return queue.get(math.inf if timeout_s is None else timeout_s)


class UnaryCall:
    """One unary call. ``done`` is given its outcome once: the response, or RpcError."""

    def __init__(
        self,
        path: str,
        request: bytes,
        timeout_s: float | None,
        metadata: tuple[tuple[str, str], ...],
        done: Callable[[bytes | RpcError], object],
    ) -> None:
        self._done = done
        self._path = path
        self._request = request
        self._timeout_s = timeout_s
        self._metadata = metadata
        self._pending: Any = None  # kept: grpcio cancels a call whose future nobody holds

    def start(self, channel: Channel) -> None:
        try:
            made = channel.unary_unary(self._path)
            self._pending = made.future(self._request, timeout=self._timeout_s, metadata=self._metadata)
            self._pending.add_done_callback(self._finish)
        except ValueError as error:  # the channel was closed
            self._done(RpcError(Code.CANCELLED, str(error)))

    def _finish(self, pending: Any) -> None:
        try:
            failed = pending.exception()
            outcome = pending.result() if failed is None else rpc_error(failed)
        except Exception as error:  # noqa: BLE001  a cancelled future raises its engine's own kind of error
            outcome = RpcError(Code.CANCELLED, str(error))
        self._pending = None  # before the caller wakes: its finalizer takes grpcio's locks, too, and must not run on the main thread
        self._done(outcome)

    def cancel(self) -> None:
        pending = self._pending
        if pending is not None:
            pending.cancel()


class Calls:
    """Unary calls over one channel, from any thread. ``metadata`` goes with each."""

    def __init__(self, channel: Channel, metadata: tuple[tuple[str, str], ...]) -> None:
        self._channel = channel
        self._metadata = metadata
        self._posted: TimedQueue[Callable[[], None] | None] = TimedQueue()
        self._maker = threading.Thread(target=self._make, name="fastplug-grpc-calls", daemon=True)
        self._maker.start()

    def _make(self) -> None:
        while (act := self._posted.get()) is not None:
            act()
            del act  # not kept until the next one comes: requests may be large

    def post(self, act: Callable[[], None]) -> None:
        """Has ``act``, which must not raise or wait, run on the thread that may touch the engine. For any thread; dropped after close()."""
        self._posted.put(act)

    def unary(self, path: str, request: bytes, timeout_s: float | None, metadata: tuple[tuple[str, str], ...] = ()) -> bytes:
        """The response; ``metadata`` goes beside that of all calls. Raises RpcError; KeyboardInterrupt at once, which cancels the call."""
        done: TimedQueue[bytes | RpcError] = TimedQueue()
        call = UnaryCall(path, request, timeout_s, (*self._metadata, *metadata), done.put)
        self._start(call)
        try:
            outcome = take(done)  # ends with the answer, the deadline, the connection, or Ctrl-C
        except BaseException:
            self.post(call.cancel)
            raise
        if isinstance(outcome, RpcError):
            raise outcome
        return outcome

    def _start(self, call: UnaryCall) -> None:
        if threading.current_thread() is threading.main_thread():
            self.post(functools.partial(call.start, self._channel))
        else:
            call.start(self._channel)

    def begin(
        self,
        path: str,
        request: bytes,
        timeout_s: float | None,
        metadata: tuple[tuple[str, str], ...],
        done: Callable[[bytes | RpcError], object],
    ) -> UnaryCall:
        """Makes a call and waits for nothing: ``done`` is told the outcome, on a thread of the engine."""
        call = UnaryCall(path, request, timeout_s, (*self._metadata, *metadata), done)
        self._start(call)
        return call

    def run(self, act: Callable[[], Any]) -> Any:
        """What ``act`` gives or raises, on a thread that may touch the engine; it must not wait for long."""
        if threading.current_thread() is not threading.main_thread():
            return act()
        outcome: TimedQueue[tuple[Any, BaseException | None]] = TimedQueue()

        def perform() -> None:
            try:
                outcome.put((act(), None))
            except BaseException as error:  # noqa: BLE001  whoever waits raises it
                outcome.put((None, error))

        self.post(perform)
        found, error = take(outcome)  # ends with ``act``, or Ctrl-C
        if error is not None:
            raise error
        return found

    def send(self, path: str, request: bytes, timeout_s: float, told: Callable[[bytes | RpcError], object]) -> UnaryCall:
        """Makes a call and waits for nothing: ``told`` gets the outcome. It is cancelled when nobody holds what this returns."""
        call = UnaryCall(path, request, timeout_s, self._metadata, told)
        self.post(functools.partial(call.start, self._channel))
        return call

    def close(self) -> None:
        """Ends the thread; after the channel was closed, so that nobody waits any more. Idempotent."""
        self._posted.put(None)
        if threading.current_thread() is not self._maker:
            self._maker.join(JOIN_TIMEOUT_S)
