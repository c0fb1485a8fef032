"""Calls over gRPC, with real protobuf messages, as any go-plugin peer speaks it."""

from __future__ import annotations

from fastplug.protocol import ClientProtocol, HostContext, PluginContext, Protocol, ServerProtocol

__all__ = ["PROTOCOL"]


def _connect(context: HostContext) -> ClientProtocol:
    from fastplug.protocols.grpc.client import GrpcClient

    return GrpcClient(context)


def _serve(context: PluginContext) -> ServerProtocol:
    from fastplug.protocols.grpc.server import GrpcServer

    return GrpcServer(context)


PROTOCOL = Protocol("grpc", _connect, _serve)
