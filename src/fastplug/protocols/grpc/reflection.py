"""What a peer says of its own services: gRPC server reflection, v1 and its older twin v1alpha. No gRPC library: paths, messages, questions.

Source: grpc/reflection/v1/reflection.proto.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pool import DescriptorPool

from fastplug.errors import ConfigError, RemoteProtocolError, RpcError
from fastplug.protocols.grpc.channel import CallContext, Code, Handler, HandlerKind, MethodTable
from fastplug.protocols.grpc.descriptors import Files, with_imports
from fastplug.protocols.grpc.messages import FileBuilder

__all__ = ["VERSIONS", "Dialect", "Reflection", "is_internal", "reflection_methods"]


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
    file = FileBuilder(package)
    file.message("ExtensionRequest", "string containing_type = 1", "int32 extension_number = 2")
    file.message("ServerReflectionRequest", "string host = 1")
    file.oneof(
        "ServerReflectionRequest",
        "message_request",
        "string file_by_filename = 3",
        "string file_containing_symbol = 4",
        "ExtensionRequest file_containing_extension = 5",
        "string all_extension_numbers_of_type = 6",
        "string list_services = 7",
    )
    file.message("FileDescriptorResponse", "repeated bytes file_descriptor_proto = 1")
    file.message("ExtensionNumberResponse", "string base_type_name = 1", "repeated int32 extension_number = 2")
    file.message("ServiceResponse", "string name = 1")
    file.message("ListServiceResponse", "repeated ServiceResponse service = 1")
    file.message("ErrorResponse", "int32 error_code = 1", "string error_message = 2")
    file.message("ServerReflectionResponse", "string valid_host = 1", "ServerReflectionRequest original_request = 2")
    file.oneof(
        "ServerReflectionResponse",
        "message_response",
        "FileDescriptorResponse file_descriptor_response = 4",
        "ExtensionNumberResponse all_extension_numbers_response = 5",
        "ListServiceResponse list_services_response = 6",
        "ErrorResponse error_response = 7",
    )
    file.service("ServerReflection", "ServerReflectionInfo stream ServerReflectionRequest stream ServerReflectionResponse")
    return Dialect(package, *file.done("ServerReflectionRequest", "ServerReflectionResponse"))


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


def reflection_methods(services: Callable[[], Iterable[str]], pools: Callable[[], Iterable[DescriptorPool]]) -> MethodTable:
    """The reflection service of a plugin, in both versions.

    Args: ``services`` gives the full names to list; ``pools`` where their files are, the first that has one wins. Both are asked anew
    for each question, so that services that are added later are told, too.
    """
    described = _Described(services, pools)
    table = {}
    for dialect in VERSIONS:
        answer = functools.partial(described.answer, dialect)
        table[dialect.path] = Handler(HandlerKind.BIDI, answer, dialect.request.FromString, dialect.response.SerializeToString)
    return table


class _Described:
    """Answers questions."""

    def __init__(self, services: Callable[[], Iterable[str]], pools: Callable[[], Iterable[DescriptorPool]]) -> None:
        self._services = services
        self._pools = pools

    def answer(self, dialect: Dialect, questions: Iterator[Any], context: CallContext) -> Iterator[Any]:
        for question in questions:
            response = dialect.response(valid_host=question.host, original_request=question)
            try:
                self._fill(response, question)
            except KeyError:  # what a pool raises for a name that it does not have
                response.error_response.error_code = Code.NOT_FOUND
                response.error_response.error_message = f"not found: {question.WhichOneof('message_request') or 'nothing was asked'}"
            yield response

    def _fill(self, response: Any, question: Any) -> None:
        kind = question.WhichOneof("message_request")
        if kind == "list_services":
            for name in sorted(self._services()):
                response.list_services_response.service.add(name=name)
        elif kind == "file_by_filename":
            self._give(response, self._find(lambda pool: pool.FindFileByName(question.file_by_filename)))
        elif kind == "file_containing_symbol":
            self._give(response, self._find(lambda pool: _file_of(pool, question.file_containing_symbol)))
        elif kind == "file_containing_extension":
            wanted = question.file_containing_extension
            of = lambda pool: pool.FindExtensionByNumber(pool.FindMessageTypeByName(wanted.containing_type), wanted.extension_number)  # noqa: E731
            self._give(response, self._find(of).file)
        elif kind == "all_extension_numbers_of_type":
            name = question.all_extension_numbers_of_type
            found = self._find(lambda pool: pool.FindAllExtensions(pool.FindMessageTypeByName(name)))
            response.all_extension_numbers_response.base_type_name = name
            response.all_extension_numbers_response.extension_number.extend(sorted(one.number for one in found))
        else:
            raise KeyError(kind)

    def _find(self, look: Callable[[Any], Any]) -> Any:
        """In the first pool that has it. Raises KeyError."""
        for pool in self._pools():
            try:
                return look(pool)
            except KeyError:
                continue
        raise KeyError

    @staticmethod
    def _give(response: Any, file: FileDescriptor) -> None:
        """A file and all it imports, as grpc-go answers: some clients do not ask for imports."""
        files: dict[str, bytes] = {}
        waiting = [file]
        while waiting:
            one = waiting.pop(0)
            if one.name not in files:
                files[one.name] = one.serialized_pb
                waiting += one.dependencies
        response.file_descriptor_response.file_descriptor_proto.extend(files.values())


def _file_of(pool: DescriptorPool, symbol: str) -> FileDescriptor:
    """The file with a symbol; protobuf's pools do not look for methods by themselves. Raises KeyError."""
    try:
        return pool.FindFileContainingSymbol(symbol)
    except KeyError:
        service, _, method = symbol.rpartition(".")
        return pool.FindServiceByName(service).FindMethodByName(method).containing_service.file
