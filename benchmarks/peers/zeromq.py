"""pyzmq REQ/REP over ipc, arrays as a frame of their own, without pyzmq's copy where that is the faster way."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
import time
from typing import Any

import zmq

from .exchange import BytesPeer
from .message import Buffer, answer

__all__ = ["ZeroMq"]

COPY_THRESHOLD_BYTES = 1 << 16  # pyzmq's own zmq.COPY_THRESHOLD: below, copying is cheaper than keeping track
LINGER_MS = 0  # nothing is in flight when a socket is closed
QUIT_TIMEOUT_MS = 2000  # for the server's last answer
HOST_POLL_S = 1.0  # how often the server looks whether its host still lives


def _end_with_host() -> None:
    """REP sees no disconnect: the server ends when its parent has."""
    host = os.getppid()
    while os.getppid() == host:
        time.sleep(HOST_POLL_S)
    os._exit(0)


def serve(address: str) -> None:
    threading.Thread(target=_end_with_host, daemon=True).start()
    with zmq.Context() as context, context.socket(zmq.REP) as channel:
        channel.linger = LINGER_MS
        channel.bind(address)
        while True:
            operation = channel.recv()
            rest = [frame.buffer for frame in channel.recv_multipart(copy=False)] if operation in b"TS" else [channel.recv()]
            if operation == b"Q":
                channel.send(b"")
                return
            channel.send(answer(operation, *rest))


class ZeroMq(BytesPeer):
    name = "zmq"
    label = "pyzmq REQ/REP"

    def __init__(self) -> None:
        super().__init__()
        self._folder: str | None = None
        self._context: Any = None
        self._channel: Any = None

    def start(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="bench-zmq-")
        address = f"ipc://{self._folder}/socket"
        self._context = zmq.Context()
        self._channel = self._context.socket(zmq.REQ)
        self._channel.linger = LINGER_MS
        self.spawn(serve, address)
        self._channel.connect(address)
        self.exchange(b"E", b"")

    def exchange(self, operation: bytes, body: Buffer, data: Buffer | None = None) -> Buffer:
        self._channel.send(operation, zmq.SNDMORE)
        if data is None:
            self._channel.send(body)
        else:
            self._channel.send(body, zmq.SNDMORE)
            self._channel.send(data, copy=len(data) < COPY_THRESHOLD_BYTES)
        reply: bytes = self._channel.recv()
        return reply

    def close(self) -> None:
        if self._channel is not None:
            self._channel.rcvtimeo = QUIT_TIMEOUT_MS
            with contextlib.suppress(zmq.Again):  # the server has ended already
                self.exchange(b"Q", b"")
            self._channel.close()
            self._context.term()
            self._channel = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
