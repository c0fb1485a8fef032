"""Methods of an interface as handlers of a gRPC server: what reaches a thread of the engine is done by the workers."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Self

from fastplug.annotation import MISSING, TypeNode
from fastplug.errors import Cancelled, LocalProtocolError, RemoteProtocolError, ResultError, RpcError
from fastplug.interfaces import is_asynchronous
from fastplug.protocols.grpc.channel import CallContext, Code, Handler, HandlerKind
from fastplug.protocols.grpc.codec import MethodCodec
from fastplug.protocols.grpc.errors import status_of
from fastplug.protocols.grpc.schema import Rpc
from fastplug.protocols.grpc.targets import Targets
from fastplug.protocols.grpc.workers import Activation, Job, Worker, Workers

if TYPE_CHECKING:
    from fastplug.protocols.grpc.awaiting import Awaiting

__all__ = ["PENDING_CALLS_MAX", "Serving"]

# Calls that may wait for the main thread, each on a thread of the engine; the ones beyond are told so at once.
PENDING_CALLS_MAX = 240
# Items of a stream that wait for the handler, beside what HTTP/2 has under way.
AHEAD_MAX = 32

_END = object()


class Input:
    """The stream that a method takes, as its handler gets it: an iterator, for the handler's own thread."""

    def __init__(self, codec: MethodCodec, activation: Activation, workers: Workers) -> None:
        self._codec = codec
        self._activation = activation
        self._workers = workers
        self._arrived: deque[bytes] = deque()
        self._room = threading.BoundedSemaphore(AHEAD_MAX)
        self._changed = threading.Condition()
        self._waiter: Worker | None = None
        self._ended = self._closed = False
        self._begun = threading.Event()

    def begin(self) -> None:
        """The handler begins. Only now the caller hears that it may feed the stream: a call that its generator makes runs on top then."""
        self._begun.set()

    def read(self, requests: Iterator[bytes]) -> None:
        """Takes what comes, on a thread of its own, until the stream or the call ends."""
        try:
            self._begun.wait()  # ended by begin() or close()
            self._activation.tell_begun()
            for request in requests:
                self._room.acquire()  # ended by the handler, which takes an item, or by close()
                if self._closed:
                    return
                self.arrived(request)
        except Exception:  # noqa: BLE001  the engine's own kind: the call has ended
            self._activation.context.cancel()
        finally:
            self._ended = True
            self._tell()

    def arrived(self, request: bytes) -> None:
        self._arrived.append(request)
        self._tell()

    def _tell(self) -> None:
        with self._changed:
            self._changed.notify_all()
        waiter = self._waiter
        if waiter is not None:
            waiter.wake()

    def _is_ready(self) -> bool:
        return bool(self._arrived) or self._ended or self._closed or self._activation.context.cancelled

    def await_item(self) -> None:
        """Until there is something for the handler; for a thread of the engine."""
        with self._changed:
            self._changed.wait_for(self._is_ready)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        while True:
            if not self._arrived and not self._closed:
                self._wait()
            if self._activation.context.cancelled:
                raise Cancelled(f"{self._codec.qualified}(): the caller has given the call up")
            if not self._arrived:
                raise StopIteration
            request = self._arrived.popleft()
            self._give_room()
            item = self._codec.decode_item(request)
            if item is not MISSING:
                return item

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        import asyncio

        while True:
            if not self._is_ready():
                await asyncio.to_thread(self.await_item)
            if self._activation.context.cancelled:
                raise Cancelled(f"{self._codec.qualified}(): the caller has given the call up")
            if not self._arrived:
                raise StopAsyncIteration
            request = self._arrived.popleft()
            self._give_room()
            item = self._codec.decode_item(request)
            if item is not MISSING:
                return item

    def _give_room(self) -> None:
        try:
            self._room.release()
        except ValueError:  # the first request takes no room
            return

    def _wait(self) -> None:
        worker = self._workers.here()
        if worker is None or not worker.running or worker.running[-1].activation is not self._activation:
            raise LocalProtocolError(
                f"{self._codec.qualified}(): the stream that a method takes is iterated on the thread of its handler, while that runs"
            )
        self._waiter = worker
        self._workers.wait(self._is_ready)

    def close(self) -> None:
        """Wants no more items: the caller's own generator ends when the call does. Idempotent."""
        self._closed = True
        self._begun.set()
        self._arrived.clear()
        self._give_room()
        self._tell()

    def __repr__(self) -> str:
        return f"<fastplug stream for {self._codec.qualified}>"


