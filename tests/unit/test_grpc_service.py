"""Services made from descriptors, over a real channel: reflection in both versions, files that a peer made up, calls of all kinds, streams
that are left early."""

from __future__ import annotations

import contextlib
import inspect
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, timestamp_pb2
from google.protobuf.descriptor_pool import DescriptorPool
from tests.interop import peer_proto
from tests.interop.peer_proto import SERVICE

from fastplug import grpc_service, metadata
from fastplug.deadlines import deadline
from fastplug.errors import ArgumentError, Cancelled, ConfigError, DeadlineExceeded, InterfaceMismatch, RpcError
from fastplug.protocols.grpc.calls import Calls
from fastplug.protocols.grpc.catalog import Catalog
from fastplug.protocols.grpc.channel import Code, Handler, HandlerKind, Limits, MethodTable, select
from fastplug.protocols.grpc.descriptors import files_of
from fastplug.protocols.grpc.reflection import VERSIONS, is_internal, reflection_methods
from fastplug.protocols.grpc.stream import SocketStream
from fastplug.protocols.grpc.streaming import AHEAD_MAX, StreamCalls

WATCHDOG_S = 60.0


def peer_pool() -> DescriptorPool:
    pool = DescriptorPool()
    for file in peer_proto.descriptors().file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


class Caller:
    """A connection as ``Catalog`` wants it."""

    def __init__(self, channel: Any) -> None:
        self.calls = Calls(channel, ())
        self.streams = StreamCalls(channel, self.calls.post, ())

    def call_unary(self, path: str, request: bytes, timeout_s: float | None, what: str, metadata: Any) -> bytes:
        try:
            return self.calls.unary(path, request, timeout_s, metadata)
        except RpcError as status:
            raise self.translated(status, what) from status

    def translated(self, status: RpcError, what: str) -> Exception:
        return DeadlineExceeded(what) if status.code == Code.DEADLINE_EXCEEDED else status

    def check_open(self, what: str) -> None:
        pass


class Peer:
    """Serves Peer, with what it has seen."""

    def __init__(self) -> None:
        self.sent = 0
        self.left = threading.Event()

    def methods(self) -> MethodTable:
        kinds = {
            (False, False): HandlerKind.UNARY,
            (False, True): HandlerKind.SERVER_STREAM,
            (True, False): HandlerKind.CLIENT_STREAM,
            (True, True): HandlerKind.BIDI,
        }
        table = {}
        for name in ("Unary", "ServerStream", "ClientStream", "BidiStream", "Fail", "Wait"):
            shape = peer_proto.method(name)
            handle = getattr(self, name.lower())
            kind = kinds[shape.streams_requests, shape.streams_responses]
            table[shape.path] = Handler(kind, handle, shape.request.FromString, lambda made: made.SerializeToString())
        return table

    def answer(self, digest: str, index: int = 0) -> Any:
        return peer_proto.method("Unary").response(digest=digest, index=index)

    def unary(self, ask: Any, context: Any) -> Any:
        if ask.nonce == "metadata":
            return self.answer(dict(context.invocation_metadata())["tenant"])
        return self.answer(ask.nonce, ask.count)

    def serverstream(self, ask: Any, context: Any) -> Iterator[Any]:
        context.add_callback(self.left.set)
        for index in range(ask.count):
            self.sent = index + 1
            yield self.answer(ask.nonce, index)

    def clientstream(self, asks: Iterator[Any], context: Any) -> Any:
        nonces = [ask.nonce for ask in asks]
        return self.answer(",".join(nonces), len(nonces))

    def bidistream(self, asks: Iterator[Any], context: Any) -> Iterator[Any]:
        context.add_callback(self.left.set)
        for index, ask in enumerate(asks):
            if ask.nonce == "metadata":
                yield self.answer(dict(context.invocation_metadata())["tenant"])
                continue
            if ask.nonce == "interrupt":
                os.kill(os.getpid(), signal.SIGINT)  # while the reader waits
                continue
            yield self.answer(ask.nonce, index)

    def fail(self, ask: Any, context: Any) -> Any:
        raise RpcError(Code.NOT_FOUND, f"no {ask.nonce}", b"", [("grpc-status-details-bin", b"\x08\x05")])

    def wait(self, ask: Any, context: Any) -> Any:
        over = threading.Event()
        context.add_callback(over.set)
        over.wait(WATCHDOG_S)
        return self.answer("")


