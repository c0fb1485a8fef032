"""The control socket: messages with descriptors, beside the frames. docs/wire.md, "Control messages".

Any thread sends; whoever needs what came reads (``pump``), one at a time. The watcher's thread pumps when the socket is readable;
a thread that meets a segment it does not know pumps too, since SEGMENT was sent before the frame that names it.
"""

from __future__ import annotations

import array
import contextlib
import enum
import json
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from fastplug.errors import LocalProtocolError, RemoteProtocolError

__all__ = ["BODY_BYTES_MAX", "FDS_MAX", "Control", "Message", "check_hello", "close_all"]

_HEAD = struct.Struct("<IHH")
# HELLO with the descriptions of some hundred interfaces is about 1 MiB.
BODY_BYTES_MAX = 16 << 20
# The most that any message may carry; the kernel's own limit is 253.
FDS_MAX = 8
# A peer that does not read its control socket for this long hangs: the messages are small, the buffer takes hundreds.
SEND_TIMEOUT_S = 10.0
READ_BYTES = 64 * 1024


class Message(enum.IntEnum):
    """The types of control messages."""

    HELLO = 1
    SEGMENT = 2
    RETIRE = 3
    RETIRED = 4
    TABLE = 5
    PING = 6
    PONG = 7
    SHUTDOWN = 8
    LOST = 9
    FETCH = 10
    BYTES = 11
    CANCEL = 12
    STACK = 13
    LANE = 14
    CALLBACKS = 15


# Descriptors that a message may carry; the others have none.
_KNOWN = frozenset(Message)
_FDS = {Message.HELLO: 4, Message.SEGMENT: 1, Message.TABLE: 1, Message.CALLBACKS: 1, Message.LANE: 2}

Body = dict[str, Any]
Handler = Callable[[int, Body, list[int]], None]


