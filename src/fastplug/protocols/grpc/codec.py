"""The messages of one method <-> its arguments, its result, the items of its streams. Pure but for what passes by reference.

Streams and callbacks do not travel as values: ``Passing`` and ``Received`` say what becomes of them.
"""

from __future__ import annotations

from typing import Any, Protocol

from google.protobuf.message import EncodeError

from fastplug import _wire_words as words
from fastplug._wire import unpack_error
from fastplug._wire_words import Unbuilt, Unfit, canonical
from fastplug.annotation import MISSING, Kind, TypeNode, has_references
from fastplug.errors import ArgumentError, RemoteError, ResultError
from fastplug.interfaces import Parameter
from fastplug.protocols.grpc.arrays import ArrayCopies
from fastplug.protocols.grpc.elements import Compiler, Field, sent
from fastplug.protocols.grpc.errors import Malformed
from fastplug.protocols.grpc.names import field_names
from fastplug.protocols.grpc.schema import CLEARED, FAILED, Rpc

__all__ = ["MethodCodec", "Passing", "Received"]


class _Number(int):
    """A broker's number, among arguments."""


class Passing(Protocol):
    """What becomes of arguments that do not travel as values."""

    def stream(self, value: Any) -> None:
        """The argument that is a stream. Raises Unfit."""

    def callback(self, value: Any, node: TypeNode, rpcs: tuple[Rpc, ...]) -> int:
        """The broker's number for something that the peer may call. Raises Unfit."""
        ...


class Received(Protocol):
    """What stands in the handler for arguments that did not travel as values."""

    def stream(self) -> Any: ...
    def callback(self, number: int, node: TypeNode, rpcs: tuple[Rpc, ...]) -> Any: ...


