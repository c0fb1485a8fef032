"""How a host reaches a plugin that listens."""

from __future__ import annotations

import socket

from fastplug.errors import HandshakeError, RemoteProtocolError

__all__ = ["dial"]


def dial(network: str, address: str, *, timeout_s: float) -> socket.socket:
    """A connected socket.

    Args: ``network`` and ``address`` are fields 3 and 4 of the handshake line: ``unix`` and a path, or ``tcp`` and ``ip:port``.
    Raises RemoteProtocolError for anything else, HandshakeError when nobody answers there.
    """
    try:
        if network == "unix":
            return _dial_unix(address, timeout_s)
        host, _, port = address.rpartition(":")
        if network != "tcp" or not port.isdecimal():
            raise RemoteProtocolError(f"the plugin listens on {network!r} {address!r}; a host knows unix with a path and tcp with ip:port")
        connected = socket.create_connection((host.strip("[]") or "localhost", int(port)), timeout_s)  # ":1234" as Go reads it
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # as go-plugin's host
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except (OSError, OverflowError) as error:
        raise HandshakeError(
            f"the plugin said that it listens on {network} {address}, and cannot be reached there: {error}. "
            "It ended meanwhile, or runs where this address means something else (a container)."
        ) from error
    connected.settimeout(None)
    return connected


def _dial_unix(path: str, timeout_s: float) -> socket.socket:
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connected.settimeout(timeout_s)
        connected.connect(path)
        connected.settimeout(None)
    except BaseException:
        connected.close()
        raise
    return connected
