"""Who runs handlers of a gRPC plugin: the main thread, and with ``workers=N`` N - 1 more. Threads of the engine wait for them."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from fastplug.contexts import CALLS, Context
from fastplug.process.stacks import NOT_RUNNING, stack_of
from fastplug.protocols.grpc.channel import CallContext

__all__ = ["CALL_KEY", "Job", "Workers"]

# The host's number for the call, so that it can ask where the plugin is in it.
CALL_KEY = "fastplug-call"
# Headers that are the protocol's and not the caller's.
_INTERNAL = ("fastplug-", "grpc-", "user-agent", ":")
# A worker ends with the handler in hand; the process does not wait for one that takes longer (its threads are daemons).
JOIN_TIMEOUT_S = 2.0
# Without a deadline grpcio says 292 years, minus what has passed since.
NO_DEADLINE_S = 1e9


class Job:
    """One call on its way to a worker and back. ``run`` gives the outcome; ``done`` gets it."""

    def __init__(self, run: Callable[[], Any], call: CallContext) -> None:
        self.done: Future[Any] = Future()
        self._run = run
        headers = {key: value for key, value in call.invocation_metadata() if isinstance(value, str)}
        self.call = headers.get(CALL_KEY, "")
        remaining_s = call.time_remaining()
        until_ns = None if remaining_s is None or remaining_s > NO_DEADLINE_S else time.monotonic_ns() + int(remaining_s * 1e9)
        self.context = Context(until_ns, {key: value for key, value in headers.items() if not key.startswith(_INTERNAL)})
        call.add_callback(self._ended)

    def _ended(self) -> None:
        """The call is over: answered, or the caller gave up. Then a handler that runs hears of it, and one that has not begun does not."""
        if not self.done.done():
            self.done.cancel()
            self.context.cancel()

    def perform(self) -> None:
        """Runs it, unless it was cancelled."""
        if not self.done.set_running_or_notify_cancel():
            return
        try:
            outcome = self._run()
        except BaseException as error:  # noqa: BLE001  a handler must not end the plugin; whoever waits raises it
            self.done.set_exception(error)
        else:
            self.done.set_result(outcome)


class Workers:
    """Runs jobs, at most ``count`` at a time: on the thread that calls ``run``, and on count - 1 others."""

    def __init__(self, count: int) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._running: dict[int, Job] = {}  # thread -> what it runs
        self._stopping = threading.Event()
        self._main: int | None = None
        self._threads = [threading.Thread(target=self._work, name=f"fastplug worker {i + 1}", daemon=True) for i in range(count - 1)]
        self.calls = 0

    def post(self, job: Job) -> None:
        """From any thread. After ``stop`` the job is cancelled."""
        self._jobs.put(job)
        if self._stopping.is_set():
            job.done.cancel()

    def run(self) -> None:
        """Runs jobs until ``stop``, and those in hand to their end."""
        self._main = threading.get_ident()
        for thread in self._threads:
            thread.start()
        self._work()
        for thread in self._threads:
            thread.join(JOIN_TIMEOUT_S)

    def _work(self) -> None:
        here = threading.get_ident()
        CALLS.current = lambda: self._running[here].context if here in self._running else None
        try:
            while (job := self._jobs.get()) is not None and not self._stopping.is_set():
                self._running[here] = job
                self.calls += 1
                job.perform()
                del self._running[here], job  # not kept alive until the next one comes: its arguments may be large
        finally:
            CALLS.current = None
            self._jobs.put(None)  # the next worker ends, too

    def stop(self) -> None:
        """Any thread: the calls in hand are finished, then ``run`` returns. Idempotent."""
        self._stopping.set()
        self._jobs.put(None)

    def cancel_waiting(self) -> None:
        """After ``run``: calls that nobody comes to any more."""
        while not self._jobs.empty():
            job = self._jobs.get()
            if job is not None:
                job.done.cancel()

    def stack(self, call: str) -> str:
        """Where the handler of this call is, or the main thread when none runs. From a thread of the engine."""
        thread = next((thread for thread, job in list(self._running.items()) if call and job.call == call), 0)
        found = stack_of(sys._current_frames().get(thread or self._main or 0))
        return found if thread else NOT_RUNNING + found
