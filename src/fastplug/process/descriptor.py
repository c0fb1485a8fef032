"""Takes over a descriptor of this process, so that what C code and children write there can be had."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable

__all__ = ["DescriptorPump"]

READ_BYTES = 64 * 1024
# At close there is at most one pipe to take; if nobody takes it, the rest is given up.
CLOSE_S = 2.0


class DescriptorPump:
    """A pipe in the place of descriptor ``fd``; a thread offers what comes to ``give``, which returns how many bytes it took, from the
    front. The rest goes where the descriptor led before. ``close`` puts that back."""

    def __init__(self, fd: int, give: Callable[[bytes], int]) -> None:
        self._fd = fd
        self._give = give
        self._before = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
        self._read, write = os.pipe()
        os.dup2(write, fd)
        os.close(write)
        self._thread = threading.Thread(target=self._pump, name=f"fastplug descriptor {fd}", daemon=True)
        self._thread.start()

    def _pump(self) -> None:
        while data := os.read(self._read, READ_BYTES):  # ends when the last writer has closed it
            while data:
                data = data[self._give(data) or self._keep(data) :]
        os.close(self._read)

    def _keep(self, data: bytes) -> int:
        try:
            return os.write(self._before, data)
        except OSError:
            return len(data)  # nobody is left who could be told

    def close(self) -> None:
        """Puts the descriptor back, and takes what is in the pipe (2 s at most; a child may hold it open)."""
        os.dup2(self._before, self._fd)
        self._thread.join(CLOSE_S)
        if not self._thread.is_alive():
            os.close(self._before)
