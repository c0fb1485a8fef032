"""Who runs handlers of a gRPC plugin: the main thread, and with ``workers=N`` N - 1 more. Threads of the engine wait for them.

A handler that waits (for a callback's answer, for an item) lets others run on top of it. The steps of a stream stay on the thread on which
its handler ran.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from queue import Empty
from typing import Any

from fastplug.contexts import CALLS, METADATA_BYTES_MAX, METADATA_ENTRIES_MAX, Context
from fastplug.errors import RpcError
from fastplug.process.stacks import NOT_RUNNING, stack_of
from fastplug.protocols._waiting import TimedQueue
from fastplug.protocols.grpc.channel import CallContext, Code
from fastplug.protocols.grpc.errors import HOST_KEY

__all__ = ["CALL_KEY", "DEPTH_KEY", "Activation", "Job", "Worker", "Workers"]

# The host's number for the call, so that it can ask where the plugin is in it.
CALL_KEY = "fastplug-call"
# How many calls its thread is inside of, in callbacks and iterables of theirs; absent: none.
DEPTH_KEY = "fastplug-depth"
# Headers that are the protocol's and not the caller's.
_INTERNAL = ("fastplug-", "grpc-", "user-agent", ":")
# A worker ends with the handler in hand; the process does not wait for one that takes longer (its threads are daemons).
JOIN_TIMEOUT_S = 2.0
# Without a deadline grpcio says 292 years, minus what has passed since.
NO_DEADLINE_S = 1e9
# Longest sleep of a worker that has nothing to do.
SLEEP_S = 0.5
# A chain of callbacks this deep is an endless one.
NESTED_MAX = 32
# Handlers on top of each other on one thread: each takes some of its stack. From a quarter of that on only those that handlers wait for.
RUNNING_MAX = 2 * NESTED_MAX
CROWDED = RUNNING_MAX // 4


def _callers(headers: Sequence[tuple[str, str | bytes]]) -> dict[str, str]:
    """The texts that the caller sent. Raises RpcError: more than any of fastplug's hosts would; others check nothing themselves."""
    sent = [(key, value) for key, value in headers if not key.startswith(_INTERNAL)]
    size = sum(len(key) + len(value) for key, value in sent)
    if len(sent) > METADATA_ENTRIES_MAX or size > METADATA_BYTES_MAX:
        raise RpcError(
            Code.RESOURCE_EXHAUSTED,
            f"the call has metadata of {len(sent)} entries of {size} bytes; at most {METADATA_ENTRIES_MAX} of {METADATA_BYTES_MAX} "
            "are taken: send more as an argument",
        )
    return {key: value for key, value in sent if isinstance(value, str)}


class Activation:
    """One call that is being answered. Raises RpcError: it carries too much metadata."""

    def __init__(self, call: CallContext) -> None:
        sent = call.invocation_metadata()
        headers = {key: value for key, value in sent if isinstance(value, str)}
        self.number = headers.get(CALL_KEY, "")
        depth = headers.get(DEPTH_KEY, "0")
        self.depth = int(depth) if depth.isdecimal() and len(depth) < 4 else 0
        self.fastplug_host = HOST_KEY in headers
        self.finished = False
        remaining_s = call.time_remaining()
        until_ns = None if remaining_s is None or remaining_s > NO_DEADLINE_S else time.monotonic_ns() + int(remaining_s * 1e9)
        self.context = Context(until_ns, _callers(sent))
        self._waiting: Job | None = None
        self._call = call

    def begin(self) -> bool:
        """From now on it hears that the caller gave up; False: it has already."""
        return self._call.add_callback(self._ended)

    def tell_begun(self) -> None:
        """Sends the headers of the response: the handler has begun. For a thread of the engine."""
        with contextlib.suppress(ValueError):  # a response was first
            self._call.send_initial_metadata(())

    def _ended(self) -> None:
        """The call is over: answered, or the caller gave up. Then a handler that runs hears of it, and one that has not begun does not."""
        if self.finished:
            return
        if self._waiting is not None:
            self._waiting.done.cancel()
        self.context.cancel()

    def outcome(self, job: Job) -> Any:
        """What the job, which was posted, gives or raises. For a thread of the engine.

        Raises RpcError: nobody comes to it; RecursionError: it was refused.
        """
        self._waiting = job
        if self.context.cancelled:
            job.done.cancel()
        try:
            return job.done.result()  # ends with the answer, the caller's end, the plugin's, or refuse()
        except CancelledError as error:
            if self.context.cancelled:
                code = Code.DEADLINE_EXCEEDED if self.context.remaining_s == 0 else Code.CANCELLED
                raise RpcError(code, "the caller has given the call up") from error
            raise RpcError(Code.UNAVAILABLE, "the plugin ended before it came to this call") from error
        finally:
            self._waiting = None


class Job:
    """One piece of work of a call, for a worker. ``done`` gets what ``run`` gives; ``worker`` is who ran it, or who has to."""

    def __init__(self, run: Callable[[], Any], activation: Activation, worker: Worker | None = None) -> None:
        self.done: Future[Any] = Future()
        self.run = run
        self.activation = activation
        self.worker = worker

    def perform(self) -> None:
        """Runs it, unless it was cancelled."""
        if not self.done.set_running_or_notify_cancel():
            return
        try:
            outcome = self.run()
        except BaseException as error:  # noqa: BLE001  a handler must not end the plugin; whoever waits raises it
            self.done.set_exception(error)
        else:
            self.done.set_result(outcome)

    def refuse(self) -> None:
        """Handlers wait for it, and it cannot run on top of them."""
        if self.done.set_running_or_notify_cancel():
            text = (
                f"the call was made from within {self.activation.depth} others that wait for each other; is the chain of callbacks endless?"
            )
            self.done.set_exception(RecursionError(text))


