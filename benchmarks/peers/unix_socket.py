"""A blocking Unix stream socket with a length prefix: what one writes by hand in an afternoon, done as well as Python allows.

One system call per message where it is small, no copy of an array before the kernel's, memory for what arrives used again.
"""

from __future__ import annotations

import socket
import struct

from .exchange import BytesPeer
from .message import Buffer, answer

__all__ = ["UnixSocket"]

_PREFIX = struct.Struct("<c7xQ")  # operation, bytes that follow; padded to align the elements of an array
FIRST_BUFFER_BYTES = 1 << 16


class Framed:
    """Whole messages over a stream socket. Requests and replies alternate, so nothing behind a message is ever read."""

    def __init__(self, stream: socket.socket) -> None:
        self.stream = stream
        self._view = memoryview(bytearray(FIRST_BUFFER_BYTES))

    def send(self, operation: bytes, body: Buffer, data: Buffer | None = None) -> None:
        size = len(body) if data is None else len(body) + len(data)
        if size < FIRST_BUFFER_BYTES:
            parts = (_PREFIX.pack(operation, size), body) if data is None else (_PREFIX.pack(operation, size), body, data)
            self.stream.sendall(b"".join(parts))
            return
        self.stream.sendall(_PREFIX.pack(operation, size) + (b"" if data is None else bytes(body)))
        self.stream.sendall(body if data is None else data)

    def receive(self) -> tuple[bytes, memoryview] | None:
        """The next message, valid until the next call; None when the other side has closed."""
        got = self.stream.recv_into(self._view)
        if not got:
            return None
        while got < _PREFIX.size:
            got += self._more(got, _PREFIX.size)
        operation, size = _PREFIX.unpack_from(self._view)
        end = _PREFIX.size + size
        if end > len(self._view):
            larger = memoryview(bytearray(end))
            larger[:got] = self._view[:got]
            self._view = larger
        while got < end:
            got += self._more(got, end)
        return operation, self._view[_PREFIX.size : end]

    def _more(self, start: int, end: int) -> int:
        got = self.stream.recv_into(self._view[start:end])
        if not got:
            raise ConnectionError("the peer closed the socket within a message")
        return got


def serve(stream: socket.socket) -> None:
    framed = Framed(stream)
    while (message := framed.receive()) is not None:
        framed.send(message[0], answer(*message))


class UnixSocket(BytesPeer):
    name = "unix_socket"
    label = "Unix socket (Python)"

    def __init__(self) -> None:
        super().__init__()
        self._framed: Framed | None = None

    def start(self) -> None:
        own, other = socket.socketpair()
        with other:
            self.spawn(serve, other)
        self._framed = Framed(own)
        self.exchange(b"E", b"")

    def exchange(self, operation: bytes, body: Buffer, data: Buffer | None = None) -> Buffer:
        assert self._framed is not None, "start() first"
        self._framed.send(operation, body, data)
        reply = self._framed.receive()
        if reply is None:
            raise ConnectionError("the server of the Unix socket has ended")
        return reply[1]

    def close(self) -> None:
        if self._framed is not None:
            self._framed.stream.close()
