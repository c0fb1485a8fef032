"""multiprocessing.Pipe with bytes, not pickled objects: its faster way."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from typing import Any

from .exchange import BytesPeer
from .message import Buffer, answer

__all__ = ["MultiprocessingPipe"]


def serve(pipe: Any) -> None:
    while True:
        try:
            message = memoryview(pipe.recv_bytes())
        except EOFError:  # the host closed its end: the end of this process's work
            return
        operation = bytes(message[:1])
        data = pipe.recv_bytes() if operation in b"TS" else None
        pipe.send_bytes(answer(operation, message[1:], data))


class MultiprocessingPipe(BytesPeer):
    name = "pipe"
    label = "multiprocessing.Pipe"

    def __init__(self) -> None:
        super().__init__()
        self._pipe: Connection[Any, Any] | None = None

    def start(self) -> None:
        self._pipe, other = multiprocessing.get_context("spawn").Pipe()
        self.spawn(serve, other)
        other.close()
        self.exchange(b"E", b"")

    def exchange(self, operation: bytes, body: Buffer, data: Buffer | None = None) -> Buffer:
        assert self._pipe is not None, "start() first"
        self._pipe.send_bytes(operation + bytes(body))
        if data is not None:
            self._pipe.send_bytes(data)
        return self._pipe.recv_bytes()

    def close(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
