"""Files of protobuf descriptors from somewhere else, as a pool of their own with the services in them. Pure.

Two plugins may define one file differently, so no pool is shared, and the process's default pool takes part in none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from fastplug.errors import ConfigError, RemoteProtocolError

__all__ = ["Descriptors", "Files", "MethodShape", "files_of", "with_imports"]

# The largest known application (a cloud provider's whole API) describes itself in some hundreds of files of less than a MiB.
FILES_MAX = 2000
FILES_BYTES_MAX = 64 << 20

# What ``descriptors=`` takes: a FileDescriptorSet (or its bytes), or generated modules.
Descriptors = descriptor_pb2.FileDescriptorSet | bytes | ModuleType | Sequence[ModuleType]

_File = descriptor_pb2.FileDescriptorProto


@dataclasses.dataclass(frozen=True, slots=True)
class MethodShape:
    """One method: its path on the wire, who streams, its message classes, the parsed descriptor."""

    path: str
    streams_requests: bool
    streams_responses: bool
    request: type[Any]
    response: type[Any]
    descriptor: MethodDescriptor


class Files:
    """A pool of its own (``pool``) from serialized files, whose imports must be among them.

    Raises:
        RemoteProtocolError: they are malformed, or an import is missing or circular.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = dict(files)
        self.pool = descriptor_pool.DescriptorPool()
        for name in _in_order(self._files):
            try:
                self.pool.AddSerializedFile(self._files[name])
            except Exception as error:
                raise RemoteProtocolError(f"the description of {name:.200} is malformed: {error!s:.300}") from error

    def service(self, name: str) -> dict[str, MethodShape] | None:
        """The methods of a service by name; None if no file has it."""
        try:
            found: ServiceDescriptor = self.pool.FindServiceByName(name)
        except KeyError:
            return None
        return {method.name: self._shape(found, method) for method in found.methods}

    def _shape(self, service: ServiceDescriptor, method: MethodDescriptor) -> MethodShape:
        request, response = (message_factory.GetMessageClass(kind) for kind in (method.input_type, method.output_type))
        proto = descriptor_pb2.MethodDescriptorProto()
        method.CopyToProto(proto)
        path = f"/{service.full_name}/{method.name}"
        return MethodShape(path, proto.client_streaming, proto.server_streaming, request, response, method)

    def services(self) -> list[str]:
        """Full names of all services, in the order of the files."""
        found = []
        for serialized in self._files.values():
            file = _File.FromString(serialized)
            found += [f"{file.package}.{service.name}" if file.package else service.name for service in file.service]
        return found

    def file_set(self) -> descriptor_pb2.FileDescriptorSet:
        """All files, imported ones first: what protoc writes with --descriptor_set_out --include_imports."""
        return descriptor_pb2.FileDescriptorSet(file=[_File.FromString(self._files[name]) for name in _in_order(self._files)])


def _in_order(files: Mapping[str, bytes]) -> list[str]:
    """Names, each behind what it imports. Raises RemoteProtocolError: an import is missing or circular, or one file is malformed."""
    imports = {name: list(parsed(name, serialized).dependency) for name, serialized in files.items()}
    done: dict[str, None] = {}
    for first in imports:
        path: dict[str, int] = {first: 0}  # the way down, with how many imports of each are done
        while path:
            name, index = path.popitem()
            if index == len(imports[name]):
                done[name] = None
                continue
            path[name] = index + 1
            wanted = imports[name][index]
            if wanted in done:
                continue
            if wanted not in imports or wanted in path:
                raise RemoteProtocolError(
                    f"{name:.200} imports {wanted:.200}, which {'imports it' if wanted in imports else 'is not there'}"
                )
            path[wanted] = 0
    return list(done)


