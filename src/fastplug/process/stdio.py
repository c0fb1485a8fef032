"""The plugin's end of stdout, stderr and logging while it serves.

    fd 1, as the host made it   kept as a private duplicate: only the handshake line goes there
    fd 1, from now on           a pipe; a thread turns what print(), C code and children write into records of the logger "stdout"
    fd 2                        stays what it is; records go to a private duplicate, one hclog JSON line per write
    root logger                 gets a handler that writes there, so that level and traceback reach the host intact

Handlers that the user configured stay, except plain StreamHandlers of the root logger to this process's stdout or stderr: the same
records would reach the host twice, the second time as text without a level. They are put back by ``close()``. The root logger
follows the host's level unless the user has set one that is not the default (WARNING); then the handler alone follows the host.
Exceptions that nobody catches, in any thread, become one record each, unless the user has installed a hook of his own.
"""

from __future__ import annotations

import codecs
import fcntl
import logging
import os
import select
import sys
import threading
from types import TracebackType
from typing import Final

from fastplug.errors import HandshakeError
from fastplug.process.hclog import format_record

__all__ = ["HclogHandler", "PluginStdio"]

# What a handler that holds the GIL in C code can print before it has to wait for the drain thread, which needs the GIL.
# The default limit for unprivileged processes (/proc/sys/fs/pipe-max-size).
PIPE_BYTES: Final = 1 << 20
READ_BYTES: Final = 64 * 1024
# Longer lines come in pieces, each of which fits hclog's 64 KiB a line; JSON may need twelve bytes for a character that is not ASCII.
PIECE_CHARS: Final = 5_000
ASCII_PIECE_CHARS: Final = 20_000
# A prompt or a progress bar has no newline; half a second after its last character it is logged all the same.
PARTIAL_LINE_S: Final = 0.5
# At close the drain thread has at most one pipe to format; if the host does not read, the rest is given up.
CLOSE_S: Final = 2.0
# A host that sets no level (Go) filters by itself; below INFO, libraries say more than anyone reads.
DEFAULT_LEVEL: Final = logging.INFO


class HclogHandler(logging.Handler):
    """Writes each record as one line of hclog JSON in one write. Thread-safe, as every logging handler."""

    def __init__(self, fd: int, level: int = logging.NOTSET) -> None:
        super().__init__(level)
        self.fd = fd

    def emit(self, record: logging.LogRecord) -> None:
        self.write(format_record(record).encode("ascii") + b"\n")

    def write(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self.fd, data) :]
        except OSError:
            return  # the host is gone, and with it everybody who could be told


