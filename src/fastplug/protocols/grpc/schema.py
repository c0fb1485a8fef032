"""An interface as real protobuf messages, made from its annotations. Pure: declarations in, descriptors out.

The mapping is docs/wire.md, "The gRPC form". Each interface has a descriptor pool of its own: two may declare one package differently.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from fastplug.annotation import MISSING, Kind, TypeNode, has_references
from fastplug.errors import ConfigError
from fastplug.interfaces import Interface, Method, Parameter
from fastplug.protocols.grpc.names import Names, camel, enum_members, field_names, package_of, service_of, upper_snake

__all__ = ["CLEARED", "FAILED", "Rpc", "Schema", "is_clearable", "is_map_key", "is_scalar", "schema_of"]

_Field = descriptor_pb2.FieldDescriptorProto
_Service = descriptor_pb2.ServiceDescriptorProto
# The one method of the service that a plain callable becomes.
CALL = "Call"

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
# Of the requests of a method that takes a stream: what the stream failed with, instead of a further item.
FAILED, FAILED_NUMBER = "failed", 18998


def is_clearable(node: TypeNode) -> bool:
    """Whether proto cannot tell an absent field of this type from an empty one, or from None."""
    return node.kind in (Kind.LIST, Kind.SEQUENCE, Kind.DICT) or (node.kind == Kind.OPTIONAL and not has_references(node))


def is_scalar(node: TypeNode) -> bool:
    """Whether a value of this type is one proto scalar or enum."""
    return node.kind in _SCALARS or node.kind == Kind.ENUM


def is_map_key(node: TypeNode) -> bool:
    """Whether proto's map<> can have such keys; other dicts are repeated entries."""
    return node.kind in (Kind.INT, Kind.STR, Kind.BOOL)


@dataclasses.dataclass(frozen=True, slots=True)
class Rpc:
    """One method: its path on the wire and its message classes; ``callbacks``: by parameter, what the other side may call there."""

    method: Method
    path: str
    request: type[Any]
    response: type[Any]
    callbacks: Mapping[str, tuple[Rpc, ...]]


@dataclasses.dataclass(frozen=True, slots=True)
class Schema:
    """The gRPC form of one interface."""

    interface: Interface
    file: descriptor_pb2.FileDescriptorProto
    pool: descriptor_pool.DescriptorPool
    service: str
    rpcs: tuple[Rpc, ...]


def _callback_node(parameter: Parameter) -> TypeNode | None:
    """The type of what is called back there; None for any other parameter."""
    node = parameter.node.args[0] if parameter.node.kind == Kind.OPTIONAL else parameter.node
    return node if node.kind == Kind.CALLBACK else None


