"""The host's reader of a plugin's stdout and stderr (go-plugin: SyncStdout, SyncStderr)."""

from __future__ import annotations

import codecs
import logging
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

from fastplug.protocols.grpc.channel import Channel, Code, code_of
from fastplug.protocols.grpc.messages import STREAM_STDIO, StdioData
from fastplug.protocols.grpc.stdio import STDERR, STDOUT

if TYPE_CHECKING:
    from fastplug.config import ByteSink

__all__ = ["HostStdio"]

# How long the stream may take to begin; the connection is there already.
BEGIN_TIMEOUT_S = 2.0
JOIN_TIMEOUT_S = 2.0
# A line without an end is logged in pieces of this many characters.
LINE_CHARACTERS_MAX = 16 * 1024

_NAMES = {STDOUT: "stdout", STDERR: "stderr"}


class HostStdio:
    """Reads StreamStdio on a thread, as long as the plugin lives: else a plugin blocks when a pipe's worth is printed (go-plugin's do).

    Args: ``sinks`` get the bytes of their channel, on that thread; what has no sink is logged line by line with ``logger``.
    """

    def __init__(self, channel: Channel, sinks: Mapping[int, ByteSink], logger: logging.Logger) -> None:
        self._channel = channel
        self._sinks = dict(sinks)
        self._logger = logger
        self._lines = {number: _Lines(logger) for number in _NAMES}
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fastplug-grpc-stdio", daemon=True)
        self._thread.start()
        self._begun.wait(BEGIN_TIMEOUT_S)

    def _run(self) -> None:
        try:
            stream = self._channel.unary_stream(STREAM_STDIO, None, StdioData.FromString)(b"")
            self._begun.set()
            for item in stream:
                self._take(item.channel, item.data)
        except Exception as error:  # noqa: BLE001  the engine's own kind of error: the connection has ended, or there is no such service
            if code_of(error) == Code.UNIMPLEMENTED:
                self._logger.debug("stdio service not available, stdout/stderr syncing unavailable")
        self._begun.set()
        for lines in self._lines.values():
            lines.end()

    def _take(self, number: int, data: bytes) -> None:
        sink = self._sinks.get(number)
        if sink is not None:
            try:
                sink.write(data)
            except Exception:
                self._logger.exception("sync_%s= raised; the plugin's output goes to the log from here on", _NAMES[number])
                del self._sinks[number]
        elif number in self._lines:
            self._lines[number].take(data)

    def join(self, timeout_s: float = JOIN_TIMEOUT_S) -> None:
        """Waits until all that came has been taken, once the stream is at its end."""
        if self._thread is not threading.current_thread():
            self._thread.join(timeout_s)


class _Lines:
    """Bytes as log records, one for each line."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._partial = ""

    def take(self, data: bytes) -> None:
        *lines, self._partial = (self._partial + self._decoder.decode(data)).split("\n")
        if len(self._partial) > LINE_CHARACTERS_MAX:
            lines, self._partial = [*lines, self._partial], ""
        for line in lines:
            if line.strip():
                self._logger.info("%s", line.rstrip("\r"))

    def end(self) -> None:
        self.take(b"\n" if self._partial else b"")
