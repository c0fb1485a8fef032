"""Pairs of relayed connections, both ends of which are ours, and what a test does with them."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from fastplug.config import Tls
from fastplug.net.relay import Joint, MuxSession, Relay
from fastplug.net.tls import auto_mtls, one_time_identity

__all__ = ["WAIT_S", "end", "exactly", "mux_pair", "read_all", "tls_pair", "trusting_sides"]

# Everything here takes milliseconds; a machine that is swapping takes longer.
WAIT_S = 60.0


def trusting_sides() -> tuple[Tls, Tls]:
    """Host's and plugin's, which trust each other; the plugin's key is of the curve that go-plugin uses."""
    host, plugin = one_time_identity(), one_time_identity("P-521")
    return auto_mtls(host, plugin.certificate_pem), auto_mtls(plugin, host.certificate_pem)


@contextlib.contextmanager
def tls_pair(relay: Relay, client: Tls, server: Tls) -> Iterator[tuple[Joint, Joint]]:
    here, there = socket.socketpair()
    connecting, listening = relay.tls(here, client, server=False), relay.tls(there, server, server=True)
    yield connecting, listening
    connecting.close()
    listening.close()


@contextlib.contextmanager
def mux_pair(
    relay: Relay, client: Tls | None = None, server: Tls | None = None, **limits: float
) -> Iterator[tuple[MuxSession, MuxSession]]:
    here, there = socket.socketpair()
    host, plugin = relay.mux(here, client=True, tls=client, **limits), relay.mux(there, client=False, tls=server, **limits)
    yield host, plugin
    host.close()
    plugin.close()
    plugin.closed.result(WAIT_S)


def end(joint: Joint | None) -> socket.socket:
    assert joint is not None
    assert joint.socket is not None
    joint.socket.settimeout(WAIT_S)
    return joint.socket


def exactly(sock: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        piece = sock.recv(count - len(found))
        assert piece, "it ended too early"
        found += piece
    return found


def read_all(sock: socket.socket) -> bytes:
    found = bytearray()
    while piece := sock.recv(1 << 16):
        found += piece
    return bytes(found)
