"""How an event loop waits for the answers on one lane: it watches the link's descriptor, and reads the link when that is readable.

No thread waits in its place. The link is armed while loops wait and nobody else reads it (``_turn.pyx``); who reads it settles their calls,
too, and tells them. Every slice the loop looks by itself, for what the plugin did not write the descriptor for.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import weakref
from asyncio import events
from collections.abc import Callable, Generator
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastplug._wire import Link
    from fastplug.protocols._call import Caller
    from fastplug.protocols._remote import Call

__all__ = ["Watch", "awaited", "watch_of"]

# As often as any waiter of the host looks by itself (shm/_lane.pyx).
SLICE_S = 0.1


def awaited(call: Call[Any], caller: Caller | None = None) -> Generator[Any, None, None]:
    """Suspends the task until the call is done, or its deadline is over. Cancelling the task cancels the call.

    Args:
        call: what is awaited.
        caller: whose link brings the answer; None when only a thread knows of it.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    watch = None if caller is None else watch_of(caller, loop)

    def wake() -> None:
        if not future.done():
            future.set_result(None)

    def tell(_call: object = None) -> None:
        if watch is not None:
            watch.leave(tell)
        if events._get_running_loop() is loop:
            wake()
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(wake)

    timer = None if call.until_s is None else loop.call_at(loop.time() + call.until_s, wake)
    if watch is None:
        call.add_done_callback(tell)
    else:
        watch.enter(call, tell)
    try:
        yield from future
    except asyncio.CancelledError:
        call.cancel()
        raise
    finally:
        if timer is not None:
            timer.cancel()
        if watch is not None:  # the deadline is over, or nobody runs the task any more
            call.tell_no_more(tell)
            watch.leave(tell)


def watch_of(caller: Caller, loop: asyncio.AbstractEventLoop) -> Watch | None:
    """The loop's watch of this lane. None: a thread has to wait, for a plugin in this process, or a loop that cannot watch descriptors."""
    for reference in list(caller.watches):
        watch = reference()
        if watch is not None and watch.loop is loop:
            return watch if watch.trusted else None
    link: Link | None = caller.link
    try:
        fd = -1 if link is None else link.descriptor()
    except OSError:  # no descriptor is left
        return None
    if fd < 0:
        return None
    watch = Watch(caller, loop, fd)
    try:
        watch.begin()
    except (NotImplementedError, OSError):
        watch.drop()
        return None
    return watch


class Watch:
    """One loop, one lane. All but ``nudge``, ``end`` and ``leave`` is for the loop's own thread.

    It lasts until no call has been awaited for a slice: to watch and unwatch a descriptor takes as long as a short call. Only its loop and
    the tasks that wait keep it, so that it goes with a loop that is closed before.

    Args:
        caller: of the lane.
        fd: readable when frames have come; owned from here on.
    """

    def __init__(self, caller: Caller, loop: asyncio.AbstractEventLoop, fd: int) -> None:
        self.loop = loop
        self.barred = False  # another thread has the link, and nudges when it lets go of it
        self.trusted = True
        self._caller = caller
        self._fd = fd
        self._calls: set[Callable[[], None]] = set()  # who is told of each that is awaited
        self._used = False
        self._watching = False
        self._nudged = False
        self._self: weakref.ref[Watch] = weakref.ref(self, partial(_remove, caller.watches))

    def begin(self) -> None:
        """Raises NotImplementedError, OSError: this loop cannot watch it."""
        self._watch()
        self.loop.call_later(SLICE_S, _tick, self._self)
        self._caller.watches.append(self._self)

    def enter(self, call: Call[Any], tell: Callable[[], None]) -> None:
        """One more call is awaited; ``tell()`` is called when it is done."""
        self._used = True
        self._watch()
        self._calls.add(tell)
        self._caller.await_one()
        if not call.tell(tell):  # another thread was faster
            tell()

    def leave(self, tell: Callable[[], None]) -> None:
        """Any thread: that one is done. Idempotent."""
        with contextlib.suppress(KeyError):
            self._calls.remove(tell)
            self._caller.settled(1)

    def nudge(self) -> None:
        """Any thread: the loop looks for frames."""
        if self._nudged:
            return
        self._nudged = True
        self._call(self._look)

    def end(self) -> None:
        """Any thread: the connection is over, and has failed its calls."""
        self._call(self.drop)

    def _call(self, what: Callable[[], None]) -> None:
        if events._get_running_loop() is self.loop:
            self.loop.call_soon(what)
            return
        try:
            self.loop.call_soon_threadsafe(what)
        except RuntimeError:  # it is closed
            self.drop()

    def _watch(self) -> None:
        if not self._watching and self._fd >= 0 and self.trusted:
            self.loop.add_reader(self._fd, self._heard)
            self._watching = True

    def _unwatch(self) -> None:
        if self._watching:
            self._watching = False
            self.loop.remove_reader(self._fd)

    def _heard(self) -> None:
        link: Link | None = self._caller.link
        if not self._calls or link is None:
            self._unwatch()  # not for this loop
            return
        if not link.heard():
            self.trusted = False  # the calls under way have the timer, further ones the thread
            self._unwatch()
        self._look()

    def _look(self) -> None:
        self._nudged = False
        if not self._calls:
            return
        if not self._caller.read_ready():
            self.barred = True
            if not self._caller.read_ready():  # it may have let go of the link just before
                self._unwatch()  # readable for as long as the other one reads
                return
        self.barred = False
        if self._caller.parting:
            self._unwatch()  # at its end it is readable for ever
        else:
            self._watch()

    def tick(self) -> None:
        """A slice is over."""
        if self._fd < 0 or (not self._calls and not self._used):
            self.drop()
            return
        self._used = False
        self.loop.call_later(SLICE_S, _tick, self._self)
        self._look()

    def drop(self) -> None:
        """Watches no more. Idempotent; on any thread once the loop is closed."""
        if not self.loop.is_closed():
            self._unwatch()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        _remove(self._caller.watches, self._self)
        calls, self._calls = self._calls, set()
        self._caller.settled(len(calls))

    def __del__(self) -> None:
        if self._fd >= 0:  # its loop is closed
            os.close(self._fd)


def _remove(watches: list[weakref.ref[Watch]], reference: weakref.ref[Watch]) -> None:
    with contextlib.suppress(ValueError):
        watches.remove(reference)


def _tick(reference: weakref.ref[Watch]) -> None:
    watch = reference()
    if watch is not None:
        watch.tick()
