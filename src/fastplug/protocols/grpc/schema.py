"""An interface as real protobuf messages, made from its annotations. Pure: declarations in, descriptors out.

The mapping is docs/wire.md, "The gRPC form". Each interface has a descriptor pool of its own: two may declare one package differently.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from fastplug.annotation import MISSING, Kind, TypeNode
from fastplug.errors import ConfigError
from fastplug.interfaces import Interface, Method
from fastplug.protocols.grpc.names import Names, camel, enum_members, field_names, package_of, service_of, upper_snake

__all__ = ["CLEARED", "Rpc", "Schema", "is_clearable", "is_map_key", "is_scalar", "schema_of"]

_Field = descriptor_pb2.FieldDescriptorProto

# What stands for a Python value in one proto scalar. Text forms (datetime and the like) are the codec's business.
_SCALARS = {
    Kind.BOOL: _Field.TYPE_BOOL,
    Kind.INT: _Field.TYPE_INT64,
    Kind.FLOAT: _Field.TYPE_DOUBLE,
    Kind.STR: _Field.TYPE_STRING,
    Kind.BYTES: _Field.TYPE_BYTES,
    Kind.BUFFER: _Field.TYPE_BYTES,
    Kind.ARROW: _Field.TYPE_BYTES,
    Kind.DATETIME: _Field.TYPE_STRING,
    Kind.DATE: _Field.TYPE_STRING,
    Kind.TIMEDELTA: _Field.TYPE_INT64,
    Kind.DECIMAL: _Field.TYPE_STRING,
    Kind.UUID: _Field.TYPE_STRING,
}

# Messages that every interface may need, with their fields.
_FIXED: dict[Kind, tuple[str, list[tuple[str, int, int]]]] = {
    Kind.NONE: ("Null", []),
    Kind.COMPLEX: ("Complex", [("real", _Field.TYPE_DOUBLE, _Field.LABEL_OPTIONAL), ("imag", _Field.TYPE_DOUBLE, _Field.LABEL_OPTIONAL)]),
    Kind.ARRAY: (
        "NDArray",
        [
            ("dtype", _Field.TYPE_STRING, _Field.LABEL_OPTIONAL),
            ("shape", _Field.TYPE_INT64, _Field.LABEL_REPEATED),
            ("data", _Field.TYPE_BYTES, _Field.LABEL_OPTIONAL),
            ("fortran", _Field.TYPE_BOOL, _Field.LABEL_OPTIONAL),
        ],
    ),
}

# A field with a default that arrives empty takes the default, unless its number is in this field: it was emptied on purpose. So a peer
# that does not know the field yet leaves the default in place, on this transport as on the others. Just below the numbers that protobuf
# keeps for itself.
CLEARED, CLEARED_NUMBER = "cleared", 18999


def is_clearable(node: TypeNode) -> bool:
    """Whether proto cannot tell an absent field of this type from an empty one, or from None."""
    return node.kind in (Kind.LIST, Kind.SEQUENCE, Kind.DICT, Kind.OPTIONAL)


def is_scalar(node: TypeNode) -> bool:
    """Whether a value of this type is one proto scalar or enum."""
    return node.kind in _SCALARS or node.kind == Kind.ENUM


def is_map_key(node: TypeNode) -> bool:
    """Whether proto's map<> can have such keys; other dicts are repeated entries."""
    return node.kind in (Kind.INT, Kind.STR, Kind.BOOL)


