"""What the parts of the relay process share: one thread that waits for descriptors and for time, and the control socket to the owner.

Nothing in it blocks. Every part says what it waits for (`Loop.watch`), and takes what comes.
"""

from __future__ import annotations

import collections
import json
import select
import socket
import time
from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["BUFFER_BYTES", "HELD_BYTES_MAX", "READ", "WRITE", "Control", "Loop", "Piece", "Timed"]

Piece = bytes | memoryview

# One read or write; as large as a window of yamux, so that a full one goes through at once.
BUFFER_BYTES = 256 * 1024
# What a joint holds back for a side that does not take it, before it stops reading from the other one.
HELD_BYTES_MAX = 256 * 1024
# A command carries at most a chain of certificates and a key.
MESSAGE_BYTES_MAX = 128 * 1024
# Descriptors in one command: the peer's socket and the private one.
FDS_MAX = 2
# Messages for an owner that does not read (it holds the GIL, or is stopped). The connections they speak of are bounded, too.
MESSAGES_HELD_MAX = 4096

READ, WRITE = select.POLLIN, select.POLLOUT


class Timed(Protocol):
    """Something that has to act by itself at some time."""

    def next_timeout_s(self, now_s: float) -> float | None: ...
    def poll(self, now_s: float) -> None: ...


class Loop:
    """Descriptors, times, and what is to be done once all that came in this round was taken.

    Args: ``broken(part, error)`` is told of a part that raised: it ends that one, and the others go on.
    """

    def __init__(self, broken: Callable[[object, Exception], None]) -> None:
        self._broken = broken
        self._poller = select.poll()
        self._handlers: dict[int, tuple[int, Callable[[int], None]]] = {}
        self._flushes: dict[Callable[[], None], None] = {}
        self.timed: set[Timed] = set()
        self.now_s = time.monotonic()
        self.over = False

    def watch(self, fd: int, events: int | None, handler: Callable[[int], None]) -> None:
        """Calls ``handler(events)`` when ``fd`` is ready for one of ``events``, or hung up; None watches it no more."""
        known = self._handlers.get(fd)
        if events is None:
            if known is not None:
                del self._handlers[fd]
                self._poller.unregister(fd)
        elif known is None or known[0] != events:
            self._handlers[fd] = (events, handler)
            self._poller.register(fd, events)

    def later(self, flush: Callable[[], None]) -> None:
        """Calls ``flush`` once, at the end of this round: what belongs together leaves together."""
        self._flushes[flush] = None

    def run(self) -> None:
        """Until ``over``."""
        while not self.over:
            for fd, events in self._poller.poll(self._timeout_ms()):
                self.now_s = time.monotonic()
                found = self._handlers.get(fd)  # None: an earlier handler of this round closed it
                if found is not None:
                    self._run(found[1], events)
            self.now_s = time.monotonic()
            for one in list(self.timed):
                self._run(one.poll, self.now_s)
            while self._flushes:
                flush = next(iter(self._flushes))
                del self._flushes[flush]
                self._run(flush)

    def _run(self, act: Callable[..., None], *args: Any) -> None:
        try:
            act(*args)
        except Exception as error:  # noqa: BLE001  a bug, in what one connection does
            self._broken(getattr(act, "__self__", None), error)

    def _timeout_ms(self) -> float | None:
        times = [left_s for one in self.timed if (left_s := one.next_timeout_s(self.now_s)) is not None]
        return min(times) * 1000 + 1 if times else None  # poll() counts whole milliseconds


class Control:
    """The relay's end of the control socket: JSON objects with descriptors, one a packet."""

    def __init__(
        self,
        loop: Loop,
        connected: socket.socket,
        command: Callable[[dict[str, Any], list[int]], None],
        gone: Callable[[], None],
    ) -> None:
        connected.setblocking(False)
        self._gone = gone
        self._closed = False
        self._socket = connected
        self._loop = loop
        self._command = command
        self._held: collections.deque[tuple[bytes, socket.socket | None]] = collections.deque()
        loop.watch(connected.fileno(), READ, self._ready)

    def say(self, what: dict[str, Any], passed: socket.socket | None = None) -> None:
        """Tells the owner, as soon as it listens. ``passed`` is sent along and closed here."""
        self._held.append((json.dumps(what).encode(), passed))
        if self._closed:
            self._drop_held()
        elif len(self._held) > MESSAGES_HELD_MAX:
            self._gone()  # it has not read for longer than anything it could be told is worth
        else:
            self._flush()

    def _flush(self) -> None:
        while self._held:
            message, passed = self._held[0]
            try:
                socket.send_fds(self._socket, [message], [] if passed is None else [passed.fileno()])
            except (BlockingIOError, InterruptedError):
                break
            except OSError:  # the owner is gone
                self._gone()
                return
            if passed is not None:
                passed.close()
            self._held.popleft()
        self._loop.watch(self._socket.fileno(), READ | WRITE if self._held else READ, self._ready)

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._flush()
        while not self._closed:
            try:
                message, fds, flags, _ = socket.recv_fds(self._socket, MESSAGE_BYTES_MAX, FDS_MAX, socket.MSG_DONTWAIT)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                message, fds, flags = b"", [], 0
            if not message:
                self._gone()
                return
            command = json.loads(message)
            if flags & socket.MSG_CTRUNC:
                command["lost"] = True  # this process has no descriptor left
            self._command(command, fds)

    def close(self) -> None:
        """What nobody has read is dropped. Idempotent."""
        if not self._closed:
            self._closed = True
            self._loop.watch(self._socket.fileno(), None, self._ready)
            self._socket.close()
            self._drop_held()

    def _drop_held(self) -> None:
        for _, passed in self._held:
            if passed is not None:
                passed.close()
        self._held.clear()
