"""Sockets as byte streams, and the relay that joins two streams."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import weakref
from concurrent.futures import Future, InvalidStateError

from fastplug.protocols.grpc.channel import ByteStream

__all__ = ["WITHOUT_A_WORD", "Relay", "SocketStream"]

# Two buffers a connection; large enough that a 1 MiB message takes a handful of switches between threads.
RELAY_BUFFER_BYTES = 256 * 1024
# A pump whose two streams are shut down has nothing left to wait for; longer means a stream that breaks ByteStream.close().
RELAY_JOIN_TIMEOUT_S = 2.0

# As TLS servers, Go's and OpenSSL's, end a connection that begins without it.
WITHOUT_A_WORD = ", and had not said a word"

_live: weakref.WeakSet[SocketStream] = weakref.WeakSet()


class SocketStream:
    """A connected socket as ByteStream. Owns the socket."""

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(True)
        self._socket = connected
        _live.add(self)

    def fileno(self) -> int:
        return self._socket.fileno()

    def recv_into(self, buffer: memoryview, /) -> int:
        return self._socket.recv_into(buffer)

    def sendall(self, data: memoryview, /) -> None:
        self._socket.sendall(data)

    def close(self) -> None:
        # close() alone does not wake a thread that waits in recv.
        with contextlib.suppress(OSError):  # the peer may have been first
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def take(self) -> socket.socket:
        """The socket itself, to be handed over; the stream is closed after it."""
        _live.discard(self)
        taken, self._socket = self._socket, socket.socket()
        self._socket.close()
        return taken

    def forget(self) -> None:
        """In a forked child: gives up the copied descriptor. A shutdown would end the parent's connection."""
        self._socket.close()


def _forget_all() -> None:
    for stream in list(_live):
        stream.forget()


# A child that kept these would keep the connection open after its parent is gone.
os.register_at_fork(after_in_child=_forget_all)


class Relay:
    """Copies bytes between two streams, a thread for each direction, until one ends; then ends both. Owns both streams.

    ``closed`` gets the reason, before the inner stream ends.
    """

    def __init__(self, outer: ByteStream, inner: ByteStream) -> None:
        self.closed: Future[str] = Future()
        self._streams = (outer, inner)
        pumps = ((outer, inner, "the peer closed the connection"), (inner, outer, "the connection was closed"))
        self._threads = [threading.Thread(target=self._pump, args=pump, name="fastplug-grpc-relay", daemon=True) for pump in pumps]
        for thread in self._threads:
            thread.start()

    def _pump(self, source: ByteStream, sink: ByteStream, end: str) -> None:
        buffer = memoryview(bytearray(RELAY_BUFFER_BYTES))
        silent = source is self._streams[0]
        try:
            while size := source.recv_into(buffer):
                silent = False
                sink.sendall(buffer[:size])
        except OSError as error:
            end = f"{end} ({error.strerror or error})"
        self._end(f"{end}{WITHOUT_A_WORD}" if silent else end)

    def _end(self, reason: str) -> None:
        with contextlib.suppress(InvalidStateError):  # the other pump was first
            self.closed.set_result(reason)
        for stream in self._streams:
            stream.close()

    def close(self) -> None:
        """Ends both streams and both threads. Idempotent."""
        self._end("the connection was closed")
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(RELAY_JOIN_TIMEOUT_S)