def _method_of(node: TypeNode) -> Method:
    """A plain callable as a method without a name."""
    *takes, returns = node.args
    parameters = [Parameter(f"argument{i}", one, MISSING, False) for i, one in enumerate(takes)]
    return Method("", 0, tuple(parameters), returns, False, None, inspect.Signature())


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
        methods = [(method, rpc_names.claim(camel(method.name))) for method in interface.methods]
        # Requests and responses get their plain names before any user class does: they are what a Go author types.
        messages = [self._messages(name) for _, name in methods]
        self.callbacks = [(method, self._callback_services(method, name)) for method, name in methods]
        for (method, name), (request, response) in zip(methods, messages, strict=True):
            self._method(self.service, method, name, request, response)
        for _, services in self.callbacks:
            for callback, own, request, response in services.values():
                self._method(own, callback, CALL, request, response)

    def _messages(self, name: str) -> tuple[str, str]:
        return self.names.claim(f"{name}Request"), self.names.claim(f"{name}Response")

    def _callback_services(self, method: Method, name: str) -> dict[str, tuple[Method, _Service, str, str]]:
        """A service of its own for each plain callable that the method takes."""
        made = {}
        for parameter in method.parameters:
            node = _callback_node(parameter)
            if node is not None and node.interface is None:
                service = self.file.service.add(name=self.names.claim(f"{name}{camel(parameter.name)}"))
                made[parameter.name] = (_method_of(node), service, *self._messages(service.name))
        return made

    def _method(self, service: _Service, method: Method, name: str, request: str, response: str) -> None:
        message = self.file.message_type.add(name=request)
        nodes = [(parameter.node, parameter.default is not MISSING) for parameter in method.parameters]
        takes_stream = any(node.kind == Kind.STREAM for node, _ in nodes)
        self._fields(message, [parameter.name for parameter in method.parameters], nodes, can_fail=takes_stream)
        streams = method.returns.kind == Kind.STREAM
        result = method.returns.args[0] if streams else method.returns
        self._fields(self.file.message_type.add(name=response), ["result"], [(result, False)])
        rpc = service.method.add(name=name, input_type=self._full(request), output_type=self._full(response))
        if takes_stream:
            rpc.client_streaming = True
        if streams:
            rpc.server_streaming = True

    def _full(self, name: str) -> str:
        return f".{self.file.package}.{name}"

    def _fields(
        self, message: descriptor_pb2.DescriptorProto, names: list[str], nodes: list[tuple[TypeNode, bool]], *, can_fail: bool = False
    ) -> None:
        *plain, cleared, failed = field_names([*names, CLEARED, FAILED])
        for number, (name, (node, defaulted)) in enumerate(zip(plain, nodes, strict=True), 1):
            field = message.field.add(name=name, number=number)
            self._field(message, field, node, presence=defaulted)
        if any(defaulted and is_clearable(node) for node, defaulted in nodes):
            message.field.add(name=cleared, number=CLEARED_NUMBER, label=_Field.LABEL_REPEATED, type=_Field.TYPE_UINT32)
        if can_fail:
            message.field.add(name=failed, number=FAILED_NUMBER, label=_Field.LABEL_OPTIONAL, type=_Field.TYPE_BYTES, proto3_optional=True)
        _add_presence_oneofs(message)

    def _field(self, message: descriptor_pb2.DescriptorProto, field: _Field, node: TypeNode, *, presence: bool) -> None:
        field.label = _Field.LABEL_OPTIONAL
        if node.kind == Kind.STREAM:
            self._set_type(field, node.args[0])
            if is_scalar(node.args[0]):
                field.proto3_optional = True  # a message may come without an item
        elif has_references(node):
            field.type = _Field.TYPE_UINT32
            if presence or node.kind == Kind.OPTIONAL:
                field.proto3_optional = True
        elif node.kind == Kind.OPTIONAL and node.args[0].kind not in (Kind.LIST, Kind.SEQUENCE, Kind.DICT):
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
    builder = _Builder(interface)
    file = builder.file
    pool = descriptor_pool.DescriptorPool()
    try:
        pool.AddSerializedFile(file.SerializeToString())
        service = pool.FindServiceByName(f"{file.package}.{file.service[0].name}")
    except (TypeError, KeyError) as error:
        raise ConfigError(f"interface {interface.name} cannot be expressed in protobuf: {error}. Rename what it mentions.") from error

    def made(method: Method, service: _Service, rpc: Any, callbacks: Mapping[str, tuple[Rpc, ...]]) -> Rpc:
        request, response = (
            message_factory.GetMessageClass(pool.FindMessageTypeByName(name[1:])) for name in (rpc.input_type, rpc.output_type)
        )
        return Rpc(method, f"/{file.package}.{service.name}/{rpc.name}", request, response, callbacks)

    rpcs = []
    for (method, services), rpc in zip(builder.callbacks, file.service[0].method, strict=True):
        callbacks: dict[str, tuple[Rpc, ...]] = {
            name: (made(one, service, service.method[0], {}),) for name, (one, service, _, _) in services.items()
        }
        for parameter in method.parameters:
            node = _callback_node(parameter)
            if node is not None and node.interface is not None:
                callbacks[parameter.name] = schema_of(node.interface).rpcs
        rpcs.append(made(method, file.service[0], rpc, callbacks))
    return Schema(interface, file, pool, service.full_name, tuple(rpcs))