class MethodCodec:
    """Requests and responses of one method. Thread-safe.

    Args: ``rpc`` its path and message classes; ``interface`` the name for error texts; ``copies`` counts array copies; ``callback``: the
    host answers it.
    """

    def __init__(self, rpc: Rpc, interface: str, copies: ArrayCopies, *, callback: bool = False) -> None:
        compiler = Compiler(copies)
        method = rpc.method
        self.method = method
        self.path = rpc.path
        self.qualified = f"{interface}.{method.name}" if method.name else interface
        self.callback = callback
        self._callbacks = rpc.callbacks
        self._names = [parameter.name for parameter in method.parameters]
        self._keyword_only = [parameter.name for parameter in method.parameters if parameter.keyword_only]
        self._request, self._response = rpc.request, rpc.response
        self._fields = compiler.fields(self._names, [(p.node, p.default is not MISSING) for p in method.parameters])
        self.streams = method.returns.kind == Kind.STREAM
        self._returns = method.returns.args[0] if self.streams else method.returns
        (self._result,) = compiler.fields(["result"], [(self._returns, False)])
        fed = [index for index, p in enumerate(method.parameters) if p.node.kind == Kind.STREAM]
        self._fed = fed[0] if fed else None
        self._failed = field_names([*self._names, CLEARED, FAILED])[-1]

    @property
    def takes_stream(self) -> bool:
        """Whether one of its parameters is a stream."""
        return self._fed is not None

    @property
    def only_stream(self) -> bool:
        """Whether a stream is all that it takes: then each request is an item."""
        return self.takes_stream and len(self._fields) == 1

    @property
    def has_references(self) -> bool:
        """Whether it has streams or callbacks."""
        return self.method.has_references

    def encode_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any], passing: Passing | None = None) -> bytes:
        """The request, without an item of a stream. Raises ArgumentError; nothing was sent."""
        message = self._request()
        for parameter, field, given in zip(self.method.parameters, self._fields, self._bound(args, kwargs), strict=True):
            if given is MISSING:
                continue  # the plugin's default
            try:
                if parameter.node.kind == Kind.STREAM and passing is not None:
                    passing.stream(given)
                elif has_references(parameter.node) and passing is not None:
                    number = 0
                    if given is not None or parameter.node.kind != Kind.OPTIONAL:
                        node = parameter.node.args[0] if parameter.node.kind == Kind.OPTIONAL else parameter.node
                        number = passing.callback(given, node, self._callbacks[parameter.name])
                    field.write(message, number, 0)
                else:
                    field.write(message, given, 0)
            except Exception as error:  # noqa: BLE001  argument_error sorts out what concerns the value
                raise words.argument_error(self.qualified, parameter.name, canonical(parameter.node), given, error)  # noqa: B904  it has its cause
        return self._serialized(message)

    def _serialized(self, message: Any) -> bytes:
        try:
            data: bytes = message.SerializeToString()
        except (EncodeError, ValueError) as error:
            text = f"{self.qualified}(): the arguments are more than 2 GiB, protobuf's limit; send them in pieces"
            raise ArgumentError(text, method=self.qualified) from error
        return data

    def encode_item(self, value: Any) -> bytes:
        """A request with an item of the stream that the method takes. Raises ArgumentError."""
        assert self._fed is not None
        message = self._request()
        try:
            self._fields[self._fed].write(message, value, 0)
        except Exception as error:  # noqa: BLE001  argument_error sorts out what concerns the value
            node = self.method.parameters[self._fed].node.args[0]
            raise words.argument_error(self.qualified, "item of the stream", canonical(node), value, error)  # noqa: B904  it has its cause
        return self._serialized(message)

    def encode_failure(self, error: bytes) -> bytes:
        """The last request of a stream that failed; ``error`` as in wire.md, "Errors"."""
        message = self._request()
        setattr(message, self._failed, error)
        return self._serialized(message)

    def decode_item(self, data: bytes) -> Any:
        """The item in a request; MISSING when it has none. Raises Malformed, and what the stream failed with, as RemoteError."""
        assert self._fed is not None
        try:
            message = self._request.FromString(data)
            if message.HasField(self._failed):
                raise unpack_error(getattr(message, self._failed), self.qualified, "host")
            return self._fields[self._fed].read(message, 0)
        except RemoteError:
            raise
        except Unbuilt as refused:
            raise _raised_in(refused)  # noqa: B904  as if the handler had raised it: the caller chose the values
        except Exception as error:
            raise Malformed(f"{self.qualified}(): an item of the stream is malformed: {_words(error)}") from error

    def _bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """The value of each parameter, MISSING where its default stands; the rules and words of the compiled codec."""
        given, positional = len(args), len(self._names) - len(self._keyword_only)
        if given > positional:
            raise words.too_many(self.qualified, positional, given)
        values = [*args, *([MISSING] * (len(self._names) - given))]
        for name, value in kwargs.items():
            if name not in self._names:
                raise words.unexpected(self.qualified, name)
            i = self._names.index(name)
            if i < given:
                raise words.given_twice(self.qualified, name)
            values[i] = value
        lacking = [p for p, value in zip(self.method.parameters, values, strict=True) if value is MISSING and p.default is MISSING]
        if lacking:
            raise words.missing(self.qualified, [p.name for p in lacking if not p.keyword_only], [p.name for p in lacking])
        return values

    def decode_arguments(self, data: bytes, received: Received | None = None) -> tuple[list[Any], dict[str, Any]]:
        """What to call the handler with. Raises Malformed, what ``received`` raises, and the constructor of an argument's class."""
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        try:
            message = self._request.FromString(data)
            values = [
                self._argument(parameter, field, message) for parameter, field in zip(self.method.parameters, self._fields, strict=True)
            ]
        except Unbuilt as refused:
            raise _raised_in(refused)  # noqa: B904  as above
        except Exception as error:  # bad bytes, bad values
            raise Malformed(f"{self.qualified}(): the host's request is malformed: {_words(error)}") from error
        for parameter, value in zip(self.method.parameters, values, strict=True):
            if received is not None and has_references(parameter.node):
                value = self._received(parameter, value, received)  # noqa: PLW2901
            if parameter.keyword_only:
                kwargs[parameter.name] = value
            else:
                args.append(value)
        return args, kwargs

    @staticmethod
    def _argument(parameter: Parameter, field: Field, message: Any) -> Any:
        if parameter.node.kind == Kind.STREAM:
            return None
        if has_references(parameter.node):
            number = field.read(message, 0)
            if number is MISSING and parameter.default is not MISSING:
                return parameter.default
            if number in (0, MISSING) and parameter.node.kind != Kind.OPTIONAL:
                raise ValueError(f"field {parameter.name!r} is missing")
            return None if number in (0, MISSING) else _Number(number)
        value = sent(field, message, parameter.name, 0, parameter.default)
        return parameter.default if value is MISSING else value

    def _received(self, parameter: Parameter, value: Any, received: Received) -> Any:
        if parameter.node.kind == Kind.STREAM:
            return received.stream()
        if isinstance(value, _Number):
            node = parameter.node.args[0] if parameter.node.kind == Kind.OPTIONAL else parameter.node
            return received.callback(int(value), node, self._callbacks[parameter.name])
        return value

    def encode_result(self, value: Any) -> bytes:
        """The response. Raises ResultError."""
        message = self._response()
        try:
            self._result.write(message, value, 0)
        except Exception as error:  # noqa: BLE001  result_error sorts out what concerns the value
            raise words.result_error(self.qualified, canonical(self._returns), value, error, callback=self.callback)  # noqa: B904  it has its cause
        try:
            data: bytes = message.SerializeToString()
        except (EncodeError, ValueError) as error:
            raise ResultError(f"{self.qualified}(): the result is more than 2 GiB, protobuf's limit; return it in pieces") from error
        return data

    def decode_result(self, data: bytes) -> Any:
        """The value. Raises Malformed, and Unbuilt, a RemoteProtocolError too."""
        try:
            return sent(self._result, self._response.FromString(data), "result", 0)
        except Unbuilt:
            raise
        except Exception as error:  # bad bytes, bad values
            raise Malformed(f"{self.qualified}(): the plugin's response is malformed: {_words(error)}") from error


def _words(error: Exception) -> str:
    return f"it holds {error.got}" if isinstance(error, Unfit) else str(error) or type(error).__name__


def _raised_in(refused: Unbuilt) -> BaseException:
    """What the constructor raised. The two let go of each other: else what both keep would stay until the next collection."""
    cause = refused.__cause__ or refused
    refused.__cause__ = refused.__context__ = None
    return cause
