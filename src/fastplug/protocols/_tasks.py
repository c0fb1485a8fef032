"""Asynchronous handlers: an event loop on a thread of its own, for all lanes of a connection.

The thread that reads a lane makes the coroutine and posts it here. What becomes of it (the end, an item, room in the stream that it
takes) is told to that thread, which alone writes to the lane. Why there are two: docs/decisions/2026-11-26-asynchronous-handlers.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Self

from fastplug.contexts import TASK_CONTEXT, Context
from fastplug.errors import Cancelled, Closed
from fastplug.process.stacks import stack_of_task

__all__ = ["Producing", "Running", "Tasks"]

# At the end tasks are cancelled; clean-up may take as long as a host waits after SHUTDOWN (go-plugin: 2 s).
STOP_TIMEOUT_S = 2.0
# A reader sets its flag and then sleeps, which is not atomic: it is told again this much later if it has not heard.
AGAIN_S = 0.001


class Tasks:
    """The thread ``fastplug loop``. It starts with the first asynchronous call, and ends with the connection."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._ending: asyncio.Event | None = None
        self._closed = False

    @property
    def thread(self) -> int:
        """Its identity; 0 before the first call."""
        return (self._thread and self._thread.ident) or 0

    def loop(self) -> asyncio.AbstractEventLoop:
        """Any thread. Raises Closed."""
        if self._loop is None or self._closed:
            with self._lock:
                if self._closed:
                    raise Closed("the plugin ends; it begins no further calls")
                if self._loop is None:
                    self._start()
        assert self._loop is not None
        return self._loop

    def _start(self) -> None:
        self._loop = loop = asyncio.new_event_loop()
        self._ending = asyncio.Event()
        self._thread = threading.Thread(target=self._run, args=(loop, self._ending), name="fastplug loop", daemon=True)
        self._thread.start()

    def _run(self, loop: asyncio.AbstractEventLoop, ending: asyncio.Event) -> None:
        async def until_the_end() -> None:
            await ending.wait()

        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(until_the_end())

    def close(self) -> None:
        """Cancels what runs, and waits for its clean-up, 2 s at most. Idempotent; not from the loop's own thread."""
        with self._lock:
            self._closed = True
        if self._loop is None or self._thread is None or self._ending is None:
            return
        with contextlib.suppress(RuntimeError):  # it has ended
            self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join(STOP_TIMEOUT_S)


class Running:
    """One call whose handler is a coroutine.

    Args:
        tasks: where it runs.
        made: what the handler's function returned.
        context: of the call; its cancellation cancels the task.
        tell: called on the loop's thread when there is something to look at; whether the reader may be asleep all the same.
    """

    def __init__(self, tasks: Tasks, made: Any, context: Context, tell: Callable[[], bool]) -> None:
        self.done = False
        self.told = False  # until the reader has looked
        self._loop = tasks.loop()
        self._tasks = tasks
        self._made: Any = made
        self._value: Any = None
        self._error: BaseException | None = asyncio.CancelledError()  # of one that never began
        self._tell = tell
        self._task: asyncio.Task[None] | None = None
        self._cancelled = False
        self._expected: asyncio.Future[None] | None = None
        self._context = context

    def start(self) -> None:
        """From the reader's thread, whose context variables the handler gets. Raises RuntimeError: the loop has ended."""
        variables = contextvars.copy_context()
        variables.run(TASK_CONTEXT.set, self._context)
        self._context.add_cancel_callback(self.close)
        self._loop.call_soon_threadsafe(self._begin, context=variables)

    # -- on the loop's thread

    def _begin(self) -> None:
        self._task = self._loop.create_task(self._perform())
        self._task.add_done_callback(self._over)
        if self._cancelled:
            self._task.cancel()

    async def _perform(self) -> None:
        try:
            self._value, self._error = await self._made, None
        except BaseException as error:  # noqa: BLE001  SystemExit too: a handler must not end the loop by raising
            self._error = error

    def _over(self, _task: object) -> None:
        """No frame has the result any more, and the arguments have gone back."""
        made, self._made = self._made, None
        if isinstance(made, Coroutine):
            made.close()  # one that never began
        if self._cancelled and isinstance(self._error, asyncio.CancelledError):
            self._error = Cancelled("the caller has given the call up")
        self.done = True
        self.notify()

    def notify(self) -> None:
        """The reader is to look at this call."""
        if not self.told:
            self.told = True
            self._tell_again()

    def _tell_again(self) -> None:
        if self.told and self._tell():
            self._loop.call_later(AGAIN_S, self._tell_again)

    def expect(self) -> asyncio.Future[None]:
        """Done when something comes of the stream that the handler takes; whoever feeds it hears what was taken."""
        self._expected = expected = self._loop.create_future()
        self.notify()
        return expected

    @staticmethod
    def _wake(waiter: asyncio.Future[None]) -> None:
        if not waiter.done():
            waiter.set_result(None)

    # -- from any thread

    def _post(self, function: Callable[..., object], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and has cancelled everything
            self._loop.call_soon_threadsafe(function, *args)

    def close(self) -> None:
        """Cancels it. Idempotent."""
        self._cancelled = True
        task = self._task
        if task is not None and not self.done:
            self._post(task.cancel)

    def fed(self) -> None:
        """Something has come of the stream that it takes."""
        expected, self._expected = self._expected, None
        if expected is not None:
            self._post(self._wake, expected)

    def outcome(self) -> Any:
        """The result, which nobody else has any more. Raises what the handler raised."""
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            del error  # else a cycle with its traceback, which has what the handler had: callbacks are let go at once
        value, self._value = self._value, None
        return value

    def stack(self) -> str:
        """Where it is; empty when it is over."""
        return stack_of_task(self._made, self._tasks.thread)


class Producing(Running):
    """One call whose handler is an asynchronous generator: an iterator over its items, to be asked only while ``ready``."""

    def __init__(self, *args: Any, window: int) -> None:
        self._items: deque[Any] = deque()
        self._granted = window  # items that may be made; written by the reader's thread alone, as the next by the loop's
        self._produced = 0
        self._room: asyncio.Future[None] | None = None
        super().__init__(*args)

    async def _perform(self) -> None:
        try:
            async with contextlib.aclosing(self._made) as made:
                async for item in made:
                    self._items.append(item)
                    del item  # nobody else has it
                    self._produced += 1
                    self.notify()
                    while self._produced >= self._granted:
                        self._room = room = self._loop.create_future()
                        if self._produced >= self._granted:
                            await room
            self._error = None
        except BaseException as error:  # noqa: BLE001  as above
            self._error = error

    def granted(self, items: int) -> None:
        """The caller has taken so many: as many more may be made."""
        self._granted += items
        room, self._room = self._room, None
        if room is not None:
            self._post(self._wake, room)

    @property
    def ready(self) -> bool:
        """Whether there is an item, or the end."""
        return self.done or bool(self._items)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        if self._items:
            return self._items.popleft()
        self.outcome()
        raise StopIteration
