"""The messages of the services that every plugin has beside its own: go-plugin's, health, and fastplug's directory.

They are described here instead of in generated modules, which would import grpc and register themselves in the pool that is the user's.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, empty_pb2, message_factory

__all__ = [
    "DESCRIBE",
    "HEALTH_CHECK",
    "HEALTH_WATCH",
    "POOL",
    "SHUTDOWN",
    "STACK",
    "START_STREAM",
    "STATS",
    "STREAM_STDIO",
    "ConnInfo",
    "Empty",
    "FileBuilder",
    "HealthRequest",
    "HealthResponse",
    "Json",
    "StdioData",
]

HEALTH_CHECK = "/grpc.health.v1.Health/Check"
HEALTH_WATCH = "/grpc.health.v1.Health/Watch"
SHUTDOWN = "/plugin.GRPCController/Shutdown"
STREAM_STDIO = "/plugin.GRPCStdio/StreamStdio"
START_STREAM = "/plugin.GRPCBroker/StartStream"
DESCRIBE = "/fastplug.v1.Directory/Describe"
STATS = "/fastplug.v1.Directory/Stats"
STACK = "/fastplug.v1.Directory/Stack"

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
    "bool": _Field.TYPE_BOOL,
    "int32": _Field.TYPE_INT32,
    "uint32": _Field.TYPE_UINT32,
}

POOL = descriptor_pool.DescriptorPool()
POOL.AddSerializedFile(empty_pb2.DESCRIPTOR.serialized_pb)


class FileBuilder:
    """One .proto in the making. Names of types are relative to its package, and Outer.Inner is nested in Outer, which stands before."""

    def __init__(self, package: str, *imports: str) -> None:
        self._proto = descriptor_pb2.FileDescriptorProto(name=f"{package.replace('.', '/')}.proto", package=package, syntax="proto3")
        self._proto.dependency.extend(imports)
        self._messages: dict[str, descriptor_pb2.DescriptorProto] = {}
        self._enums: set[str] = set()

    def enum(self, name: str, *members: str) -> None:
        outer, _, inner = name.rpartition(".")
        made = self._messages[outer].enum_type.add(name=inner)
        for number, member in enumerate(members):
            made.value.add(name=member, number=number)
        self._enums.add(name)

    def message(self, name: str, *fields: str) -> None:
        """Fields as in a .proto: ``string address = 3``."""
        outer, _, inner = name.rpartition(".")
        self._messages[name] = self._messages[outer].nested_type.add(name=inner) if outer else self._proto.message_type.add(name=inner)
        for field in fields:
            self.field(name, field)

    def oneof(self, message: str, name: str, *fields: str) -> None:
        """The message's one oneof."""
        self._messages[message].oneof_decl.add(name=name)
        for field in fields:
            self.field(message, field, oneof_index=0)

    def field(self, message: str, text: str, **more: int) -> None:
        """``text`` may begin with ``repeated``."""
        plain = text.removeprefix("repeated ")
        kind, name, _, number = plain.split()
        label = _Field.LABEL_OPTIONAL if plain == text else _Field.LABEL_REPEATED
        made = self._messages[message].field.add(name=name, number=int(number), label=label, **more)
        if kind in _SCALARS:
            made.type = _SCALARS[kind]
        else:
            made.type = _Field.TYPE_ENUM if kind in self._enums else _Field.TYPE_MESSAGE
            made.type_name = f".{self._proto.package}.{kind}"

    def service(self, name: str, *methods: str) -> None:
        """Methods as in ``StartStream stream ConnInfo stream ConnInfo``."""
        made = self._proto.service.add(name=name)
        for text in methods:
            # "a stream B" -> ["a", "stream:B"]
            method, request, response = text.replace("stream ", "stream:").split()
            made.method.add(
                name=method,
                input_type=self._full(request.removeprefix("stream:")),
                output_type=self._full(response.removeprefix("stream:")),
                client_streaming=request.startswith("stream:"),
                server_streaming=response.startswith("stream:"),
            )

    def _full(self, kind: str) -> str:
        return kind if kind.startswith(".") else f".{self._proto.package}.{kind}"

    def done(self, *names: str) -> list[Any]:
        """The classes of these messages."""
        POOL.AddSerializedFile(self._proto.SerializeToString())
        return [message_factory.GetMessageClass(POOL.FindMessageTypeByName(f"{self._proto.package}.{name}")) for name in names]


def _health() -> list[Any]:
    file = FileBuilder("grpc.health.v1")
    file.message("HealthCheckRequest", "string service = 1")
    file.message("HealthCheckResponse")
    file.enum("HealthCheckResponse.ServingStatus", "UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
    file.field("HealthCheckResponse", "HealthCheckResponse.ServingStatus status = 1")
    file.service("Health", "Check HealthCheckRequest HealthCheckResponse", "Watch HealthCheckRequest stream HealthCheckResponse")
    return file.done("HealthCheckRequest", "HealthCheckResponse")


def _go_plugin() -> list[Any]:
    """go-plugin's grpc_broker.proto, grpc_controller.proto and grpc_stdio.proto, in one file."""
    file = FileBuilder("plugin", "google/protobuf/empty.proto")
    file.message("ConnInfo", "uint32 service_id = 1", "string network = 2", "string address = 3")
    file.message("ConnInfo.Knock", "bool knock = 1", "bool ack = 2", "string error = 3")
    file.field("ConnInfo", "ConnInfo.Knock knock = 4")
    file.message("Empty")
    file.message("StdioData")
    file.enum("StdioData.Channel", "INVALID", "STDOUT", "STDERR")
    file.field("StdioData", "StdioData.Channel channel = 1")
    file.field("StdioData", "bytes data = 2")
    file.service("GRPCBroker", "StartStream stream ConnInfo stream ConnInfo")
    file.service("GRPCController", "Shutdown Empty Empty")
    file.service("GRPCStdio", "StreamStdio .google.protobuf.Empty stream StdioData")
    return file.done("ConnInfo", "Empty", "StdioData")


def _directory() -> list[Any]:
    file = FileBuilder("fastplug.v1")
    file.message("Empty")
    file.message("Json", "string json = 1")
    file.service("Directory", "Describe Empty Json", "Stats Empty Json", "Stack Json Json")
    return file.done("Json")


HealthRequest, HealthResponse = _health()
ConnInfo, Empty, StdioData = _go_plugin()
(Json,) = _directory()
