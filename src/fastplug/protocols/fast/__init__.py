"""The fast protocol: compiled frames and values over shared memory, or over a plain Unix socket. docs/wire.md specifies it."""

from __future__ import annotations

from fastplug.protocol import Protocol
from fastplug.protocols.fast.client import connect
from fastplug.protocols.fast.server import serve

__all__ = ["PROTOCOL"]

PROTOCOL = Protocol("fast", connect, serve)
