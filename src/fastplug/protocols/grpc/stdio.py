"""stdout and stderr as a stream of their own (go-plugin: GRPCStdio): the plugin's feed, and the host's reader. Imports no protobuf.

A plugin under a foreign host gives what it prints to whoever calls StreamStdio. Before the host comes, and while it reads slowly, a pipe's
worth is kept; what does not fit goes where it went without the stream: into the log.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import io
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from fastplug.process.descriptor import DescriptorPump

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["STDERR", "STDOUT", "StdioFeed", "streamed", "streamed_descriptors"]

# go-plugin's numbers of the two channels.
STDOUT, STDERR = 1, 2
# What a pipe holds, and so what go-plugin lets a plugin print before it waits for its host.
PENDING_BYTES_MAX = 64 * 1024
# A host that reads nothing for this long hangs, or will never read: the log is better than a print() that does not return.
WRITE_TIMEOUT_S = 10.0
# One message. go-plugin sends 1 KiB; a host that receives 4 MiB takes this, too.
CHUNK_BYTES_MAX = 32 * 1024


class StdioFeed:
    """Takes what is printed, gives it to the one reader. Thread-safe."""

    def __init__(self) -> None:
        self._pending: collections.deque[tuple[int, bytes]] = collections.deque()
        self._bytes = 0
        self._reader: object = None
        self._ended = False
        self._flushes: list[Callable[[], None]] = []
        self._changed = threading.Condition(threading.Lock())

    def write(self, channel: int, data: bytes) -> int:
        """Keeps ``data`` for the reader; returns how many bytes of it, from the front. Waits, at most 10 s, for a reader that is slow."""
        until = time.monotonic() + WRITE_TIMEOUT_S
        with self._changed:
            while not self._ended and self._bytes >= PENDING_BYTES_MAX and self._reader is not None:
                if not self._changed.wait(until - time.monotonic()) and time.monotonic() >= until:
                    return 0
            if self._ended:
                return 0
            taken = data[: min(CHUNK_BYTES_MAX, PENDING_BYTES_MAX - self._bytes)]
            if taken:
                self._pending.append((channel, taken))
                self._bytes += len(taken)
                self._changed.notify_all()
            return len(taken)

    def read(self, reader: object) -> Iterator[tuple[int, bytes]]:
        """What was printed, for one reader at a time: a new one takes over. Ends with ``leave`` and ``end``."""
        with self._changed:
            self._reader = reader
            self._changed.notify_all()
        while True:
            with self._changed:
                while not self._pending and self._reader is reader and not self._ended:
                    self._changed.wait()  # ended by write, read, leave or end
                if self._reader is not reader or not self._pending:
                    return
                item = self._pending.popleft()
                self._bytes -= len(item[1])
                self._changed.notify_all()
            yield item

    def leave(self, reader: object) -> None:
        """That reader's call is over."""
        with self._changed:
            if self._reader is reader:
                self._reader = None
            self._changed.notify_all()

    def before_end(self, flush: Callable[[], None]) -> None:
        """``flush`` writes what is still on its way; called once, at the end, the last one first."""
        self._flushes.append(flush)

    def end(self) -> None:
        """No more is taken; a reader gets what there is, and then the end. Idempotent."""
        while self._flushes:
            self._flushes.pop()()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


class _Writer(io.RawIOBase):
    """One of the two channels as a file. What the feed does not take goes to the descriptor, which is logged."""

    def __init__(self, write: Callable[[int, bytes], int], channel: int) -> None:
        self._write, self._channel = write, channel
        self._owner_pid = os.getpid()

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._channel  # 1 and 2 in both worlds

    def write(self, data: ReadableBuffer, /) -> int:
        taken = self._write(self._channel, bytes(data)) if os.getpid() == self._owner_pid else 0  # nobody reads a forked child's copy
        return taken or os.write(self._channel, data)


@contextlib.contextmanager
def streamed(feed: StdioFeed) -> Iterator[None]:
    """sys.stdout and sys.stderr go into ``feed``. What C code and children write to the descriptors does not."""
    before = sys.stdout, sys.stderr
    made = []
    for stream, channel in zip(before, (STDOUT, STDERR), strict=True):
        _flush(stream)
        encoding = getattr(stream, "encoding", None) or "utf-8"
        buffered = io.BufferedWriter(_Writer(feed.write, channel))
        made.append(io.TextIOWrapper(buffered, encoding, "backslashreplace", line_buffering=True))
    sys.stdout, sys.stderr = made
    for stream in made:
        feed.before_end(functools.partial(_flush, stream))
    try:
        yield
    finally:
        feed.end()
        for stream in made:
            _flush(stream)
        sys.stdout, sys.stderr = before


@contextlib.contextmanager
def streamed_descriptors(feed: StdioFeed) -> Iterator[None]:
    """What is written to descriptors 1 and 2 goes into ``feed``: print(), C code, children. Records of the log do not."""
    for channel, stream in ((STDOUT, sys.stdout), (STDERR, sys.stderr)):
        _flush(stream)
        pump = DescriptorPump(channel, functools.partial(feed.write, channel))
        feed.before_end(pump.close)  # takes what is in the pipe
        feed.before_end(functools.partial(_flush, stream))
    try:
        yield
    finally:
        feed.end()


def _flush(stream: object) -> None:
    with contextlib.suppress(Exception):  # None under pythonw, or an object of the user
        stream.flush()  # type: ignore[attr-defined]
