"""Where a plugin listens: a Unix socket in a temporary file, as go-plugin makes it."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import tempfile
from pathlib import Path

from fastplug.errors import ConfigError

__all__ = ["Listener"]

# A name that is taken means a collision of 40 random bits; more than a few mean something else.
NAME_ATTEMPTS_MAX = 16
# Hosts connect once; reattaching hosts and probes come one at a time.
BACKLOG = 16


class Listener:
    """A listening Unix socket ``plugin<digits>`` that only this user, or the host's chosen group, may connect to.

    Args: ``socket_dir`` for its file, the temporary directory by default; ``socket_group`` a name or number. Raises ConfigError.
    ``accept`` belongs to one thread; ``close`` may come from any.
    """

    network = "unix"

    def __init__(self, socket_dir: str | None = None, socket_group: str | None = None) -> None:
        directory = socket_dir or tempfile.gettempdir()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.address = self._bind(directory)
            self._restrict(socket_group)
            self._socket.listen(BACKLOG)
        except OSError as error:
            self._socket.close()
            raise ConfigError(
                f"the plugin cannot listen on a Unix socket in {directory}: {error.strerror or error}. "
                "Set PLUGIN_UNIX_SOCKET_DIR or TMPDIR to a short, writable path."
            ) from error

    def _bind(self, directory: str) -> str:
        for _ in range(NAME_ATTEMPTS_MAX):
            path = f"{directory}/plugin{secrets.randbits(40)}"
            if not os.path.lexists(path):
                self._socket.bind(path)
                return path
        raise FileExistsError("every name that was tried is taken")

    def _restrict(self, group: str | None) -> None:
        if group:
            owner: str | int = int(group) if group.isdecimal() else group
            try:
                shutil.chown(self.address, group=owner)
            except LookupError as error:
                raise ConfigError(f"the host wants the plugin's socket to belong to group {group!r}, which does not exist here") from error
        Path(self.address).chmod(0o660 if group else 0o600)

    def accept(self) -> socket.socket | None:
        """Waits for a connection; None after close()."""
        try:
            return self._socket.accept()[0]
        except OSError:
            if self._socket.fileno() < 0 or not os.path.lexists(self.address):
                return None
            raise

    def close(self) -> None:
        """Removes the file and ends a waiting accept(). Idempotent."""
        Path(self.address).unlink(missing_ok=True)  # closed before, or removed with its directory
        with contextlib.suppress(OSError):  # closed before
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
