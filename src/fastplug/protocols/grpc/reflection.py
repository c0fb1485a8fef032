"""What a peer says of its own services: gRPC server reflection, v1 and its older twin v1alpha. No gRPC library: paths, messages, questions.

Source: grpc/reflection/v1/reflection.proto, whose messages are described here as ``services.py`` does with the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from fastplug.errors import ConfigError, RemoteProtocolError, RpcError
from fastplug.protocols.grpc.channel import Code
from fastplug.protocols.grpc.descriptors import Files, with_imports

__all__ = ["VERSIONS", "Dialect", "Reflection", "is_internal"]

_Field = descriptor_pb2.FieldDescriptorProto
_TEXT, _NUMBER, _BYTES, _MESSAGE = _Field.TYPE_STRING, _Field.TYPE_INT32, _Field.TYPE_BYTES, _Field.TYPE_MESSAGE

# name -> fields (name, number, type or message name, repeated, oneof)
_SHAPES: dict[str, list[tuple[str, int, Any, bool, str]]] = {
    "ExtensionRequest": [("containing_type", 1, _TEXT, False, ""), ("extension_number", 2, _NUMBER, False, "")],
    "ServerReflectionRequest": [
        ("host", 1, _TEXT, False, ""),
        ("file_by_filename", 3, _TEXT, False, "message_request"),
        ("file_containing_symbol", 4, _TEXT, False, "message_request"),
        ("file_containing_extension", 5, "ExtensionRequest", False, "message_request"),
        ("all_extension_numbers_of_type", 6, _TEXT, False, "message_request"),
        ("list_services", 7, _TEXT, False, "message_request"),
    ],
    "FileDescriptorResponse": [("file_descriptor_proto", 1, _BYTES, True, "")],
    "ExtensionNumberResponse": [("base_type_name", 1, _TEXT, False, ""), ("extension_number", 2, _NUMBER, True, "")],
    "ServiceResponse": [("name", 1, _TEXT, False, "")],
    "ListServiceResponse": [("service", 1, "ServiceResponse", True, "")],
    "ErrorResponse": [("error_code", 1, _NUMBER, False, ""), ("error_message", 2, _TEXT, False, "")],
    "ServerReflectionResponse": [
        ("valid_host", 1, _TEXT, False, ""),
        ("original_request", 2, "ServerReflectionRequest", False, ""),
        ("file_descriptor_response", 4, "FileDescriptorResponse", False, "message_response"),
        ("all_extension_numbers_response", 5, "ExtensionNumberResponse", False, "message_response"),
        ("list_services_response", 6, "ListServiceResponse", False, "message_response"),
        ("error_response", 7, "ErrorResponse", False, "message_response"),
    ],
}


@dataclasses.dataclass(frozen=True, slots=True)
class Dialect:
    """One version of the service: where it is, and its message classes."""

    package: str
    request: type[Any]
    response: type[Any]

    @property
    def path(self) -> str:
        return f"/{self.package}.ServerReflection/ServerReflectionInfo"


def _dialect(package: str) -> Dialect:
    file = descriptor_pb2.FileDescriptorProto(name=f"{package.replace('.', '/')}/reflection.proto", package=package, syntax="proto3")
    for name, fields in _SHAPES.items():
        message = file.message_type.add(name=name)
        for field, number, kind, repeated, oneof in fields:
            made = message.field.add(name=field, number=number, label=_Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL)
            made.type = _MESSAGE if isinstance(kind, str) else kind
            if isinstance(kind, str):
                made.type_name = f".{package}.{kind}"
            if oneof:
                if not message.oneof_decl:
                    message.oneof_decl.add(name=oneof)
                made.oneof_index = 0
    kinds = (f".{package}.ServerReflectionRequest", f".{package}.ServerReflectionResponse")
    service = file.service.add(name="ServerReflection")
    service.method.add(name="ServerReflectionInfo", input_type=kinds[0], output_type=kinds[1], client_streaming=True, server_streaming=True)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return Dialect(package, *(message_factory.GetMessageClass(pool.FindMessageTypeByName(kind[1:])) for kind in kinds))


# Newest first: a peer that has both is asked in v1.
VERSIONS = (_dialect("grpc.reflection.v1"), _dialect("grpc.reflection.v1alpha"))

# Services that carry a plugin, and are not what it is for.
_INTERNAL = ("plugin.", "grpc.health.", "grpc.reflection.", "fastplug.v1.")


def is_internal(service: str) -> bool:
    return service.startswith(_INTERNAL)


class Reflection:
    """Asks a peer for its services and files, in the newest version that it has.

    Args: ``ask(path, request)`` makes one call with one request and gives the one response, all bytes; it raises RpcError.
    """

    def __init__(self, ask: Callable[[str, bytes], bytes]) -> None:
        self._ask = ask
        self._dialects = list(VERSIONS)

    def services(self) -> list[str]:
        """Full names of all services. Raises ConfigError: the peer has no reflection; RemoteProtocolError, and what ``ask`` raises."""
        answer = self._question(list_services="*")
        if answer.WhichOneof("message_response") != "list_services_response":
            raise self._unexpected(answer, "its services")
        return [service.name for service in answer.list_services_response.service]

    def files(self, service: str) -> Files | None:
        """The files that describe a service, imports included; None if the peer does not know it. Raises as ``services``."""
        found = self._files(service, file_containing_symbol=service)
        return None if found is None else Files(with_imports(found, lambda name: self._files(name, file_by_filename=name) or ()))

    def _files(self, what: str, **question: str) -> Sequence[bytes] | None:
        answer = self._question(**question)
        kind = answer.WhichOneof("message_response")
        if kind == "error_response" and answer.error_response.error_code == Code.NOT_FOUND:
            return None
        if kind != "file_descriptor_response":
            raise self._unexpected(answer, what)
        found: Sequence[bytes] = answer.file_descriptor_response.file_descriptor_proto
        return found

    def _question(self, **question: str) -> Any:
        while self._dialects:
            dialect = self._dialects[0]
            try:
                answer = self._ask(dialect.path, dialect.request(**question).SerializeToString())
            except RpcError as status:
                if status.code != Code.UNIMPLEMENTED:
                    raise
                self._dialects.pop(0)
                continue
            try:
                return dialect.response.FromString(answer)
            except Exception as error:
                raise RemoteProtocolError(f"the plugin's answer about its services is malformed: {error!s:.200}") from error
        raise ConfigError(
            "the plugin does not describe its services (it has no gRPC reflection). "
            "Pass descriptors=: a FileDescriptorSet, or the modules that protoc generated; or use generated stubs with client.channel."
        )

    def _unexpected(self, answer: Any, what: str) -> RemoteProtocolError:
        error = answer.error_response
        said = f"error {error.error_code}: {error.error_message[:300]}" if error.error_code else answer.WhichOneof("message_response")
        return RemoteProtocolError(f"asked about {what[:200]}, the plugin's reflection answered with {said}")
