"""``grpc_service``: a service of somebody else's .proto, served from its descriptors at run time. The counterpart of ``service.py``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from google.protobuf.message import Message

from fastplug.broker import GRPCBroker
from fastplug.errors import ArgumentError, ConfigError, ResultError, RpcError
from fastplug.plugin import GRPCPlugin, made_servicer
from fastplug.protocols.grpc.channel import CallContext, Code, Handler, HandlerKind, MethodTable
from fastplug.protocols.grpc.descriptors import Descriptors, Files, MethodShape, files_of
from fastplug.protocols.grpc.fields import fill

__all__ = ["DescribedService", "method_table"]

_KINDS = {
    (False, False): HandlerKind.UNARY,
    (False, True): HandlerKind.SERVER_STREAM,
    (True, False): HandlerKind.CLIENT_STREAM,
    (True, True): HandlerKind.BIDI,
}


class DescribedService(GRPCPlugin):
    """What grpc_service() makes. Raises ConfigError: the descriptors cannot be used."""

    def __init__(self, name: str, implementation: object, descriptors: Descriptors) -> None:
        self._name, self._implementation = name, implementation
        self._files = files_of(descriptors)
        self.descriptor_pool = self._files.pool

    def grpc_server(self, broker: GRPCBroker, server: Any) -> None:
        server.add_methods(method_table(self._name, self._files, made_servicer(self._implementation, broker)))
        server.describe(self.descriptor_pool)


def method_table(name: str, files: Files, implementation: object) -> MethodTable:
    """Handlers for those methods of a service that the implementation has; the others are UNIMPLEMENTED.

    Raises:
        ConfigError: the files have no such service, or the implementation has none of its methods.
    """
    shapes = files.service(name)
    if shapes is None:
        raise ConfigError(f"the descriptors have no service {name!r}; they have: {', '.join(files.services()) or 'none'}")
    found = {}
    for method, shape in shapes.items():
        function = getattr(implementation, method, None)
        if callable(function):
            found[shape.path] = _handler(f"{name}.{method}", shape, function)
    if not found:
        raise ConfigError(f"{type(implementation).__qualname__} has none of the methods of {name}: {', '.join(shapes)}")
    return found


def _handler(what: str, shape: MethodShape, function: Callable[..., Any]) -> Handler:
    def response(result: Any) -> Message:
        return _response(what, shape, result)

    def unary(request: Any, context: CallContext) -> Message:
        return response(_called(function, request, context))

    def stream(request: Any, context: CallContext) -> Iterator[Message]:
        results: Iterable[Any] = _called(function, request, context)
        yield from map(response, _checked(results))

    handle = stream if shape.streams_responses else unary
    kind = _KINDS[shape.streams_requests, shape.streams_responses]
    return Handler(kind, handle, shape.request.FromString, lambda message: message.SerializeToString())


def _called(function: Callable[..., Any], request: Any, context: CallContext) -> Any:
    try:
        return function(request, context)
    except RpcError:
        raise
    except Exception as error:
        raise _status(error) from error


def _checked(results: Iterable[Any]) -> Iterator[Any]:
    """The results of a generator, whose body runs only now."""
    try:
        yield from results
    except RpcError:
        raise
    except Exception as error:
        raise _status(error) from error


def _status(error: Exception) -> RpcError:
    return RpcError(Code.UNKNOWN, f"{type(error).__name__}: {error!s:.1000}")


def _response(what: str, shape: MethodShape, result: Any) -> Message:
    """The message that a result means. Raises RpcError INTERNAL: what was returned is no such message."""
    made: Message = shape.response()
    try:
        if isinstance(result, Message):
            if result.DESCRIPTOR.full_name != made.DESCRIPTOR.full_name:
                raise ResultError(f"{what} returned a {result.DESCRIPTOR.full_name} instead of a {made.DESCRIPTOR.full_name}")
            if isinstance(result, type(made)):
                return result
            made.MergeFromString(result.SerializeToString())
        elif isinstance(result, Mapping):
            fill(made, result, made.DESCRIPTOR.name)
        else:
            raise ResultError(f"{what} returned {type(result).__name__} instead of a {made.DESCRIPTOR.full_name} or a mapping")
    except (ArgumentError, ResultError) as error:
        raise RpcError(Code.INTERNAL, f"{what}: {error}") from error
    return made
