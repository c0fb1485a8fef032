"""Serves tests/interop/go/peer/peer.proto with generated stubs: an ordinary Python plugin of an existing go-plugin host.

    python -m tests.plugins.peer_plugin [VERSIONS]

``peer_pb2`` and ``peer_pb2_grpc`` come from protoc (tests/interop/peer_proto.py).
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import peer_pb2
import peer_pb2_grpc
from google.protobuf import json_format

import fastplug

PEER = fastplug.HandshakeConfig(protocol_version=1, magic_cookie_key="FASTPLUG_INTEROP", magic_cookie_value="peer")

# What brings a byte to its complement.
TURN = bytes(255 - value for value in range(256))


def digest(method: str, nonce: str, index: int = 0) -> str:
    return hashlib.sha256(f"{method}|{os.getpid()}|{nonce}|{index}".encode()).hexdigest()


class Peer(peer_pb2_grpc.PeerServicer):
    """What peer.proto says."""

    def __init__(self, version: int, broker: fastplug.GRPCBroker) -> None:
        self.version = version
        self.broker = broker

    def answer(self, method: str, nonce: str, index: int = 0) -> Any:
        return peer_pb2.Answer(pid=os.getpid(), digest=digest(method, nonce, index), index=index, version=self.version)

    def Unary(self, request: Any, context: grpc.ServicerContext) -> Any:
        return self.answer("Unary", request.nonce)

    def ServerStream(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        for index in range(request.count):
            yield self.answer("ServerStream", request.nonce, index)

    def ClientStream(self, request_iterator: Iterator[Any], context: grpc.ServicerContext) -> Any:
        nonces = [request.nonce for request in request_iterator]
        return self.answer("ClientStream", ",".join(nonces), len(nonces))

    def BidiStream(self, request_iterator: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        for index, request in enumerate(request_iterator):
            yield self.answer("BidiStream", request.nonce, index)

    def Large(self, request: Any, context: grpc.ServicerContext) -> Any:
        return peer_pb2.Blob(nonce=digest("Large", request.nonce), data=request.data.translate(TURN))

    def Same(self, request: Any, context: grpc.ServicerContext) -> Any:
        return request

    def Print(self, request: Any, context: grpc.ServicerContext) -> Any:
        print(digest("Print", request.nonce), file=sys.stderr if request.to_stderr else sys.stdout, flush=True)
        return self.answer("Print", request.nonce)

    def DialBack(self, request: Any, context: grpc.ServicerContext) -> Any:
        with self.broker.dial(request.id) as channel:
            return peer_pb2_grpc.PeerStub(channel).Unary(peer_pb2.Ask(nonce=request.nonce))

    def Offer(self, request: Any, context: grpc.ServicerContext) -> Any:
        number = self.broker.next_id()
        self.broker.accept_and_serve(number, lambda server: peer_pb2_grpc.add_PeerServicer_to_server(self, server))
        return peer_pb2.Door(id=number, nonce=digest("Offer", request.nonce))

    def Fail(self, request: Any, context: grpc.ServicerContext) -> Any:
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, digest("Fail", request.nonce))

    def Wait(self, request: Any, context: grpc.ServicerContext) -> Any:
        over = threading.Event()
        context.add_callback(over.set)
        over.wait()
        return self.answer("Wait", request.nonce)

    def Crash(self, request: Any, context: grpc.ServicerContext) -> Any:
        os._exit(7)

    def Echo(self, request: Any, context: grpc.ServicerContext) -> Any:
        return peer_pb2.KindsAnswer(same=request, json=json_format.MessageToJson(request, indent=None))


if __name__ == "__main__":
    versions = [int(version) for version in (sys.argv[1] if len(sys.argv) > 1 else "1").split(",")]
    fastplug.serve(
        versioned_plugins={
            version: {"peer": fastplug.grpc_plugin(peer_pb2_grpc.add_PeerServicer_to_server, functools.partial(Peer, version))}
            for version in versions
        },
        handshake=PEER,
    )