@contextlib.contextmanager
def connected(*tables: MethodTable) -> Iterator[Caller]:
    ours, theirs = socket.socketpair()
    server = select().server(workers=8, limits=Limits())
    for table in tables:
        server.add_methods(table)
    server.attach(SocketStream(theirs))
    channel = select().connect(SocketStream(ours), None, authority="unused", limits=Limits())
    caller = Caller(channel)
    try:
        yield caller
    finally:
        channel.close()
        caller.streams.close()
        caller.calls.close()
        assert server.stop(None).wait(WATCHDOG_S)


def reflected(pool: DescriptorPool) -> MethodTable:
    return reflection_methods(lambda: [SERVICE, "grpc.health.v1.Health", "plugin.GRPCBroker"], lambda: [DescriptorPool(), pool])


@pytest.fixture
def peer() -> Iterator[tuple[Any, Peer]]:
    served = Peer()
    with connected(served.methods(), reflected(peer_pool())) as caller:
        yield Catalog(caller, "plugin 'peer'", WATCHDOG_S).service(SERVICE, None), served


# Reflection


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.package)
def test_a_service_is_found_by_either_version_of_reflection(version: Any) -> None:
    table = reflected(peer_pool())
    with connected(Peer().methods(), {version.path: table[version.path]}) as caller:
        catalog = Catalog(caller, "plugin 'peer'", WATCHDOG_S)
        assert catalog.names() == [SERVICE]
        service = catalog.service(SERVICE, None)
        assert service is catalog.service(SERVICE, None)
        assert service.Unary(nonce="n", count=3).index == 3
        names = [file.name for file in catalog.descriptors(SERVICE).file]
        assert names[-1] == "peer.proto"
        assert "google/protobuf/struct.proto" in names
        with pytest.raises(InterfaceMismatch, match=rf"no service 'a\.B'; it has: {SERVICE}"):
            catalog.service("a.B", None)
        assert files_of(catalog.descriptors(SERVICE)).services() == [SERVICE]


def test_without_reflection_the_error_says_what_to_do() -> None:
    with connected(Peer().methods()) as caller:
        catalog = Catalog(caller, "plugin 'peer'", WATCHDOG_S)
        with pytest.raises(ConfigError, match="descriptors="):
            catalog.service(SERVICE, None)
        assert catalog.service(SERVICE, peer_proto.descriptors()).Unary(nonce="n").digest == "n"
        assert catalog.service(SERVICE, peer_proto.descriptors().SerializeToString()).Unary(nonce="m").digest == "m"


def asking(*questions: dict[str, Any]) -> list[Any]:
    """The answers of our own reflection service."""
    dialect = VERSIONS[0]
    handler = reflected(peer_pool())[dialect.path]
    return list(handler.handle(iter([dialect.request(**question) for question in questions]), None))  # type: ignore[arg-type]


def test_our_reflection_answers_every_question() -> None:
    symbols = [SERVICE, f"{SERVICE}.Unary", "fastplug.interop.v1.Kinds.Point", "fastplug.interop.v1.Kinds.Color"]
    answers = asking(*({"file_containing_symbol": symbol} for symbol in symbols))
    for answer, symbol in zip(answers, symbols, strict=True):
        files = answer.file_descriptor_response.file_descriptor_proto
        assert descriptor_pb2.FileDescriptorProto.FromString(files[0]).name == "peer.proto"
        assert len(files) == 5
        assert answer.original_request.file_containing_symbol == symbol
    found, missing, unknown, nothing, extension, numbers, none = asking(
        {"file_by_filename": "google/protobuf/duration.proto"},
        {"file_by_filename": "x.proto"},
        {"file_containing_symbol": "no.such.Thing"},
        {},
        {"file_containing_extension": {"containing_type": f"{SERVICE}", "extension_number": 1}},
        {"all_extension_numbers_of_type": "fastplug.interop.v1.Kinds"},
        {"all_extension_numbers_of_type": "x"},
    )
    assert len(found.file_descriptor_response.file_descriptor_proto) == 1
    assert {answer.error_response.error_code for answer in (missing, unknown, nothing, extension, none)} == {Code.NOT_FOUND}
    assert numbers.all_extension_numbers_response.base_type_name == "fastplug.interop.v1.Kinds"
    assert not numbers.all_extension_numbers_response.extension_number