class PluginStdio:
    """Takes over stdout and logging of this process until ``close()``. Make one per process, before anything is served.

    Args: ``log_level`` is the host's (FASTPLUG_LOG_LEVEL) as a logging level, None where it sets none.
    Raises: HandshakeError if this process has no stdout.
    """

    def __init__(self, log_level: int | None = None) -> None:
        self._closed = False
        try:
            self._line_fd = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 3)
        except OSError as error:
            raise HandshakeError(
                "this process has no stdout, and the handshake line must go there. Start it with stdout open (a pipe)."
            ) from error
        self._log_fd = _private_duplicate(2)
        self._handler = HclogHandler(self._log_fd, DEFAULT_LEVEL if log_level is None else log_level)
        self._root = logging.getLogger()
        self._root_level_before = self._root.level
        self._replaced = [handler for handler in self._root.handlers if _writes_to_stdio(handler)]
        self._take_logging()
        self._take_stdout()
        self._take_exceptions()

    def write_line(self, text: str) -> None:
        """Write the handshake line, with its newline, to the stdout that the host made.

        Raises: HandshakeError if nobody reads it.
        """
        data = text.encode("utf-8", "surrogateescape") + b"\n"
        try:
            while data:
                data = data[os.write(self._line_fd, data) :]
        except OSError as error:
            raise HandshakeError(f"the handshake line could not be written to stdout ({error}): the host is gone or closed it.") from error

    def set_level(self, level: int) -> None:
        """Follow the host's level. Thread-safe."""
        self._handler.setLevel(level)
        if self._root_level_before in (logging.NOTSET, logging.WARNING):
            self._root.setLevel(level)

    def close(self) -> None:
        """Log what is still in the pipe (waits 2 s at most) and put everything back. Idempotent.

        The hooks for uncaught exceptions stay: the exception that ends a plugin comes after this.
        """
        if self._closed:
            return
        self._closed = True
        _flush(sys.stdout)
        os.dup2(self._line_fd, 1)
        os.close(self._line_fd)
        self._reconfigure(line_buffering=self._line_buffering_before)
        os.write(self._stop_write, b"\0")
        self._drain.join(CLOSE_S)
        self._root.removeHandler(self._handler)
        for handler in self._replaced:
            self._root.addHandler(handler)
        self._root.setLevel(self._root_level_before)
        if not self._drain.is_alive():  # else it is in the middle of a write, and the process is about to end
            self._handler.acquire()
            self._handler.fd = 2
            self._handler.release()
            for fd in (self._log_fd, self._stop_read, self._stop_write, self._pipe_read):
                os.close(fd)

    def _take_logging(self) -> None:
        for handler in self._replaced:
            self._root.removeHandler(handler)
        self._root.addHandler(self._handler)
        self.set_level(self._handler.level)

    def _take_stdout(self) -> None:
        self._pipe_read, pipe_write = os.pipe()
        self._stop_read, self._stop_write = os.pipe()
        try:
            fcntl.fcntl(pipe_write, getattr(fcntl, "F_SETPIPE_SZ", 1031), PIPE_BYTES)
        except OSError:
            pass  # another kernel, or its budget for pipes is used up: 64 KiB do until the drain thread runs
        os.dup2(pipe_write, 1)
        os.close(pipe_write)
        os.set_blocking(self._pipe_read, False)
        self._drain = threading.Thread(target=self._drain_stdout, name="fastplug stdout", daemon=True)
        self._drain.start()
        # What was printed before is still in Python's buffer: it goes to the log, not into the handshake line.
        _flush(sys.stdout)
        self._line_buffering_before = bool(getattr(sys.stdout, "line_buffering", False))
        self._reconfigure(line_buffering=True)

    def _reconfigure(self, *, line_buffering: bool) -> None:
        reconfigure = getattr(sys.stdout, "reconfigure", None)
        if reconfigure is not None:  # else the user has put something of his own there
            reconfigure(line_buffering=line_buffering)

    def _drain_stdout(self) -> None:
        poller = select.poll()
        poller.register(self._pipe_read, select.POLLIN)
        poller.register(self._stop_read, select.POLLIN)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        partial = ""
        while True:
            ready = poller.poll(PARTIAL_LINE_S * 1000 if partial else None)
            data = self._read_pipe()
            *lines, partial = (partial + decoder.decode(data)).split("\n")
            if partial and (not ready or len(partial) >= ASCII_PIECE_CHARS):
                lines, partial = [*lines, partial], ""
            for line in lines:
                self._print(line)
            if not data and ready:  # told to stop, or nobody is left who could write, and the pipe is empty
                break
        self._print(partial + decoder.decode(b"", final=True))

    def _read_pipe(self) -> bytes:
        try:
            return os.read(self._pipe_read, READ_BYTES)
        except BlockingIOError:
            return b""

    def _print(self, line: str) -> None:
        if not line.strip() or self._handler.level > logging.INFO:
            return
        step = ASCII_PIECE_CHARS if line.isascii() and line.isprintable() else PIECE_CHARS
        line = line.rstrip("\r")
        for start in range(0, len(line), step):
            self._handler.handle(logging.LogRecord("stdout", logging.INFO, "(stdout)", 0, line[start : start + step], None, None))

    def _take_exceptions(self) -> None:
        if sys.excepthook is sys.__excepthook__:
            sys.excepthook = self._uncaught
        if threading.excepthook is threading.__excepthook__:
            threading.excepthook = self._uncaught_in_thread

    def _uncaught(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        self._log_uncaught("uncaught", error, trace)

    def _uncaught_in_thread(self, args: threading.ExceptHookArgs, /) -> None:
        if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
            where = args.thread.name if args.thread is not None else "a thread"
            self._log_uncaught(f"uncaught in {where}", args.exc_value, args.exc_traceback)

    def _log_uncaught(self, prefix: str, error: BaseException, trace: TracebackType | None) -> None:
        text = f"{prefix}: {type(error).__name__}: {_text_of(error)}"
        record = logging.LogRecord("uncaught", logging.ERROR, "(uncaught)", 0, text, None, (type(error), error, trace))
        self._handler.handle(record)


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001  a user's __str__; the traceback is shown all the same
        return "<its text cannot be shown>"


def _private_duplicate(fd: int) -> int:
    """A duplicate that children do not get; of /dev/null where ``fd`` is closed."""
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    except OSError:
        return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)


def _flush(stream: object) -> None:
    try:
        stream.flush()  # type: ignore[attr-defined]  # None under pythonw, or an object of the user
    except Exception:  # noqa: BLE001, S110  nothing can be said about stdout on stdout, and nothing depends on it
        pass


def _writes_to_stdio(handler: logging.Handler) -> bool:
    streams = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    return type(handler) is logging.StreamHandler and any(handler.stream is stream for stream in streams)