def parsed(name: str, serialized: bytes) -> Any:
    """A file. Raises RemoteProtocolError."""
    what = name or "a file"
    try:
        file = _File.FromString(serialized)
    except Exception as error:
        raise RemoteProtocolError(f"the description of {what:.200} is malformed: {error!s:.300}") from error
    if not all(isinstance(text, str) for text in (file.name, file.package, *file.dependency)):  # proto2 keeps what is no UTF-8, as bytes
        raise RemoteProtocolError(f"the description of {what:.200} is malformed: a name is not UTF-8")
    return file


def with_imports(found: Iterable[bytes], fetch: Callable[[str], Sequence[bytes]]) -> dict[str, bytes]:
    """The files and all they import, by name. ``fetch`` brings the files that have, or come with, one that is missing.

    Files of protobuf's own (google/protobuf/...) that ``fetch`` does not bring are taken from the installed protobuf: some peers leave
    them out.

    Raises:
        RemoteProtocolError: malformed, too many or too large, or an import that nobody has.
    """
    files: dict[str, bytes] = {}
    wanted: dict[str, None] = {}

    def take(serialized: Iterable[bytes]) -> None:
        for one in serialized:
            file = parsed("", one)
            files.setdefault(file.name, bytes(one))
            wanted.update(dict.fromkeys(file.dependency))
            if len(files) > FILES_MAX or sum(map(len, files.values())) > FILES_BYTES_MAX:
                raise RemoteProtocolError(f"the plugin describes itself in more than {FILES_MAX} files or {FILES_BYTES_MAX >> 20} MiB")

    take(found)
    while wanted:
        name, _ = wanted.popitem()
        if name in files:
            continue
        take(fetch(name))
        if name not in files:
            take([_installed(name)])
    return files


def _installed(name: str) -> bytes:
    from google.protobuf import (
        any_pb2,
        api_pb2,
        duration_pb2,
        empty_pb2,
        field_mask_pb2,
        source_context_pb2,
        struct_pb2,
        timestamp_pb2,
        type_pb2,
        wrappers_pb2,
    )

    modules: tuple[ModuleType, ...] = (any_pb2, api_pb2, descriptor_pb2, duration_pb2, empty_pb2, field_mask_pb2)
    modules += (source_context_pb2, struct_pb2, timestamp_pb2, type_pb2, wrappers_pb2)
    for module in modules:
        if name == module.DESCRIPTOR.name:
            found: bytes = module.DESCRIPTOR.serialized_pb
            return found
    raise RemoteProtocolError(f"the plugin's files import {name:.200}, and it does not have it. Pass descriptors= that have it.")


def files_of(descriptors: Descriptors) -> Files:
    """What a user gave as ``descriptors=``. Raises ConfigError."""
    if isinstance(descriptors, bytes):
        try:
            descriptors = descriptor_pb2.FileDescriptorSet.FromString(descriptors)
        except Exception as error:
            raise ConfigError(f"descriptors= is bytes, but no serialized FileDescriptorSet: {error}") from error
    if isinstance(descriptors, descriptor_pb2.FileDescriptorSet):
        found = [file.SerializeToString() for file in descriptors.file]
    else:
        modules = [descriptors] if isinstance(descriptors, ModuleType) else list(descriptors)
        if not all(hasattr(getattr(module, "DESCRIPTOR", None), "serialized_pb") for module in modules):
            raise ConfigError("descriptors= takes a FileDescriptorSet, its bytes, or modules that protoc generated (..._pb2)")
        found = _closure(modules)
    try:
        return Files(with_imports(found, lambda name: ()))
    except RemoteProtocolError as error:
        raise ConfigError(f"descriptors= cannot be used: {error}") from error


def _closure(modules: Sequence[ModuleType]) -> list[bytes]:
    """The modules' files and what they import, which is loaded with them."""
    found: dict[str, bytes] = {}
    waiting = [module.DESCRIPTOR for module in modules]
    while waiting:
        file = waiting.pop()
        if file.name not in found:
            found[file.name] = file.serialized_pb
            waiting += file.dependencies
    return list(found.values())
