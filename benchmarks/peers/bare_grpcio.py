"""grpcio, unary, over a Unix socket, with bytes instead of protobuf messages: the least that a call through grpcio costs."""

from __future__ import annotations

import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from .exchange import BytesPeer
from .message import Buffer, answer

__all__ = ["BareGrpcio"]

SERVICE, METHOD = "bench.Bench", "Call"
OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
READY_TIMEOUT_S = 30  # a watchdog for an interpreter to start and import grpc on a busy machine


def call(request: bytes, _context: grpc.ServicerContext) -> bytes:
    return bytes(answer(request[:1], memoryview(request)[1:]))


def serve(address: str, lifeline: Any) -> None:
    server = grpc.server(ThreadPoolExecutor(1), options=OPTIONS)
    methods: dict[str, Any] = {METHOD: grpc.unary_unary_rpc_method_handler(call)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    server.add_insecure_port(address)
    server.start()
    try:
        lifeline.recv_bytes()
    except EOFError:  # the host closed its end: the end of this process's work
        server.stop(None).wait()


class BareGrpcio(BytesPeer):
    name = "grpcio"
    label = "grpcio unary (bytes)"

    def __init__(self) -> None:
        super().__init__()
        self._folder: str | None = None
        self._lifeline: Any = None
        self._channel: Any = None
        self._call: Any = None

    def start(self) -> None:
        from multiprocessing import get_context

        self._folder = tempfile.mkdtemp(prefix="bench-grpc-")
        address = f"unix:{self._folder}/socket"
        self._lifeline, other = get_context("spawn").Pipe()
        self.spawn(serve, address, other)
        other.close()
        self._channel = grpc.insecure_channel(address, options=OPTIONS)
        self._call = self._channel.unary_unary(f"/{SERVICE}/{METHOD}")
        self._call(b"E", wait_for_ready=True, timeout=READY_TIMEOUT_S)

    def exchange(self, operation: bytes, body: Buffer, data: Buffer | None = None) -> Buffer:
        request = b"".join((operation, body) if data is None else (operation, body, data))
        reply: bytes = self._call(request)
        return reply

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._lifeline.close()
            self._channel = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
