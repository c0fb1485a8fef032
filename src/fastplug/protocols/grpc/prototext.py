"""The .proto of an interface, as text that protoc reads back. Only what schema.py makes: proto3, one file, no imports. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator

from google.protobuf import descriptor_pb2

from fastplug.interfaces import Interface
from fastplug.protocols.grpc.schema import schema_of

__all__ = ["proto_text"]

_Field = descriptor_pb2.FieldDescriptorProto


def proto_text(interface: Interface) -> str:
    """The .proto of an interface; protoc makes the same descriptors of it as schema.py. Raises ConfigError as ``schema_of``."""
    file = schema_of(interface).file
    blocks = [
        ['syntax = "proto3";'],
        [f"package {file.package};"],
        [f"option go_package = {json.dumps(file.options.go_package)};"],
    ]
    blocks += [_service(service) for service in file.service]
    blocks += [_message(file, message) for message in file.message_type]
    blocks += [_enum(values) for values in file.enum_type]
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def _reference(full: str, local: set[str]) -> str:
    """The bare name where that means the same: protoc looks in the innermost scope first, and keywords are lower case."""
    bare = full.rpartition(".")[2]
    return full if bare in local or not bare[:1].isupper() else bare


def _service(service: descriptor_pb2.ServiceDescriptorProto) -> list[str]:
    local = {method.name for method in service.method}
    lines = []
    for m in service.method:
        takes, gives = "stream " * m.client_streaming, "stream " * m.server_streaming
        lines.append(f"  rpc {m.name}({takes}{_reference(m.input_type, local)}) returns ({gives}{_reference(m.output_type, local)});")
    return [f"service {service.name} {{", *lines, "}"]


def _type(field: _Field, local: set[str]) -> str:
    if field.type_name:
        return _reference(field.type_name, local)
    return _Field.Type.Name(field.type).removeprefix("TYPE_").lower()


def _message(file: descriptor_pb2.FileDescriptorProto, message: descriptor_pb2.DescriptorProto) -> list[str]:
    local = {field.name for field in message.field} | {nested.name for nested in message.nested_type} | {o.name for o in message.oneof_decl}
    entries = {f".{file.package}.{message.name}.{nested.name}": nested for nested in message.nested_type}
    return [f"message {message.name} {{", *(f"  {line}" for line in _fields(message, local, entries)), "}"]


def _fields(
    message: descriptor_pb2.DescriptorProto,
    local: set[str],
    entries: dict[str, descriptor_pb2.DescriptorProto],
) -> Iterator[str]:
    for field in message.field:
        entry = entries.get(field.type_name)
        if entry is not None:
            kind = f"map<{_type(entry.field[0], local)}, {_type(entry.field[1], local)}>"
        else:
            label = "repeated " if field.label == _Field.LABEL_REPEATED else "optional " if field.proto3_optional else ""
            kind = label + _type(field, local)
        yield f"{kind} {field.name} = {field.number};"


def _enum(values: descriptor_pb2.EnumDescriptorProto) -> list[str]:
    return [f"enum {values.name} {{", *(f"  {value.name} = {value.number};" for value in values.value), "}"]
