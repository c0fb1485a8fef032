"""``client.service``: a service of the plugin as an object, made from its descriptors at run time. No stubs, no .proto.

A method takes the fields of its request as keyword arguments, or one message or mapping. Responses are messages of the plugin's own pool.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, Self

from google.protobuf.message import Message

from fastplug.contexts import METADATA
from fastplug.deadlines import remaining_s
from fastplug.errors import ArgumentError, DeadlineExceeded, InterfaceMismatch, RemoteProtocolError, RpcError
from fastplug.protocols.grpc.channel import Code
from fastplug.protocols.grpc.descriptors import Files, MethodShape
from fastplug.protocols.grpc.fields import argument_name, fill, python_type
from fastplug.protocols.grpc.streaming import RequestQueue, Responses, StreamCalls

__all__ = ["Caller", "Service", "StreamingCall", "make_service"]


class Caller(Protocol):
    """What a service needs of the connection."""

    streams: StreamCalls

    def call_unary(self, path: str, request: bytes, timeout_s: float | None, what: str, metadata: tuple[tuple[str, str], ...]) -> bytes:
        """The response. Raises an error of the tree."""
        ...

    def translated(self, status: RpcError, what: str) -> Exception:
        """The error of the tree for a failed call."""
        ...

    def check_open(self, what: str) -> None:
        """Raises Closed or PluginDied."""


class Service:
    """Base of all service objects: ``client.service("package.Service")``. Thread-safe; lives as long as the connection.

    Each method of the service is a method here, under its own name. It takes the fields of its request as keyword arguments, or one
    message or mapping, and ``timeout_s`` (the smaller of it and ``fastplug.deadline`` counts; to a request that has a field of that name
    only the deadline applies). A stream of requests is an iterable of messages or mappings; without one, the method gives a
    ``StreamingCall`` to send them through. A stream of responses is an iterator, to be used with ``with`` where it is not read to its end.

    Raises, each: ArgumentError (nothing was sent), RpcError, DeadlineExceeded, PluginDied, Closed, RemoteProtocolError.
    """

    _fastplug_name = ""
    _fastplug_about = ""

    def __repr__(self) -> str:
        return f"<fastplug service {self._fastplug_name} of {self._fastplug_about}>"

    def __reduce__(self) -> Any:
        raise TypeError("a live service cannot be pickled; open the plugin where it is needed")


class StreamingCall:
    """A call whose requests are sent one by one: ``send``, then ``end``. Thread-safe for one sender beside one reader.

    With ``with``, leaving the block cancels what is not over. Iterate over it for a stream of responses; ``result()`` is the one response
    of a call without one.
    """

    def __init__(self, requests: RequestQueue, responses: Responses, request_of: Callable[[Any, Mapping[str, Any]], Message]) -> None:
        self._requests = requests
        self._responses = responses
        self._request_of = request_of

    def send(self, message: Message | Mapping[str, Any] | None = None, /, **fields: Any) -> None:
        """Sends one request. Raises ArgumentError. One that comes after the end of the call is dropped; reading says why it ended."""
        self._requests.put(self._request_of(message, fields))

    def end(self) -> None:
        """No more requests. Idempotent."""
        self._requests.end()

    def result(self) -> Any:
        """Ends the requests and waits for the one response."""
        self.end()
        return _only(self._responses)

    def cancel(self) -> None:
        """Ends the call. Idempotent."""
        self._responses.cancel()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._responses)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.cancel()


def _only(responses: Responses) -> Any:
    """The response of a call that must have exactly one. Another number is the plugin's fault, and INTERNAL by gRPC's own rules."""
    with responses:
        for response in responses:
            for _ in responses:
                raise RpcError(Code.INTERNAL, "the plugin sent a second response to a call that has one")
            return response
    raise RpcError(Code.INTERNAL, "the plugin ended the call with OK, but without the response that it must have")


def _metadata() -> tuple[tuple[str, str], ...]:
    """What ``fastplug.metadata`` sends with this thread's or task's calls."""
    outer = METADATA.get()
    return () if outer is None else tuple(outer[0].items())


class _Method:
    """One method of a service, for its calls."""

    def __init__(self, shape: MethodShape, caller: Caller, service: str) -> None:
        self.shape = shape
        self.what = f"{service}.{shape.descriptor.name}()"
        self._caller = caller
        self._own_timeout = "timeout_s" not in shape.request.DESCRIPTOR.fields_by_name

    def request(self, message: Any, fields: Mapping[str, Any]) -> Message:
        """The request that an argument and keyword arguments mean. Raises ArgumentError."""
        made: Message = self.shape.request()
        if message is not None and fields:
            raise ArgumentError(f"{self.what} takes a message or keyword arguments, got both")
        values = fields if message is None else message
        if isinstance(values, Message):
            if values.DESCRIPTOR.full_name != made.DESCRIPTOR.full_name:
                raise ArgumentError(f"{self.what} takes a {made.DESCRIPTOR.full_name}, got a {values.DESCRIPTOR.full_name}")
            made.MergeFromString(values.SerializeToString())
        elif isinstance(values, Mapping):
            fill(made, values, made.DESCRIPTOR.name)
        else:
            raise ArgumentError(f"{self.what} takes a {made.DESCRIPTOR.full_name} or a mapping, got {type(values).__name__}")
        return made

    def response(self, data: bytes) -> Any:
        try:
            return self.shape.response.FromString(data)
        except Exception as error:
            raise RemoteProtocolError(f"the plugin's response to {self.what} is no {self.shape.response.DESCRIPTOR.full_name}") from error

    def __call__(self, message: Any, fields: dict[str, Any]) -> Any:
        timeout_s = self._timeout_s(fields)
        self._caller.check_open(self.what)
        if not self.shape.streams_requests:
            request = self.request(message, fields)
            if not self.shape.streams_responses:
                return self.response(
                    self._caller.call_unary(self.shape.path, request.SerializeToString(), timeout_s, self.what, _metadata())
                )
            return self._stream((request,), timeout_s)
        if fields:
            raise ArgumentError(f"{self.what} streams requests: pass an iterable of messages or mappings, or nothing and use send()")
        if message is None:
            queue = RequestQueue()
            return StreamingCall(queue, self._stream(queue, timeout_s), self.request)
        if isinstance(message, Message | Mapping | str | bytes) or not isinstance(message, Iterable):
            raise ArgumentError(f"{self.what} streams requests: it takes an iterable of messages or mappings, got {type(message).__name__}")
        responses = self._stream((self.request(one, {}) for one in message), timeout_s)
        return responses if self.shape.streams_responses else _only(responses)

    def _stream(self, requests: Iterable[Message], timeout_s: float | None) -> Responses:
        return self._caller.streams.call(
            self.shape.path,
            requests,
            timeout_s,
            metadata=_metadata(),
            encode=lambda request: request.SerializeToString(),
            decode=self.response,
            translate=lambda status: self._caller.translated(status, self.what),
        )

    def _timeout_s(self, fields: dict[str, Any]) -> float | None:
        own = fields.pop("timeout_s", None) if self._own_timeout else None
        if own is not None and not (isinstance(own, int | float) and own >= 0):
            raise ArgumentError(f"{self.what}: timeout_s takes seconds, got {own!r}")
        bounds = [bound for bound in (own, remaining_s()) if bound is not None]
        if bounds and min(bounds) <= 0:
            raise DeadlineExceeded(f"{self.what}: the deadline was over before the call; nothing was sent")
        return min(bounds, default=None)


def _signature(shape: MethodShape) -> inspect.Signature:
    kind = inspect.Parameter
    found: dict[str, inspect.Parameter] = {}  # a field may have any name, also one of these

    def add(name: str, how: Any, default: Any = kind.empty, annotation: str = "Any") -> None:
        while name in found:
            name += "_"
        found[name] = kind(name, how, default=default, annotation=annotation)

    add("self", kind.POSITIONAL_ONLY, annotation="Service")
    if shape.streams_requests:
        add("requests", kind.POSITIONAL_ONLY, None, f"Iterable[{shape.request.DESCRIPTOR.name}] | None")
    else:
        fields = shape.request.DESCRIPTOR.fields
        taken = {argument_name(field.name) for field in fields}
        add("message" if "message" not in taken else "message_", kind.POSITIONAL_ONLY, None, f"{shape.request.DESCRIPTOR.name} | None")
        for field in fields:
            add(argument_name(field.name), kind.KEYWORD_ONLY, None, python_type(field))
    if "timeout_s" not in shape.request.DESCRIPTOR.fields_by_name:
        add("timeout_s", kind.KEYWORD_ONLY, None, "float | None")
    response = shape.response.DESCRIPTOR.name
    return inspect.Signature(list(found.values()), return_annotation=f"Iterator[{response}]" if shape.streams_responses else response)


def _doc(shape: MethodShape) -> str:
    """Both messages and their fields, in words: reflection carries no comments."""
    kinds = {(False, False): "unary", (False, True): "server stream", (True, False): "client stream", (True, True): "bidirectional stream"}
    lines = [f"{shape.path} ({kinds[shape.streams_requests, shape.streams_responses]})."]
    for word, message in (("Request", shape.request), ("Response", shape.response)):
        fields = [f"    {argument_name(field.name)}: {_field_doc(field)}" for field in message.DESCRIPTOR.fields]
        lines += ["", f"{word}: {message.DESCRIPTOR.full_name}{'' if fields else ', without fields'}", *fields]
    return "\n".join(lines)


def _field_doc(field: Any) -> str:
    text = python_type(field)
    if field.enum_type is not None:
        text += f" ({', '.join(value.name for value in field.enum_type.values)})"
    oneof = field.containing_oneof
    return f"{text}, one of {oneof.name}" if oneof is not None and len(oneof.fields) > 1 else text


def _face(name: str, shape: MethodShape, method: _Method) -> Callable[..., Any]:
    def call(self: Service, message: Any = None, /, **fields: Any) -> Any:
        return method(message, fields)

    call.__name__ = name
    call.__qualname__ = f"{shape.descriptor.containing_service.name}.{name}"
    call.__doc__ = _doc(shape)
    for attribute, value in (("__signature__", _signature(shape)), ("request", shape.request), ("response", shape.response)):
        setattr(call, attribute, value)
    return call


def make_service(name: str, files: Files, caller: Caller, about: str, offered: Callable[[], Iterable[str]]) -> Service:
    """The object for a service.

    Raises:
        InterfaceMismatch: the files have no such service; names those that ``offered`` gives.
    """
    shapes = files.service(name)
    if shapes is None:
        known = ", ".join(offered()) or "none"
        raise InterfaceMismatch(f"the plugin has no service {name!r}; it has: {known}", interface=name)
    namespace: dict[str, Any] = {"_fastplug_name": name, "_fastplug_about": about, "__module__": __name__, "__doc__": f"{name} of {about}."}
    for method, shape in shapes.items():
        if method.startswith(("__", "_fastplug_")):  # no service is meant to change what a Python object is
            continue
        namespace[method] = _face(method, shape, _Method(shape, caller, name))
    made: Service = type(name.rpartition(".")[2], (Service,), namespace)()
    return made
