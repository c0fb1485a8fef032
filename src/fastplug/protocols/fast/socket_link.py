"""Frames over a plain Unix socket: the reference implementation, and what is used where shared memory is missing."""

from __future__ import annotations

import select
import socket
import threading
import time

from fastplug._wire import PyLink
from fastplug.errors import DeadlineExceeded, RemoteProtocolError

__all__ = ["FRAME_BYTES_MAX", "SocketLink"]

HEADER_BYTES = 32
# wire.md: a message has at most 1 GiB, and arrays are inline here.
FRAME_BYTES_MAX = (1 << 32) - 1
# Larger buffers mean fewer switches between the two processes on large arrays; the kernel caps them at its own limit.
BUFFER_BYTES = 4 << 20
# Longest single sleep: Python turns a signal into KeyboardInterrupt when poll returns EINTR, so this is for the peer's end only.
SLICE_S = 0.5


class SocketLink(PyLink):
    """A Link over a connected stream socket, which it owns. One user at a time; ``peer_gone`` and ``wake`` from any thread."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        self._socket = sock
        sock.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
        self._frame = bytearray(HEADER_BYTES)
        self._have = 0
        self._ended = False
        self._close_lock = threading.Lock()
        self._readable = select.poll()
        self._readable.register(sock, select.POLLIN)
        self._writable = select.poll()
        self._writable.register(sock, select.POLLOUT)

    def send_frame(self, frame: bytes | memoryview, until_s: float | None) -> None:
        """Sends one frame. The deadline holds until its first byte is out: half a frame cannot be taken back."""
        view = memoryview(frame)
        started = False
        while view:
            try:
                sent = self._socket.send(view, socket.MSG_NOSIGNAL)
                view, started = view[sent:], started or sent > 0
            except BlockingIOError:
                self._wait_writable(until_s if not started else None)
            except OSError as error:
                raise EOFError("the socket is closed") from error

    def _wait_writable(self, until_s: float | None) -> None:
        left_s = SLICE_S if until_s is None else min(SLICE_S, until_s - time.monotonic())
        if left_s <= 0:
            raise DeadlineExceeded("the plugin did not take the call before the deadline: its socket is full; nothing was sent")
        self._writable.poll(left_s * 1000)

    def receive_frame(self, until_s: float | None) -> bytes | None:
        """The next frame; None when the time is up. What has come of a frame is kept for the next call."""
        while True:
            need = HEADER_BYTES if self._have < HEADER_BYTES else self._size()
            if self._have == need and need >= HEADER_BYTES and self._have >= self._size():
                frame, self._frame, self._have = bytes(self._frame), bytearray(HEADER_BYTES), 0
                return frame
            if len(self._frame) < need:
                self._frame.extend(bytes(need - len(self._frame)))
            if not self._read(need, until_s):
                return None

    def _size(self) -> int:
        size = HEADER_BYTES + int.from_bytes(self._frame[:4], "little")
        if size > FRAME_BYTES_MAX:
            raise RemoteProtocolError(f"the peer announced a frame of {size} bytes; at most {FRAME_BYTES_MAX} are allowed")
        return size

    def _read(self, need: int, until_s: float | None) -> bool:
        """Reads once; False when the time is up."""
        while True:
            try:
                got = self._socket.recv_into(memoryview(self._frame)[self._have : need])
            except BlockingIOError:
                left_s = SLICE_S if until_s is None else min(SLICE_S, until_s - time.monotonic())
                if left_s <= 0:
                    return False
                self._readable.poll(left_s * 1000)
                continue
            except OSError as error:
                raise EOFError("the socket is closed") from error
            if not got:
                raise EOFError("the peer closed the socket")
            self._have += got
            return True

    def peer_gone(self) -> None:
        """Any thread: whoever waits ends with EOFError."""
        with self._close_lock:
            if not self._ended:
                self._ended = True
                try:
                    self._socket.shutdown(socket.SHUT_RDWR)
                except OSError:
                    return  # not connected any more: whoever waits is awake already

    def wake(self) -> bool:
        """A shutdown wakes for good."""
        return False

    def close(self) -> None:
        """Closes the socket; nobody may be waiting."""
        self.peer_gone()
        self._socket.close()
