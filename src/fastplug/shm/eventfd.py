"""Eventfds between two processes: one side writes, event loops of the other side watch.

Both share one open file, so each may make the other's reads and writes block, or read what is not for it. That is why the side that
watches never reads without RWF_NOWAIT and never writes at all, and looks for frames by itself as often as every other waiter.
"""

from __future__ import annotations

import contextlib
import os
from typing import Self

from fastplug.errors import RemoteProtocolError

__all__ = ["Eventfd"]

_LINK = "anon_inode:[eventfd]"
# An honest peer writes once per publication, of which another thread may have had one or two.
FALSE_ALARMS_MAX = 16


class Eventfd:
    """Closed with its last user."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._position = -1
        self._false_alarms = 0

    @classmethod
    def create(cls) -> Self:
        """Raises OSError: no descriptor is left."""
        return cls(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))

    @classmethod
    def accept(cls, fd: int, peer: str) -> Self | None:
        """One that the peer sent. None: this kernel cannot read it safely (before 5.8), or does not say what it is. Owns ``fd``.

        Raises RemoteProtocolError: it is something else, which might block who watches it.
        """
        received = cls(fd)
        try:
            kind = os.readlink(f"/proc/self/fd/{fd}")
            if kind != _LINK:
                raise RemoteProtocolError(f"{peer} sent {kind!r} as an eventfd")
            received._clear()
        except OSError:
            return None
        return received

    def _clear(self) -> None:
        """It is not readable any more, until it is written again. Raises OSError where that cannot be done without perhaps waiting."""
        with contextlib.suppress(BlockingIOError):
            os.preadv(self.fd, [bytearray(8)], -1, os.RWF_NOWAIT)

    def heard(self, position: int, *, more: bool) -> bool:
        """It was readable. False: so often for nothing that it is not to be watched any more.

        Args:
            position: what has been taken out of the ring.
            more: there is something to take.
        """
        try:
            self._clear()
        except OSError:
            return False
        self._false_alarms = 0 if more or position != self._position else self._false_alarms + 1
        self._position = position
        return self._false_alarms <= FALSE_ALARMS_MAX

    def __del__(self) -> None:
        os.close(self.fd)
