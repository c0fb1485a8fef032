"""The host's end of a plugin's output: both streams are read for ever, by one thread, and become log records.

A plugin whose output nobody reads blocks in write(2) once the pipe is full; so whatever logging does, this goes on reading.
Records go to the logger ``fastplug.plugin.<name>``. What the plugin said beyond level, message and traceback is on the record:
``plugin_logger`` (its own logger's name), ``plugin_timestamp`` (seconds, or None) and ``plugin_fields`` (a dict).
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import threading
from collections import deque
from collections.abc import Iterable
from typing import Final, Protocol

from fastplug.config import LOG_BUFFER_BYTES, ByteSink
from fastplug.process.hclog import LineAssembler, LogRecordFields

__all__ = ["OutputPump", "PluginOutput"]

_log = logging.getLogger("fastplug.process")

LOGGER_PREFIX: Final = "fastplug.plugin."
# As much as a Linux pipe holds by default.
READ_BYTES: Final = 64 * 1024
# Long enough for a traceback that is written line by line, short enough to be read as "at once".
IDLE_FLUSH_S: Final = 0.05
# Reads after stop(): a pipe's content many times over, and an end even if a grandchild never stops writing.
STOP_READS_MAX: Final = 64
# What an error shows of a dead plugin: a traceback of ordinary depth. 32 KiB at most.
TAIL_LINES: Final = 32
TAIL_LINE_CHARS: Final = 1024


class PluginOutput(Protocol):
    """One stream of a plugin: polled by its descriptor, read when it has something; ``b""`` or None at its end."""

    def fileno(self) -> int: ...
    def read(self, size: int, /) -> bytes | None: ...


class _Lines:
    """One stream on its way to records."""

    def __init__(
        self, stream: PluginOutput, *, tail: deque[str] | None, line_bytes: int = LOG_BUFFER_BYTES, sink: ByteSink | None = None
    ) -> None:
        self.stream = stream
        self.tail = tail
        self.sink = sink
        self._line_bytes = line_bytes  # what is longer comes in pieces
        self.assembler = LineAssembler()
        self._partial = bytearray()
        self._in_line = False  # what comes next goes on with a line of which a piece was taken

    def split(self, data: bytes) -> Iterable[LogRecordFields]:
        self._partial += data
        *lines, self._partial = self._partial.split(b"\n")
        for line in lines:
            yield from self._pieces(line)
            self._in_line = False
        whole = (len(self._partial) - 1) // self._line_bytes * self._line_bytes
        if whole > 0:
            yield from self._pieces(self._partial[:whole])
            del self._partial[:whole]

    def _pieces(self, line: bytearray) -> Iterable[LogRecordFields]:
        for start in range(0, max(len(line), 1), self._line_bytes):
            piece = bytes(line[start : start + self._line_bytes])
            yield from self.assembler.feed_rest(piece) if self._in_line else self.assembler.feed(piece)
            self._in_line = True

    def end(self) -> Iterable[LogRecordFields]:
        if self._partial:
            yield from self.split(b"\n")
        yield from self.assembler.flush()


class OutputPump:
    """Drains a plugin's stderr, and its stdout behind the handshake line, into logging. All methods are thread-safe.

    The streams stay their owner's: stop the pump before closing them. The thread is a daemon; it ends when both streams have
    ended, or by ``stop()``.

    Args: ``line_bytes``: longest line; ``sink`` gets a copy of stderr, before it is logged.
    """

    def __init__(self, name: str, stderr: PluginOutput, *, line_bytes: int = LOG_BUFFER_BYTES, sink: ByteSink | None = None) -> None:
        self.logger = logging.getLogger(LOGGER_PREFIX + name)
        self.records_lost = 0
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._lock = threading.Lock()
        self._line_bytes = line_bytes
        self._added: list[tuple[_Lines, bytes]] = [(_Lines(stderr, tail=self._tail, line_bytes=line_bytes, sink=sink), b"")]
        self._settling: list[threading.Event] = []
        self._streams_left = 2
        self._stopping = False
        self._ended = False
        self._thread = threading.Thread(target=self._run, name=f"fastplug output of {name}", daemon=True)
        self._thread.start()

    def drain(self, stdout: PluginOutput, rest: bytes = b"") -> None:
        """Hand over stdout, once, with what was already read behind the line."""
        with self._lock:
            self._added.append((_Lines(stdout, tail=None, line_bytes=self._line_bytes), rest))
        self._wake()

    def settle(self, timeout_s: float) -> bool:
        """Wait until all output written so far is logged and in ``tail()``; False if that took longer than ``timeout_s`` seconds.

        Unlike joining the thread this needs no end of file, which a surviving grandchild of the plugin can withhold.
        """
        settled = threading.Event()
        with self._lock:
            if self._ended:
                return True
            self._settling.append(settled)
        self._wake()
        return settled.wait(timeout_s)

    def tail(self) -> tuple[str, ...]:
        """The last 32 lines of stderr, for an error's text."""
        with self._lock:
            return tuple(self._tail)

    def stop(self, timeout_s: float) -> bool:
        """Log what is there, end the thread and give its descriptors back; False if it is still busy after ``timeout_s`` seconds
        (a logging handler that hangs). Idempotent."""
        with self._lock:
            self._stopping = True
        self._wake()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _wake(self) -> None:
        with self._lock:
            if not self._ended:
                with contextlib.suppress(BlockingIOError):  # full of wake-ups: it will wake
                    os.write(self._wake_write, b"\0")

    def _run(self) -> None:
        reads_left = STOP_READS_MAX
        try:
            self._selector.register(self._wake_read, selectors.EVENT_READ)
            while self._streams_left and reads_left:
                stopping, asked = self._take_requests()
                pending = any(lines.assembler.pending for lines in self._open())
                ready = self._selector.select(0 if stopping or asked else IDLE_FLUSH_S if pending else None)
                for key, _ in ready:
                    self._serve(key)
                reads_left -= stopping
                if not ready:
                    self._settle(asked)
                    reads_left *= not stopping
        finally:
            self._end()

    def _open(self) -> list[_Lines]:
        return [key.data for key in self._selector.get_map().values() if key.data is not None]

    def _take_requests(self) -> tuple[bool, list[threading.Event]]:
        """Whether to stop, and who waits for everything that was written up to now."""
        with self._lock:
            added, self._added = self._added, []
            stopping, asked = self._stopping, list(self._settling)
        for lines, rest in added:
            self._log_all(lines, lines.split(rest))
            self._selector.register(lines.stream.fileno(), selectors.EVENT_READ, lines)
        return stopping, asked

    def _serve(self, key: selectors.SelectorKey) -> None:
        lines: _Lines | None = key.data
        if lines is None:
            os.read(self._wake_read, 4096)
            return
        try:
            data = lines.stream.read(READ_BYTES)
        except (OSError, ValueError):
            data = b""  # closed under our hands, against the rule: the same as its end
        if data and lines.sink is not None:
            self._copy(lines, data)
        self._log_all(lines, lines.split(data) if data else lines.end())
        if not data:
            self._selector.unregister(key.fileobj)
            self._streams_left -= 1

    def _copy(self, lines: _Lines, data: bytes) -> None:
        try:
            assert lines.sink is not None
            lines.sink.write(data)
        except BaseException as error:  # noqa: BLE001  a user's file that is closed or full; the plugin must not block because of it
            lines.sink = None
            _log.error("what stderr= names failed to take the stderr of a plugin and gets no more of it: %r", error)

    def _settle(self, asked: list[threading.Event]) -> None:
        """Nothing more is there to read; those who asked before we looked may go on."""
        for lines in self._open():
            self._log_all(lines, lines.assembler.flush())
        with self._lock:
            for settled in asked:
                self._settling.remove(settled)
                settled.set()

    def _end(self) -> None:
        for lines in self._open():
            self._log_all(lines, lines.end())
        with self._lock:
            self._ended = True
            for settled in self._settling:
                settled.set()
            self._selector.close()
            os.close(self._wake_read)
            os.close(self._wake_write)

    def _log_all(self, lines: _Lines, records: Iterable[LogRecordFields]) -> None:
        for record in records:
            if lines.tail is not None:
                said = (record.exc_text or record.message).splitlines()[-TAIL_LINES:]
                with self._lock:
                    lines.tail.extend(line[:TAIL_LINE_CHARS] for line in said)
            self._log(record)

    def _log(self, fields: LogRecordFields) -> None:
        try:
            if not self.logger.isEnabledFor(fields.level):
                return
            extra = {"plugin_logger": fields.logger, "plugin_timestamp": fields.timestamp, "plugin_fields": fields.fields}
            record = self.logger.makeRecord(self.logger.name, fields.level, "(plugin)", 0, fields.message, (), None, None, extra)
            record.exc_text = fields.exc_text
            self.logger.handle(record)
        except BaseException:  # noqa: BLE001  a user's handler or filter; the plugin must not block because of it
            self.records_lost += 1