def test_what_carries_a_plugin_is_not_what_it_is_for() -> None:
    assert all(map(is_internal, ("plugin.GRPCBroker", "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection")))
    assert not any(map(is_internal, ("tfplugin5.Provider", "pluginx.Y", SERVICE)))


# Calls


def test_calls_of_all_kinds(peer: tuple[Any, Peer]) -> None:
    service, _ = peer
    assert service.Unary({"nonce": "m"}).digest == "m"
    assert service.Unary(peer_proto.method("Unary").request(nonce="g")).digest == "g"
    assert service.Unary().digest == ""
    assert [one.index for one in service.ServerStream(nonce="n", count=3)] == [0, 1, 2]
    assert service.ClientStream([{"nonce": "a"}, {"nonce": "b"}]).digest == "a,b"
    assert [one.digest for one in service.BidiStream({"nonce": str(i)} for i in range(40))] == [str(i) for i in range(40)]


def test_requests_one_by_one(peer: tuple[Any, Peer]) -> None:
    service, _ = peer
    with service.BidiStream() as call:
        for index in range(3):
            call.send(nonce=f"n{index}")
            assert next(call).digest == f"n{index}"
        call.end()
        assert list(call) == []
    gathering = service.ClientStream()
    gathering.send(nonce="x")
    gathering.send({"nonce": "y"})
    assert gathering.result().digest == "x,y"


def test_a_stream_left_early_is_cancelled_and_never_ran_far_ahead(peer: tuple[Any, Peer]) -> None:
    service, served = peer
    for leave in (lambda stream: stream.cancel(), lambda stream: stream.__exit__(None, None, None), lambda stream: None):
        served.left.clear()
        stream = service.ServerStream(nonce="n" * 10_000, count=100_000)
        assert next(stream).index == 0
        leave(stream)
        del stream
        assert served.left.wait(WATCHDOG_S)
        # what the reader's queue and the windows of HTTP/2 hold (grpcio's grow to some MiB), and no more
        assert served.sent < 5000 + AHEAD_MAX
    with service.BidiStream() as call:
        call.send(nonce="x")
        next(call)
        served.left.clear()
    assert served.left.wait(WATCHDOG_S)
    with pytest.raises(Cancelled):
        next(call)
    assert list(call) == []


def test_ctrl_c_ends_the_waiting_and_harms_nothing(peer: tuple[Any, Peer]) -> None:
    service, served = peer

    def wait() -> None:
        with service.BidiStream() as call:
            call.send(nonce="interrupt")
            next(call)

    with pytest.raises(KeyboardInterrupt):
        wait()
    assert served.left.wait(WATCHDOG_S)
    assert service.Unary(nonce="after").digest == "after"
    assert [one.digest for one in service.BidiStream([{"nonce": "again"}])] == ["again"]


def test_metadata_goes_with_every_call(peer: tuple[Any, Peer]) -> None:
    service, _ = peer
    with metadata(tenant="acme"):
        assert service.Unary(nonce="metadata").digest == "acme"
        assert [one.digest for one in service.BidiStream([{"nonce": "metadata"}])] == ["acme"]