class Control:
    """One end of a control socket. Thread-safe.

    Args:
        sock: a connected Unix stream socket; owned from here on.
        peer: name for error texts.
    """

    def __init__(self, sock: socket.socket, peer: str) -> None:
        self.peer = peer
        self._socket = sock
        self._socket.setblocking(False)
        self._send_lock = threading.Lock()
        self._read_lock = threading.RLock()
        self._buffer = bytearray()
        self._fds: list[int] = []
        self._ended = False

    def fileno(self) -> int:
        """For polling; -1 after close."""
        return self._socket.fileno()

    def send(self, message: Message, body: Body, fds: Sequence[int] = ()) -> None:
        """Sends one message and its descriptors. Raises OSError when the peer is gone, or does not read for 10 s."""
        data = json.dumps(body, separators=(",", ":")).encode()
        if len(data) > BODY_BYTES_MAX:
            raise LocalProtocolError(
                f"a control message of {len(data)} bytes is too large; serve fewer or smaller interfaces in one plugin"
            )
        packet = memoryview(_HEAD.pack(len(data), message, len(fds)) + data)
        with self._send_lock:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            while packet:
                try:
                    sent = self._socket.sendmsg([packet], ancillary, socket.MSG_NOSIGNAL)
                except BlockingIOError:
                    self._wait_writable()
                    continue
                packet, ancillary = packet[sent:], []

    def _wait_writable(self) -> None:
        poller = select.poll()
        poller.register(self._socket, select.POLLOUT)
        if not poller.poll(SEND_TIMEOUT_S * 1000):
            raise TimeoutError(f"{self.peer} has not read its control socket for {SEND_TIMEOUT_S:g} s")

    def receive(self, wanted: Message, timeout_s: float) -> tuple[Body, list[int]]:
        """The first message, which must be ``wanted``: used for HELLO, before anybody pumps.

        Raises:
            TimeoutError: nothing came in time.
            EOFError: the peer closed its end.
            RemoteProtocolError: another message came.
        """
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        until = time.monotonic() + timeout_s
        with self._read_lock:
            while True:
                found = self._next()
                if found is not None:
                    kind, body, fds = found
                    if kind != wanted:
                        close_all(fds)
                        raise RemoteProtocolError(f"{self.peer} sent a control message of type {kind} instead of {wanted.name}")
                    return body, fds
                left = until - time.monotonic()
                if left <= 0 or not poller.poll(left * 1000):
                    raise TimeoutError(f"{self.peer} sent no {wanted.name} within {timeout_s:g} s")
                with contextlib.suppress(BlockingIOError):  # woken for nothing
                    if not self._fill():
                        raise EOFError(f"{self.peer} closed the control socket")

    def pump(self, handler: Handler) -> bool:
        """Handles every message that is there, without waiting. False: the peer has closed its end, and all it sent is handled.

        The handler owns the descriptors. Raises what it raises, and RemoteProtocolError.
        """
        with self._read_lock:
            while True:
                # Before more is read: what has come of descriptors belongs to what has come of messages.
                while (found := self._next()) is not None:
                    handler(*found)
                if self._ended:
                    return False
                try:
                    self._fill()
                except BlockingIOError:
                    return True

    def _fill(self) -> bool:
        """Reads what is there once; False at the end. Raises BlockingIOError."""
        room = socket.CMSG_SPACE(FDS_MAX * 4)
        try:
            data, ancillary, _flags, _ = self._socket.recvmsg(READ_BYTES, room, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            data, ancillary = b"", []
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                # MSG_CTRUNC can leave half a number: only whole descriptors arrived
                whole = array.array("i", payload[: len(payload) - len(payload) % 4])
                self._fds.extend(whole)
        if not data:
            self._ended = True
            return False
        self._buffer += data
        return True

    def _next(self) -> tuple[int, Body, list[int]] | None:
        """The next whole message of a known type. Fewer descriptors than it announces: they were lost on the way."""
        while len(self._buffer) >= _HEAD.size:
            size, kind, count = _HEAD.unpack_from(self._buffer)
            if size > BODY_BYTES_MAX or count > FDS_MAX or (kind in _KNOWN and count > _FDS.get(kind, 0)):
                raise self._broken(f"a control message of type {kind} and {size} bytes with {count} descriptors")
            if len(self._buffer) < _HEAD.size + size:
                break
            data = bytes(self._buffer[_HEAD.size : _HEAD.size + size])
            del self._buffer[: _HEAD.size + size]
            fds, self._fds = self._fds[:count], self._fds[count:]
            if kind in _KNOWN:
                return kind, self._body(data, fds), fds
            close_all(fds)
        # A message's descriptors come with its first byte; who sends others would use up this process's.
        if len(self._fds) > (FDS_MAX if self._buffer else 0):
            raise self._broken(f"{len(self._fds)} descriptors that belong to no message")
        return None

    def _body(self, data: bytes, fds: list[int]) -> Body:
        try:
            body = json.loads(data)
        except (ValueError, RecursionError) as error:
            close_all(fds)
            raise self._broken("a control message that is no JSON") from error
        if not isinstance(body, dict):
            close_all(fds)
            raise self._broken("a control message that is no JSON object")
        return body

    def _broken(self, what: str) -> RemoteProtocolError:
        """Nothing that comes later can be understood: it is not read any more."""
        self._ended = True
        self._buffer.clear()
        close_all(self._fds)
        self._fds = []
        return RemoteProtocolError(f"{self.peer} sent {what}")

    def close(self) -> None:
        """Closes the socket and descriptors that nobody took. Idempotent."""
        with self._read_lock, self._send_lock:
            self._socket.close()
            close_all(self._fds)
            self._fds = []


def check_hello(body: Body, version: int, transport: str, peer: str) -> None:
    """The peer's HELLO says what was agreed on. Raises RemoteProtocolError."""
    said = body.get("fast"), body.get("transport")
    if said != (version, transport):
        raise RemoteProtocolError(f"{peer} said HELLO with version and transport {said}; agreed were {(version, transport)}")


def close_all(fds: Sequence[int]) -> None:
    """Closes descriptors that nobody wants."""
    for fd in fds:
        os.close(fd)