class _Received:
    """What stands for streams and callbacks in the arguments of one call."""

    def __init__(self, activation: Activation, stream: Input | None, targets: Targets) -> None:
        self._activation = activation
        self._input = stream
        self._targets = targets

    def stream(self) -> Any:
        return self._input

    def callback(self, number: int, node: TypeNode, rpcs: tuple[Rpc, ...]) -> Any:
        return self._targets.target(number, node, rpcs, self._activation)


class _Call:
    """One call of one method, for the engine's thread that has it."""

    def __init__(self, serving: Serving, codec: MethodCodec, function: Callable[..., Any], context: CallContext) -> None:
        self._serving = serving
        self._codec = codec
        self._asynchronous = is_asynchronous(function)
        self._function = self._awaited(function) if self._asynchronous else function
        self._activation = Activation(context)
        if not self._activation.begin():
            self._activation.context.cancel()
        self._input: Input | None = None
        self._items: Any = None  # what the handler of a stream returned
        self._worker: Worker | None = None

    def run(self, requests: Iterator[bytes] | bytes) -> Any:
        """Has the handler run: its response, as bytes, or the stream it returns is open. Raises RpcError."""
        request = requests if isinstance(requests, bytes) else self._open_input(requests)
        if self._codec.has_references:
            args, kwargs = self._checked(self._guarded(lambda: self._arguments(request)))  # dials; not while a worker waits for it
            return self._on_worker(lambda: self._handled(args, kwargs))
        return self._on_worker(lambda: self._handled(*self._arguments(request)))

    def _awaited(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """An asynchronous handler as a thread of the engine calls it."""
        awaiting = self._serving.awaiting()
        run = awaiting.items if self._codec.streams else awaiting.result_of
        return lambda *args, **kwargs: run(function(*args, **kwargs), self._activation)

    def _open_input(self, requests: Iterator[bytes]) -> bytes:
        self._input = opened = Input(self._codec, self._activation, self._serving.workers)
        first = b""
        if not self._codec.only_stream:
            first = next(requests, b"")
            opened.arrived(first)  # it may have an item, too
        self._activation.context.add_cancel_callback(opened.close)
        threading.Thread(target=opened.read, args=(requests,), name="fastplug-grpc-items", daemon=True).start()
        return first

    def _arguments(self, request: bytes) -> tuple[list[Any], dict[str, Any]]:
        return self._codec.decode_arguments(request, _Received(self._activation, self._input, self._serving.targets))

    def _handled(self, args: list[Any], kwargs: dict[str, Any]) -> Any:
        if self._input is not None:
            self._input.begin()
        result = self._function(*args, **kwargs)
        if not self._codec.streams:
            return self._codec.encode_result(result)
        try:
            self._items = iter(result)
        except TypeError:
            text = f"{self._codec.qualified} returned {type(result).__qualname__}, which cannot be iterated; declared is a stream"
            raise ResultError(text) from None
        return None

    def items(self) -> Iterator[bytes]:
        """The stream that the handler returned, an item at a time: the next one when the engine has room for it."""
        try:
            while True:
                if self._input is not None and not self._asynchronous:  # its generator would hold a worker up; a task takes items by itself
                    self._input.await_item()
                item = self._on_worker(self._step)
                if item is _END:
                    return
                yield item
        finally:
            self._end_items()

    def _step(self) -> Any:
        try:
            item = next(self._items)
        except StopIteration:
            self._items = None
            return _END
        except BaseException:
            self._items = None
            raise
        return self._codec.encode_result(item)

    def _end_items(self) -> None:
        """A generator that is left runs its clean-up, on the thread that ran the rest of it."""
        items, self._items = self._items, None
        close = getattr(items, "close", None)
        if close is not None:
            job = Job(close, self._activation, self._worker)
            self._serving.workers.post(job)
            job.done.add_done_callback(self._log_close)

    def _log_close(self, done: Any) -> None:
        if not done.cancelled() and done.exception() is not None:
            self._serving.log_failed_close(self._codec.qualified, done.exception())

    def _on_worker(self, run: Callable[[], Any]) -> Any:
        if self._asynchronous:
            return self._checked(self._guarded(run))  # the event loop runs it; this thread only waits
        job = Job(lambda: self._guarded(run), self._activation, self._worker)
        self._serving.workers.post(job)
        try:
            return self._checked(self._activation.outcome(job))
        except RecursionError as error:
            return self._checked(status_of(error, fastplug_host=self._activation.fastplug_host))
        finally:
            self._worker = job.worker
            del job  # it has the error, whose traceback has this frame

    def _guarded(self, run: Callable[[], Any]) -> Any:
        """What ``run`` gives, or RpcError for whatever it raises: a handler must not end the plugin.

        It is returned without its cause, whose traceback would keep what the handler had: callbacks are let go at once.
        """
        try:
            return run()
        except RemoteProtocolError as error:
            return RpcError(Code.INVALID_ARGUMENT, error.args[0])
        except BaseException as error:  # noqa: BLE001  the caller gets it
            return status_of(error, fastplug_host=self._activation.fastplug_host)

    def _checked(self, found: Any) -> Any:
        try:
            if isinstance(found, RpcError):
                self._activation.finished = True
                raise found
            return found
        finally:
            del found  # else a cycle with its traceback

    def end(self) -> None:
        """The answer is complete."""
        self._activation.finished = True
        if self._asynchronous:
            self._serving.awaiting().over(self._activation.number)
        if self._input is not None:
            self._input.close()


class Serving:
    """Handlers for the methods of interfaces.

    Args: ``workers`` run what the user wrote; ``targets`` are what it gets for callbacks; ``log_failed_close`` is told the method and the
    error when a generator's clean-up fails.
    """

    def __init__(self, workers: Workers, targets: Targets, log_failed_close: Callable[[str, BaseException], None]) -> None:
        self.workers = workers
        self.targets = targets
        self.log_failed_close = log_failed_close
        self._slots = threading.BoundedSemaphore(PENDING_CALLS_MAX)
        self._lock = threading.Lock()
        self._awaiting: Awaiting | None = None

    def awaiting(self) -> Awaiting:
        """Where asynchronous handlers run."""
        from fastplug.protocols.grpc.awaiting import Awaiting  # asyncio alone takes 40 ms

        with self._lock:
            self._awaiting = self._awaiting or Awaiting()
            return self._awaiting

    def stack(self, call: str) -> str:
        """Where the handler of this call is, by the host's number for it. From a thread of the engine."""
        return (self._awaiting.stack(call) if self._awaiting is not None else "") or self.workers.stack(call)

    def close(self) -> None:
        """Ends asynchronous handlers. Idempotent."""
        if self._awaiting is not None:
            self._awaiting.close()

    def handler(self, codec: MethodCodec, function: Callable[..., Any]) -> Handler:
        """A handler for the engine's threads: posts what is to be done to the workers, and waits for it."""

        def unary(requests: Any, context: CallContext) -> bytes:
            with self._slot():
                call = _Call(self, codec, function, context)
                try:
                    found: bytes = call.run(requests)
                    return found
                finally:
                    call.end()

        def stream(requests: Any, context: CallContext) -> Iterator[bytes]:
            with self._slot():
                call = _Call(self, codec, function, context)
                try:
                    call.run(requests)
                    yield from call.items()
                finally:
                    call.end()

        kinds = {
            (False, False): HandlerKind.UNARY,
            (False, True): HandlerKind.SERVER_STREAM,
            (True, False): HandlerKind.CLIENT_STREAM,
            (True, True): HandlerKind.BIDI,
        }
        return Handler(kinds[codec.takes_stream, codec.streams], stream if codec.streams else unary)

    def _slot(self) -> _Slot:
        return _Slot(self._slots)


class _Slot:
    """One of those calls that may wait. Raises RpcError: there is none."""

    def __init__(self, slots: threading.BoundedSemaphore) -> None:
        self._slots = slots

    def __enter__(self) -> None:
        if not self._slots.acquire(blocking=False):
            raise RpcError(Code.RESOURCE_EXHAUSTED, f"{PENDING_CALLS_MAX} calls wait already; the plugin comes to no more")

    def __exit__(self, *exc_info: object) -> None:
        self._slots.release()