def test_errors_of_calls(peer: tuple[Any, Peer]) -> None:
    service, _ = peer
    with pytest.raises(RpcError) as caught:
        service.Fail(nonce="such")
    assert (caught.value.code, caught.value.message, caught.value.details) == (Code.NOT_FOUND, "no such", b"\x08\x05")
    with pytest.raises(RpcError) as caught:
        service.Print(nonce="such")  # in the descriptors, and not served
    assert caught.value.code == Code.UNIMPLEMENTED
    for call in (lambda: service.Wait(timeout_s=0.05), lambda: service.Wait(timeout_s=0)):
        with pytest.raises(DeadlineExceeded, match="Wait"):
            call()
    with pytest.raises(DeadlineExceeded), deadline(after_s=0.05):
        service.Wait(timeout_s=60)
    with deadline(after_s=0.05), pytest.raises(DeadlineExceeded):
        list(service.BidiStream())


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda service: service.Unary(nonse="n"), "Ask has no field 'nonse'"),
        (lambda service: service.Unary({"nonce": "n"}, count=1), "got both"),
        (lambda service: service.Unary("n"), "or a mapping, got str"),
        (lambda service: service.Unary(timestamp_pb2.Timestamp()), r"got a google\.protobuf\.Timestamp"),
        (lambda service: service.Unary(timeout_s="1"), "timeout_s takes seconds"),
        (lambda service: service.ClientStream(nonce="n"), "streams requests"),
        (lambda service: service.ClientStream({"nonce": "n"}), "takes an iterable"),
        (lambda service: service.ClientStream(5), "takes an iterable"),
        (lambda service: service.ClientStream([{"nonse": "n"}]), "Ask has no field 'nonse'"),
        (lambda service: service.BidiStream().send(nonse="n"), "Ask has no field 'nonse'"),
    ],
)
def test_arguments_that_do_not_fit(peer: tuple[Any, Peer], call: Callable[[Any], Any], text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        call(peer[0])


def test_what_an_iterable_of_requests_raises_is_what_the_call_raises(peer: tuple[Any, Peer]) -> None:
    def broken() -> Iterator[Any]:
        yield {"nonce": "a"}
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        peer[0].ClientStream(broken())


def test_a_service_tells_what_it_takes(peer: tuple[Any, Peer]) -> None:
    service, _ = peer
    signature = inspect.signature(service.Echo)
    assert str(signature.parameters["points"]) == "points: 'list[Point]' = None"
    assert "class_" in signature.parameters
    assert signature.return_annotation == "KindsAnswer"
    assert (
        str(inspect.signature(service.BidiStream))
        == "(requests: 'Iterable[Ask] | None' = None, /, *, timeout_s: 'float | None' = None) -> 'Iterator[Answer]'"
    )
    text = inspect.getdoc(service.Echo) or ""
    assert "color: Color (COLOR_UNSPECIFIED, COLOR_RED, COLOR_BLUE)" in text
    assert "word: str, one of either" in text
    assert "wrapped: str" in text
    assert {"Unary", "Echo", "BidiStream"} <= set(dir(service))
    assert repr(service) == f"<fastplug service {SERVICE} of plugin 'peer'>"
    assert service.Echo.request.DESCRIPTOR.name == "Kinds"
    with pytest.raises(TypeError, match="cannot be pickled"):
        service.__reduce__()


class Served:
    """Peer by grpc_service: messages, mappings, generators, and what goes wrong."""

    def Unary(self, request: Any, context: Any) -> Any:
        if request.nonce == "status":
            raise RpcError(Code.NOT_FOUND, "mine")
        if request.nonce == "raise":
            raise KeyError("x")
        wrong = {"field": {"nothing": 1}, "type": timestamp_pb2.Timestamp(), "none": None}
        return wrong.get(request.nonce, {"digest": request.nonce})

    def ServerStream(self, request: Any, context: Any) -> Iterator[Any]:
        for index in range(request.count):
            yield {"index": index}
        if request.nonce:
            raise LookupError(request.nonce)

    def ClientStream(self, requests: Iterator[Any], context: Any) -> Any:
        return peer_proto.method("Unary").response(digest=",".join(request.nonce for request in requests))

    def BidiStream(self, requests: Iterator[Any], context: Any) -> Any:
        return [{"digest": request.nonce} for request in requests]


def test_a_service_is_served_from_descriptors() -> None:
    plugin = grpc_service(SERVICE, Served(), descriptors=peer_proto.descriptors())
    broker: Any = object()
    server = MethodsOf()
    plugin.grpc_server(broker, server)
    with connected(server.methods, reflection_methods(lambda: [SERVICE], lambda: [plugin.descriptor_pool])) as caller:
        service: Any = Catalog(caller, "plugin", WATCHDOG_S).service(SERVICE, None)
        assert service.Unary(nonce="n").digest == "n"
        assert [one.index for one in service.ServerStream(count=3)] == [0, 1, 2]
        assert service.ClientStream([{"nonce": "a"}, {"nonce": "b"}]).digest == "a,b"
        assert [one.digest for one in service.BidiStream([{"nonce": "a"}])] == ["a"]
        statuses = {
            "status": (Code.NOT_FOUND, "mine"),
            "raise": (Code.UNKNOWN, "KeyError: 'x'"),
            "field": (Code.INTERNAL, "has no field 'nothing'"),
            "type": (Code.INTERNAL, "returned a google.protobuf.Timestamp"),
            "none": (Code.INTERNAL, "returned NoneType"),
        }
        for nonce, (code, text) in statuses.items():
            with pytest.raises(RpcError, match=text) as caught:
                service.Unary(nonce=nonce)
            assert caught.value.code == code
        with pytest.raises(RpcError, match="LookupError: late"):
            list(service.ServerStream(count=1, nonce="late"))
        with pytest.raises(RpcError) as caught:
            service.Print()
        assert caught.value.code == Code.UNIMPLEMENTED


class MethodsOf:
    """What a plugin adds to its server."""

    def __init__(self) -> None:
        self.methods: MethodTable = {}

    def add_methods(self, methods: MethodTable) -> None:
        self.methods = methods

    def describe(self, pool: object) -> None:
        """For reflection, which there is none of here."""


def test_what_cannot_be_served_is_told() -> None:
    broker: Any = object()
    made: list[object] = []
    grpc_service(SERVICE, lambda broker: made.append(broker) or Served(), descriptors=peer_proto.descriptors()).grpc_server(
        broker, MethodsOf()
    )
    assert made == [broker]
    with pytest.raises(ConfigError, match="none of the methods"):
        grpc_service(SERVICE, object(), descriptors=peer_proto.descriptors()).grpc_server(broker, MethodsOf())
    with pytest.raises(ConfigError, match=f"they have: {SERVICE}"):
        grpc_service("no.Such", Served(), descriptors=peer_proto.descriptors()).grpc_server(broker, MethodsOf())
    with pytest.raises(ConfigError, match="descriptors="):
        grpc_service(SERVICE, Served(), descriptors=b"\xff\xff")


def test_fields_may_have_any_name() -> None:
    message = descriptor_pb2.DescriptorProto(name="M")
    for number, name in enumerate(("self", "message", "timeout_s", "class", "class_", "fields", "requests"), 1):
        message.field.add(name=name, number=number, type=9, label=1, json_name=f"j{number}")
    service = descriptor_pb2.ServiceDescriptorProto(name="S")
    service.method.add(name="Do", input_type=".t.M", output_type=".t.M")
    service.method.add(name="__class__", input_type=".t.M", output_type=".t.M")
    files = descriptor_pb2.FileDescriptorSet()
    files.file.add(name="odd.proto", package="t", syntax="proto3", message_type=[message], service=[service])
    echo = {"/t.S/Do": Handler(HandlerKind.UNARY, lambda request, context: request)}
    with connected(echo) as caller:
        odd = Catalog(caller, "plugin", WATCHDOG_S).service("t.S", files)
        answer: Any = odd.Do(**{"self": "a", "message": "b", "timeout_s": "c", "class": "d", "class_": "e", "fields": "f", "requests": "g"})  # type: ignore[attr-defined]
        values = [getattr(answer, field.name) for field in answer.DESCRIPTOR.fields]
        assert values == ["a", "b", "c", "d", "e", "f", "g"]
        assert "message_" in inspect.signature(odd.Do).parameters  # type: ignore[attr-defined]
        assert type(odd).__name__ == "S"
