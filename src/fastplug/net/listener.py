"""Where a plugin listens, as go-plugin does: a Unix socket in a temporary file, or a TCP port of the host's range on 127.0.0.1."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import socket
import tempfile
from pathlib import Path

from fastplug.errors import ConfigError

__all__ = ["Listener", "TcpListener", "listen"]

# A name that is taken means a collision of 40 random bits; more than a few mean something else.
NAME_ATTEMPTS_MAX = 16
# Hosts connect once; reattaching hosts and probes come one at a time.
BACKLOG = 16


def listen(
    network: str, *, socket_dir: str | None = None, socket_group: str | None = None, ports: tuple[int, int] = (0, 0)
) -> Listener | TcpListener:
    """What listens on ``network``, "unix" or "tcp". Raises ConfigError when there is no place to listen at."""
    return TcpListener(*ports) if network == "tcp" else Listener(socket_dir, socket_group)


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


class TcpListener:
    """The first free port of a range on 127.0.0.1, or any with 0 and 0. Every user of the machine can connect to it: use it with TLS.

    Args: ``min_port`` and ``max_port``, both included. Raises ConfigError. Threads as of ``Listener``.
    """

    network = "tcp"

    def __init__(self, min_port: int = 0, max_port: int = 0) -> None:
        self._closed = False
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            self._bind(range(min_port, max_port + 1))
            self._socket.listen(BACKLOG)
        except OSError as error:
            self._socket.close()
            raise ConfigError(
                f"couldn't bind plugin TCP listener: no port from {min_port} to {max_port} of 127.0.0.1 is free: {error.strerror or error}."
                " Give the host a wider range (min_port=, max_port=)."
            ) from error
        host, port = self._socket.getsockname()
        self.address = f"{host}:{port}"

    def _bind(self, ports: range) -> None:
        for port in ports:
            try:
                self._socket.bind(("127.0.0.1", port))
                break
            except OSError as error:
                if error.errno not in (errno.EADDRINUSE, errno.EACCES) or port == ports[-1]:
                    raise

    def accept(self) -> socket.socket | None:
        """Waits for a connection; None after close()."""
        try:
            connected = self._socket.accept()[0]
        except OSError:
            if self._socket.fileno() < 0 or self._closed:
                return None
            raise
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connected

    def close(self) -> None:
        """Ends a waiting accept(). Idempotent."""
        self._closed = True
        with contextlib.suppress(OSError):  # closed before
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
