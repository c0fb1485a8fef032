"""Frames over a plain Unix socket: the reference implementation, and what is used where shared memory is missing."""

from __future__ import annotations

import collections
import select
import socket
import threading
import time

from fastplug._wire import MESSAGE_BYTES_MAX, PyLink
from fastplug.errors import DeadlineExceeded, RemoteProtocolError

__all__ = ["FRAME_BYTES_MAX", "SocketLink"]

HEADER_BYTES = 32
# wire.md: a message has at most 1 GiB, and arrays are inline here.
FRAME_BYTES_MAX = HEADER_BYTES + MESSAGE_BYTES_MAX
# Larger buffers mean fewer switches between the two processes on large arrays; the kernel caps them at its own limit.
BUFFER_BYTES = 4 << 20
# Longest single sleep: Python turns a signal into KeyboardInterrupt when poll returns EINTR, so this is for the peer's end only.
SLICE_S = 0.5
# A peer that announces a large frame and does not send it makes us set aside this much.
STEP_BYTES = 64 << 20
# Late replies that are read while a request waits for room: as long as one may be.
AHEAD_BYTES_MAX = FRAME_BYTES_MAX


class SocketLink(PyLink):
    """A Link over a connected stream socket, which it owns. One user at a time; ``peer_gone``, ``finish``, ``wake`` from any thread."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        self._socket = sock
        sock.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
        self._frame = bytearray(HEADER_BYTES)  # the one that comes
        self._have = 0  # bytes of it
        self._ahead: collections.deque[bytearray] = collections.deque()  # whole frames that nobody has asked for yet
        self._ahead_bytes = 0
        self._unsent = memoryview(b"")  # what is left of a frame that is partly out
        self._exact = True  # False between a system call and the note of what it moved: an interrupt there loses count
        self._ended = False
        self._close_lock = threading.Lock()
        self._readable = select.poll()
        self._readable.register(sock, select.POLLIN)
        self._writable = select.poll()
        self._writable.register(sock, select.POLLOUT)
        self._either = select.poll()
        self._either.register(sock, select.POLLIN | select.POLLOUT)

    def send_frame(self, frame: bytes | memoryview, until_s: float | None) -> None:
        """Sends one frame.

        When the deadline, or Ctrl-C, comes in the middle of a frame, what is left of it goes out before the next one: half a frame cannot be
        taken back.
        """
        self._check_exact()
        self._flush(until_s)
        self._unsent = memoryview(frame)
        try:
            self._flush(until_s)
        except BaseException:
            if len(self._unsent) == len(frame):  # nothing of it is out
                self._unsent = memoryview(b"")
            raise

    def _flush(self, until_s: float | None) -> None:
        while self._unsent:
            try:
                self._exact = False
                sent = self._socket.send(self._unsent, socket.MSG_NOSIGNAL)
                self._unsent = self._unsent[sent:]
                self._exact = True
            except BlockingIOError:
                self._exact = True
                self._wait_writable(until_s)
            except OSError as error:
                raise EOFError("the socket is closed") from error

    def _wait_writable(self, until_s: float | None) -> None:
        """Waits, and reads what comes meanwhile: two sides that only send would wait for each other for ever."""
        left_s = SLICE_S if until_s is None else min(SLICE_S, until_s - time.monotonic())
        if left_s <= 0:
            raise DeadlineExceeded("the plugin did not take the call before the deadline: its socket is full")
        poller = self._either if self._ahead_bytes < AHEAD_BYTES_MAX else self._writable
        for _, events in poller.poll(left_s * 1000):
            if events & select.POLLIN:
                self._read()

    def receive_frame(self, until_s: float | None) -> bytes | None:
        """The next frame; None when the time is up. What has come of a frame is kept for the next call."""
        self._check_exact()
        while not self._ahead:
            if self._read():
                continue
            left_s = SLICE_S if until_s is None else min(SLICE_S, until_s - time.monotonic())
            if left_s <= 0:
                return None
            self._readable.poll(left_s * 1000)
        frame = self._ahead.popleft()
        self._ahead_bytes -= len(frame)
        return bytes(frame)

    def _read(self) -> bool:
        """Reads once, as far as the end of the frame; False when there is nothing to read. EOFError at the end."""
        try:
            self._exact = False
            got = self._socket.recv_into(memoryview(self._frame)[self._have :])
            self._have += got
            self._exact = True
        except BlockingIOError:
            self._exact = True
            return False
        except OSError as error:
            raise EOFError("the socket is closed") from error
        if not got:
            self._exact = True
            raise EOFError("the peer closed the socket")
        if self._have == len(self._frame):
            self._filled()
        return True

    def _filled(self) -> None:
        """The buffer is full: with a whole frame, or it has to grow."""
        size = HEADER_BYTES + int.from_bytes(self._frame[:4], "little")
        if size > FRAME_BYTES_MAX:
            raise RemoteProtocolError(f"the peer announced a frame of {size} bytes; at most {FRAME_BYTES_MAX} are allowed")
        if self._have < size:
            larger = bytearray(min(size, max(STEP_BYTES, 2 * self._have)))
            larger[: self._have] = self._frame
            self._frame = larger
            return
        self._ahead.append(self._frame)
        self._ahead_bytes += size
        self._frame, self._have = bytearray(HEADER_BYTES), 0

    def _check_exact(self) -> None:
        if not self._exact:
            raise EOFError("a signal came in the middle of a transfer, and its count was lost")

    def peer_gone(self) -> None:
        """Any thread: whoever waits ends with EOFError."""
        self._shut(socket.SHUT_RDWR)

    def finish(self) -> None:
        """Any thread: what has come is received, then EOFError; sending goes on."""
        self._shut(socket.SHUT_RD)

    def _shut(self, how: int) -> None:
        with self._close_lock:
            if not self._ended:
                self._ended = how == socket.SHUT_RDWR
                try:
                    self._socket.shutdown(how)
                except OSError:
                    return  # not connected any more: whoever waits is awake already

    def wake(self) -> bool:
        """A shutdown wakes for good."""
        return False

    def close(self) -> None:
        """Closes the socket; nobody may be waiting. It is not shut down: a forked copy of it may be somebody else's."""
        self._socket.close()