@dataclasses.dataclass(frozen=True, slots=True)
class Rpc:
    """One method: its path on the wire and its message classes."""

    method: Method
    path: str
    request: type[Any]
    response: type[Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Schema:
    """The gRPC form of one interface."""

    interface: Interface
    file: descriptor_pb2.FileDescriptorProto
    pool: descriptor_pool.DescriptorPool
    service: str
    rpcs: tuple[Rpc, ...]


def _plain(interface: Interface) -> list[Method]:
    """Methods without streams and callbacks: the only ones that have a gRPC form so far."""
    return [method for method in interface.methods if not method.has_references]


class _Builder:
    """Grows one file. A structural key names each generated message, so that list[list[int]] is one message wherever it stands."""

    def __init__(self, interface: Interface) -> None:
        package = package_of(interface.name)
        self.file = descriptor_pb2.FileDescriptorProto(syntax="proto3", package=package)
        service = service_of(interface.name)
        self.file.name = f"{package.replace('.', '/')}/{upper_snake(service).lower()}.proto"
        parts = package.split(".")
        self.file.options.go_package = f"{'/'.join(parts)};{''.join(parts[-2:])}"
        self.names = Names([service, *(name for name, _ in _FIXED.values())])
        self.made: dict[Any, str] = {}
        self.service = self.file.service.add(name=service)
        rpc_names = Names()
        methods = [(method, rpc_names.claim(camel(method.name))) for method in _plain(interface)]
        # Requests and responses get their plain names before any user class does: they are what a Go author types.
        messages = [(self.names.claim(f"{name}Request"), self.names.claim(f"{name}Response")) for _, name in methods]
        for (method, name), (request, response) in zip(methods, messages, strict=True):
            self._method(method, name, request, response)

    def _method(self, method: Method, name: str, request: str, response: str) -> None:
        message = self.file.message_type.add(name=request)
        nodes = [(parameter.node, parameter.default is not MISSING) for parameter in method.parameters]
        self._fields(message, [parameter.name for parameter in method.parameters], nodes)
        self._fields(self.file.message_type.add(name=response), ["result"], [(method.returns, False)])
        self.service.method.add(name=name, input_type=self._full(request), output_type=self._full(response))

    def _full(self, name: str) -> str:
        return f".{self.file.package}.{name}"

    def _fields(self, message: descriptor_pb2.DescriptorProto, names: list[str], nodes: list[tuple[TypeNode, bool]]) -> None:
        *plain, cleared = field_names([*names, CLEARED])
        for number, (name, (node, defaulted)) in enumerate(zip(plain, nodes, strict=True), 1):
            field = message.field.add(name=name, number=number)
            self._field(message, field, node, presence=defaulted)
        if any(defaulted and is_clearable(node) for node, defaulted in nodes):
            message.field.add(name=cleared, number=CLEARED_NUMBER, label=_Field.LABEL_REPEATED, type=_Field.TYPE_UINT32)
        _add_presence_oneofs(message)

    def _field(self, message: descriptor_pb2.DescriptorProto, field: _Field, node: TypeNode, *, presence: bool) -> None:
        field.label = _Field.LABEL_OPTIONAL
        if node.kind == Kind.OPTIONAL and node.args[0].kind not in (Kind.LIST, Kind.SEQUENCE, Kind.DICT):
            self._field(message, field, node.args[0], presence=True)
        elif node.kind in (Kind.LIST, Kind.SEQUENCE):
            field.label = _Field.LABEL_REPEATED
            self._set_type(field, node.args[0])
        elif node.kind == Kind.DICT:
            field.label = _Field.LABEL_REPEATED
            self._set_dict_type(message, field, node)
        else:
            self._set_type(field, node.args[0] if node.kind == Kind.OPTIONAL else node)
            if presence and is_scalar(node):
                field.proto3_optional = True

    def _set_type(self, field: _Field, node: TypeNode) -> None:
        """The type of one element: a scalar, an enum, or a message (wrapped, when proto cannot nest it)."""
        if node.kind in _SCALARS:
            field.type = _SCALARS[node.kind]
        elif node.kind == Kind.ENUM and issubclass(node.cls or object, enum.Flag):
            field.type = _Field.TYPE_INT64
        elif node.kind == Kind.ENUM:
            field.type = _Field.TYPE_ENUM
            field.type_name = self._full(self._enum(node))
        else:
            field.type = _Field.TYPE_MESSAGE
            field.type_name = self._full(self._message(node))

    def _set_dict_type(self, message: descriptor_pb2.DescriptorProto, field: _Field, node: TypeNode) -> None:
        key, value = node.args
        field.type = _Field.TYPE_MESSAGE
        if is_map_key(key):
            entry = message.nested_type.add(name=f"{camel(field.name)}Entry")
            entry.options.map_entry = True
            for number, (name, part) in enumerate((("key", key), ("value", value)), 1):
                self._set_type(entry.field.add(name=name, number=number, label=_Field.LABEL_OPTIONAL), part)
            field.type_name = f"{self._full(message.name)}.{entry.name}"
            return
        structural = ("entry", _key(key), _key(value))
        if structural not in self.made:
            entry = self._new_message(structural, f"{self._word(key)}{self._word(value)}Entry")
            self._fields(entry, ["key", "value"], [(key, False), (value, False)])
        field.type_name = self._full(self.made[structural])

    def _new_message(self, structural: Any, name: str) -> descriptor_pb2.DescriptorProto:
        self.made[structural] = self.names.claim(name)
        return self.file.message_type.add(name=self.made[structural])

    def _message(self, node: TypeNode) -> str:
        structural = _key(node)
        if structural in self.made:
            return self.made[structural]
        if node.kind in _FIXED:
            name, fields = _FIXED[node.kind]
            self.made[structural] = name
            message = self.file.message_type.add(name=name)
            for number, (field, kind, label) in enumerate(fields, 1):
                message.field.add(name=field, number=number, type=_Field.Type.ValueType(kind), label=_Field.Label.ValueType(label))
            return name
        message = self._new_message(structural, self._word(node))
        if node.kind == Kind.STRUCT:
            self._fields(message, [f.name for f in node.fields], [(f.node, f.default is not MISSING) for f in node.fields])
        elif node.kind == Kind.TUPLE:
            self._fields(message, [f"item{i}" for i in range(len(node.args))], [(part, False) for part in node.args])
        else:
            self._fields(message, ["value" if node.kind == Kind.OPTIONAL else "items"], [(node, False)])
        return message.name

    def _enum(self, node: TypeNode) -> str:
        assert node.cls is not None
        structural = _key(node)
        if structural in self.made:
            return self.made[structural]
        name = self.made[structural] = self.names.claim(camel(node.cls.__name__))
        made = self.file.enum_type.add(name=name)
        prefix = upper_snake(name)
        made.value.add(name=self.names.claim(f"{prefix}_UNSPECIFIED"), number=0)
        # protoc compares the members of one enum without case and underscores.
        members = Names(["UNSPECIFIED"])
        for number, member in enumerate(enum_members(node.cls), 1):
            plain = upper_snake(member.name)
            unique = plain + members.claim(plain.replace("_", ""))[len(plain.replace("_", "")) :]
            made.value.add(name=self.names.claim(f"{prefix}_{unique}"), number=number)
        return name

    def _word(self, node: TypeNode) -> str:
        """How a type is called inside the name of a generated message."""
        if node.kind == Kind.STRUCT or node.kind == Kind.ENUM:
            assert node.cls is not None
            return self.made.get(_key(node)) or camel(node.cls.__name__)
        if node.kind in _FIXED:
            return _FIXED[node.kind][0]
        parts = "".join(self._word(part) for part in node.args)
        suffixes = {Kind.LIST: "List", Kind.SEQUENCE: "List", Kind.DICT: "Map", Kind.TUPLE: "Tuple"}
        if node.kind == Kind.OPTIONAL:
            return f"Optional{parts}"
        return parts + suffixes[node.kind] if node.kind in suffixes else node.kind.name.capitalize()


def _key(node: TypeNode) -> Any:
    """Equal for types with the same message; a class stands for its fields, so recursion ends."""
    return (node.kind, node.cls) if node.cls is not None else (node.kind, *(_key(part) for part in node.args))


def _add_presence_oneofs(message: descriptor_pb2.DescriptorProto) -> None:
    """proto3 `optional` is a oneof of one field; protoc's rule for its name, so that our descriptors are the ones it makes."""
    taken = {field.name for field in message.field}
    for field in message.field:
        if not field.proto3_optional:
            continue
        name = f"_{field.name}"
        while name in taken:
            name = f"X{name}"
        taken.add(name)
        field.oneof_index = len(message.oneof_decl)
        message.oneof_decl.add(name=name)


def schema_of(interface: Interface) -> Schema:
    """The messages and paths of an interface.

    Raises:
        ConfigError: names that protobuf cannot tell apart.
    """
    file = _Builder(interface).file
    pool = descriptor_pool.DescriptorPool()
    try:
        pool.AddSerializedFile(file.SerializeToString())
        service = pool.FindServiceByName(f"{file.package}.{file.service[0].name}")
    except (TypeError, KeyError) as error:
        raise ConfigError(f"interface {interface.name} cannot be expressed in protobuf: {error}. Rename what it mentions.") from error
    rpcs = []
    for method, rpc in zip(_plain(interface), file.service[0].method, strict=True):
        classes = [message_factory.GetMessageClass(pool.FindMessageTypeByName(name[1:])) for name in (rpc.input_type, rpc.output_type)]
        rpcs.append(Rpc(method, f"/{service.full_name}/{rpc.name}", *classes))
    return Schema(interface, file, pool, service.full_name, tuple(rpcs))