class Worker:
    """One thread that runs jobs."""

    def __init__(self) -> None:
        self.steps: deque[Job] = deque()  # those that only this one may run
        self.running: list[Job] = []  # the last one runs; those before it wait
        self.thread = 0
        self._awake: TimedQueue[None] = TimedQueue()

    def wake(self) -> None:
        """From any thread: look again."""
        self._awake.put(None)

    def sleep(self) -> None:
        """Until the next wake, which may have been before, or a while."""
        with contextlib.suppress(Empty):  # then it looks by itself: a signal that comes just before the wait does not end it
            self._awake.get(timeout=SLEEP_S)
        with contextlib.suppress(Empty):
            while True:
                self._awake.get_nowait()

    def context(self) -> Context | None:
        """Of the call whose handler runs."""
        return self.running[-1].activation.context if self.running else None


class Workers:
    """Runs jobs, at most ``count`` at a time: on the thread that calls ``run``, and on count - 1 others."""

    def __init__(self, count: int) -> None:
        self._lock = threading.Lock()
        self._fresh: deque[Job] = deque()
        self._nested: deque[Job] = deque()  # that handlers wait for
        self._workers = [Worker() for _ in range(count)]
        self._idle: list[Worker] = []
        self._here = threading.local()
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._work, args=(worker,), name=f"fastplug worker {i + 1}", daemon=True)
            for i, worker in enumerate(self._workers[1:])
        ]
        self.calls = 0

    def post(self, job: Job) -> None:
        """From any thread. After ``stop`` the job is cancelled."""
        with self._lock:
            if self._stopping:
                job.done.cancel()
                return
            if job.worker is not None:
                job.worker.steps.append(job)
                job.worker.wake()
                return
            self.calls += 1
            if job.activation.depth >= NESTED_MAX:
                job.refuse()
                return
            (self._nested if job.activation.depth else self._fresh).append(job)
            self._refuse_nested()
            self._wake_one()

    def _wake_one(self) -> None:
        limit = RUNNING_MAX if self._nested else CROWDED
        for worker in reversed(self._idle):
            if len(worker.running) < limit:
                self._idle.remove(worker)
                worker.wake()
                return

    def _refuse_nested(self) -> None:
        """Without room on any stack they would wait for each other for ever."""
        if self._nested and all(len(worker.running) >= RUNNING_MAX for worker in self._workers):
            while self._nested:
                self._nested.popleft().refuse()

    def here(self) -> Worker | None:
        """The worker whose thread this is."""
        return getattr(self._here, "worker", None)

    def run(self) -> None:
        """Runs jobs until ``stop``, and those in hand to their end."""
        for thread in self._threads:
            thread.start()
        self._work(self._workers[0])
        for thread in self._threads:
            thread.join(JOIN_TIMEOUT_S)

    def _work(self, worker: Worker) -> None:
        worker.thread = threading.get_ident()
        self._here.worker = worker
        CALLS.current = worker.context
        try:
            while self._run_one(worker, lambda: self._stopping):
                pass
        finally:
            CALLS.current = None
            self.stop()  # the next worker ends, too

    def wait(self, done: Callable[[], bool]) -> None:
        """For a handler, on its thread: runs others on top until ``done()``. Who makes it so has to wake the worker."""
        worker = self.here()
        assert worker is not None
        while self._run_one(worker, done):
            pass

    def _run_one(self, worker: Worker, done: Callable[[], bool]) -> bool:
        """Runs the next job; False: ``done()`` came first."""
        job = self._next(worker, done)
        if job is None:
            return False
        job.worker = worker
        worker.running.append(job)
        try:
            job.perform()
        finally:
            worker.running.pop()
        return True

    def _next(self, worker: Worker, done: Callable[[], bool]) -> Job | None:
        while True:
            with self._lock:
                if worker in self._idle:
                    self._idle.remove(worker)
                if done():
                    if self._fresh or self._nested:
                        self._wake_one()  # it may have been woken for this one
                    return None
                if len(worker.running) < RUNNING_MAX:
                    if self._nested:
                        return self._nested.popleft()
                    if self._fresh and len(worker.running) < CROWDED:
                        return self._fresh.popleft()
                    if worker.steps:
                        return worker.steps.popleft()
                    self._idle.append(worker)
                self._refuse_nested()
            worker.sleep()

    def stop(self) -> None:
        """Any thread, and signal handlers: the calls in hand are finished, then ``run`` returns. Idempotent."""
        self._stopping = True
        for worker in self._workers:
            worker.wake()

    def cancel_waiting(self) -> None:
        """After ``run``: calls that nobody comes to any more."""
        with self._lock:
            waiting = [*self._fresh, *self._nested, *(job for worker in self._workers for job in worker.steps)]
        for job in waiting:
            job.done.cancel()

    def stack(self, call: str) -> str:
        """Where the handler of this call is, or the main thread when none runs. From a thread of the engine."""
        running = [worker for worker in self._workers if call and any(job.activation.number == call for job in list(worker.running))]
        thread = running[0].thread if running else self._workers[0].thread
        found = stack_of(sys._current_frames().get(thread))
        return found if running else NOT_RUNNING + found
