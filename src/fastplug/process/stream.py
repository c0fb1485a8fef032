"""The host's end of a plugin's stdout or stderr: a pipe whose readers can be sent home.

A pipe reaches end of file when its last writer is gone. A daemon that the plugin left behind may hold it for ever, and
go-plugin's Kill waits for it: here `PluginStream.close` ends every read.
"""

from __future__ import annotations

import io
import os
import select
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["PluginStream"]


class PluginStream(io.RawIOBase):
    """The reading end of a pipe made here; ``writer`` is the other end, for the child. One thread reads, any thread may close.

    ``read(n)`` gives what is there, at least one byte, and ``b""`` at the end of file or once the stream is closed.

    Raises: OSError when no descriptor is left.
    """

    def __init__(self) -> None:
        super().__init__()
        self._closing = False
        self._closer = threading.Lock()
        self._reading = threading.Lock()
        self._owner_pid = os.getpid()
        self._own_fds: list[int] = []
        self.writer = -1
        self._fd, self.writer = os.pipe()
        self._own_fds.append(self._fd)
        wake_read, self._wake_write = os.pipe()
        self._own_fds += (wake_read, self._wake_write)
        self._poller = select.poll()
        self._poller.register(self._fd, select.POLLIN)
        self._poller.register(wake_read, select.POLLIN)

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        """The pipe's descriptor, to poll. It is open until `close`."""
        if self._closing:
            raise ValueError("the stream is closed")
        return self._fd

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        with self._reading:
            if not self._closing:
                self._poller.poll()  # without a bound: a plugin may be silent for days; close() ends it
            return 0 if self._closing else os.readv(self._fd, [buffer])

    def close_writer(self) -> None:
        """Close this process's copy of ``writer``, once the child has its own: end of file cannot come before."""
        with self._closer:
            if self.writer >= 0:
                os.close(self.writer)
                self.writer = -1

    def close(self) -> None:
        """End a read in progress with end of file and give the descriptors back. Idempotent; takes a wake-up at most."""
        if os.getpid() != self._owner_pid:  # a forked copy has no reader, but may have inherited its locks
            self._reading, self._closer = threading.Lock(), threading.Lock()
        self.close_writer()
        with self._closer:
            if self._closing:
                return
            self._closing = True
            if os.getpid() == self._owner_pid and len(self._own_fds) > 1:
                os.write(self._wake_write, b"\0")
            with self._reading:
                for fd in self._own_fds:
                    os.close(fd)
            super().close()
