"""What the caller's event loop makes, item by item, for the thread that feeds it to a call."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterable, Callable
from concurrent.futures import Future
from typing import Any, Self

from fastplug.errors import ArgumentError, LocalProtocolError

__all__ = ["Drawn", "drawn"]

# Who is woken sets a flag and then sleeps, which is not atomic: once more after this time, until it has heard.
AGAIN_S = 0.001


class Drawn:
    """An asynchronous iterable as an iterator for another thread than its loop's.

    Raises:
        ArgumentError: no loop runs here.
    """

    def __init__(self, source: AsyncIterable[Any]) -> None:
        import asyncio  # here and not above: it takes 40 ms, and whoever has such an iterable has imported it

        self._asyncio = asyncio
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            raise ArgumentError("an asynchronous iterable is taken from a task of an event loop; elsewhere pass an ordinary one") from None
        self._source = source.__aiter__()
        self._coming: Future[tuple[bool, Any]] | None = None

    def __iter__(self) -> Self:
        return self

    def prepare(self, wake: Callable[[], bool]) -> bool:
        """Whether the next item can be had at once. If not, it is being made, and ``wake`` is called on the loop when it can, again if it
        says so. Whoever holds a connection must not wait for the loop: a task may be waiting for that, or for an answer."""
        if self._on_loop():
            return True  # which raises
        if self._coming is None:
            self._coming = self._asyncio.run_coroutine_threadsafe(self._next(), self._loop)
            self._coming.add_done_callback(lambda _: self._wake(wake))
        return self._coming.done()

    def _wake(self, wake: Callable[[], bool]) -> None:
        if wake() and self._on_loop():
            self._loop.call_later(AGAIN_S, self._wake, wake)

    def _on_loop(self) -> bool:
        try:
            return self._asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False

    def __next__(self) -> Any:
        if self._on_loop():
            raise LocalProtocolError(
                "this call takes an asynchronous iterable, which needs the loop: iterate with `async for`, await the call, or submit it"
            )
        coming, self._coming = self._coming, None
        if coming is None:
            coming = self._asyncio.run_coroutine_threadsafe(self._next(), self._loop)
        found, value = coming.result()  # the loop's end cancels it
        if not found:
            raise StopIteration
        return value

    async def _next(self) -> tuple[bool, Any]:
        """A StopIteration cannot come through a future."""
        try:
            return True, await self._source.__anext__()
        except StopAsyncIteration:
            return False, None

    def close(self) -> None:
        """Any thread: a generator runs its clean-up, on its loop."""
        coming, self._coming = self._coming, None
        if coming is not None:
            coming.cancel()
        aclose = getattr(self._source, "aclose", None)
        if aclose is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and has done that
                self._loop.call_soon_threadsafe(lambda: self._loop.create_task(_closed(aclose)))


async def _closed(aclose: Any) -> None:
    with contextlib.suppress(RuntimeError):  # it is being iterated: whoever does that was cancelled
        await aclose()


def drawn(value: Any) -> Any:
    """``value``, or what another thread can iterate in its place. Raises ArgumentError."""
    return Drawn(value) if hasattr(value, "__aiter__") and not hasattr(value, "__iter__") else value
