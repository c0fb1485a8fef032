"""A service with a .proto of its own between two processes: stubs as generated, over every pair of gRPC engines.

A new engine is one more word in ENGINES: what it does must not differ from what the others do.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.conformance.conftest import EVENT_TIMEOUT_S, ROOT, plugin_environment
from tests.plugins.ledger_plugin import HANDSHAKE, Auditor
from tests.plugins.ledger_stubs import ledger_pb2, ledger_pb2_grpc

import fastplug
from fastplug.protocols.grpc.reflection import Reflection, is_internal

ENGINES = ("grpcio",)
PAIRS = list(itertools.product(ENGINES, ENGINES))
Entry = ledger_pb2.Entry
MIB = 1 << 20


def options(host: str, plugin: str, served: dict[str, Any] | None = None, **started: Any) -> dict[str, Any]:
    """Arguments of fastplug.start for the ledger's plugin."""
    environment = {**plugin_environment(), "LEDGER_OPTIONS": json.dumps({"grpc_engine": plugin, **(served or {})})}
    plugins = {"ledger": fastplug.grpc_plugin(stub=ledger_pb2_grpc.LedgerStub)}
    return {"env": environment, "cwd": ROOT, "handshake": HANDSHAKE, "plugins": plugins, "grpc_engine": host, "name": "ledger", **started}


COMMAND = [sys.executable, "-m", "tests.plugins.ledger_plugin"]


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def pair(request: pytest.FixtureRequest) -> tuple[str, str]:
    found: tuple[str, str] = request.param
    return found


@pytest.fixture(scope="module", params=["plain", "mtls", pytest.param("mux", marks=pytest.mark.long), "mux-mtls"])
def client(request: pytest.FixtureRequest, pair: tuple[str, str]) -> Iterator[fastplug.Client]:
    with fastplug.start(
        COMMAND, **options(*pair, auto_mtls="mtls" in request.param, grpc_broker_multiplex="mux" in request.param)
    ) as started:
        yield started


@pytest.fixture
def stub(client: fastplug.Client) -> Any:
    return client.dispense("ledger")


def entries(*amounts: int) -> Iterator[Any]:
    return iter([Entry(name="x", amount=amount) for amount in amounts])


def auditing(server: Any) -> None:
    ledger_pb2_grpc.add_AuditorServicer_to_server(Auditor(), server)


def test_the_channel_is_a_real_one(client: fastplug.Client) -> None:
    assert isinstance(client.channel, grpc.Channel)
    assert (client.transport, client.protocol) == ("grpc", "grpc")


def test_all_four_kinds(client: fastplug.Client, stub: Any) -> None:
    first = stub.Put(Entry(amount=3))
    assert (stub.Put(Entry(amount=4)).amount - first.amount, first.pid) == (4, client.pid)
    assert [entry.amount for entry in stub.List(ledger_pb2.Query(name="n", count=500))] == list(range(500))
    assert stub.Sum(entries(*range(100))) == ledger_pb2.Total(amount=4950, pid=client.pid)
    echoed = list(stub.Echo(iter([Entry(name="a", amount=1, note=b"xy"), Entry(name="b")])))
    assert echoed == [Entry(name="A", amount=-1, note=b"yx"), Entry(name="B")]


def test_a_stream_answers_before_it_ends(stub: Any) -> None:
    """Bidirectional means both at once: each answer comes before the next request is made."""
    asked: Sequence[int] = range(5)
    answered = threading.Semaphore(1)

    def requests() -> Iterator[Any]:
        for amount in asked:
            assert answered.acquire(timeout=EVENT_TIMEOUT_S)
            yield Entry(amount=amount)

    got = []
    for entry in stub.Echo(requests(), timeout=EVENT_TIMEOUT_S):
        got.append(-entry.amount)
        answered.release()
    assert got == list(asked)


def test_metadata_both_ways(stub: Any) -> None:
    _, call = stub.Put.with_call(Entry(note=b"12345"), metadata=(("mark", "m"),))
    assert ("seen", "m") in [tuple(item) for item in call.initial_metadata()]
    assert ("size", "5") in [tuple(item) for item in call.trailing_metadata()]


def test_a_status_arrives_whole(stub: Any) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        stub.Fail(Entry(name="RESOURCE_EXHAUSTED", amount=7))
    assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "7 is refused")
    assert ("why-bin", b"\0\1") in [tuple(item) for item in raised.value.trailing_metadata()]
    with pytest.raises(grpc.RpcError) as raised:
        stub.Fail(Entry(name="raise"))
    assert raised.value.code() is grpc.StatusCode.UNKNOWN


def test_an_interceptor_of_the_plugin_sees_the_call(stub: Any) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        stub.Put(Entry(), metadata=(("refuse", "me"),))
    assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.PERMISSION_DENIED, "as you wish")


def test_what_is_not_there_is_unimplemented(client: fastplug.Client) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        client.channel.unary_unary("/test.ledger.Ledger/Nothing")(b"")
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_deadline_and_a_cancelled_stream(client: fastplug.Client, stub: Any) -> None:
    silent = threading.Event()
    try:
        with pytest.raises(grpc.RpcError) as raised:
            list(stub.Echo(iter(lambda: silent.wait(EVENT_TIMEOUT_S), True), timeout=0.05))
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    finally:
        silent.set()
    listing = stub.List(ledger_pb2.Query(count=2**31))
    assert next(listing).amount == 0
    listing.cancel()
    with pytest.raises(grpc.RpcError) as raised:
        list(listing)
    assert raised.value.code() is grpc.StatusCode.CANCELLED
    client.ping()


def test_messages_of_64_mib_in_both_directions(stub: Any) -> None:
    note = os.urandom(MIB) * 64
    (answer,) = stub.Echo(iter([Entry(note=note)]), timeout=EVENT_TIMEOUT_S)
    assert answer.note == note[::-1]


def test_futures_and_interceptors_of_grpcio(client: fastplug.Client, stub: Any) -> None:
    pending = [stub.Put.future(Entry(amount=1)) for _ in range(20)]
    assert len({future.result(EVENT_TIMEOUT_S).amount for future in pending}) == 20

    class Marking(grpc.UnaryUnaryClientInterceptor):
        def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
            return continuation(client_call_details._replace(metadata=(("mark", "i"),)), request)

    marked = ledger_pb2_grpc.LedgerStub(grpc.intercept_channel(client.channel, Marking()))
    _, call = marked.Put.with_call(Entry())
    assert ("seen", "i") in [tuple(item) for item in call.initial_metadata()]


def test_the_broker_from_the_plugin_to_the_host(client: fastplug.Client, stub: Any) -> None:
    ids = [client.broker.next_id() for _ in range(3)]
    assert len(set(ids)) == 3
    with contextlib.ExitStack() as stack:
        for service_id in ids:
            stack.enter_context(client.broker.accept_and_serve(service_id, auditing))
        for service_id in reversed(ids):
            total = stub.Audited(ledger_pb2.Via(service_id=service_id, entry=Entry(amount=service_id)))
            assert (total.amount, total.pid) == (2 * service_id, os.getpid())


def test_the_broker_from_the_host_to_the_plugin(client: fastplug.Client, stub: Any) -> None:
    offers = [stub.Offer(ledger_pb2.Nothing()).service_id for _ in range(2)]
    for service_id in offers:
        with client.broker.dial(service_id) as channel:
            total = ledger_pb2_grpc.AuditorStub(channel).Audit(Entry(amount=21))
        assert (total.amount, total.pid) == (42, client.pid)


def test_either_side_of_the_broker_may_come_first(client: fastplug.Client, stub: Any) -> None:
    service_id = client.broker.next_id()
    pending = stub.Audited.future(ledger_pb2.Via(service_id=service_id, entry=Entry(amount=2)))
    with client.broker.accept(service_id) as listener, listener.serve(auditing):
        assert pending.result(EVENT_TIMEOUT_S).amount == 4


def test_an_id_that_nobody_accepts_is_named(client: fastplug.Client, stub: Any) -> None:
    with pytest.raises(fastplug.BrokerTimeout, match="id 4711") as raised:
        client.broker.dial(4711, timeout_s=0.01)
    assert raised.value.service_id == 4711
    with pytest.raises(grpc.RpcError) as far:
        stub.Audited(ledger_pb2.Via(service_id=4712, entry=Entry(name="patience", amount=10)))
    assert "id 4712" in far.value.details()


def test_a_brokered_server_that_was_closed_is_gone(client: fastplug.Client, stub: Any) -> None:
    service_id = client.broker.next_id()
    server = client.broker.accept_and_serve(service_id, auditing)
    server.close()
    assert server.wait(0)
    with pytest.raises(grpc.RpcError) as raised:
        stub.Audited(ledger_pb2.Via(service_id=service_id, entry=Entry(amount=2)))
    assert raised.value.code() in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE)


def test_the_end_ends_what_was_brokered(pair: tuple[str, str]) -> None:
    with fastplug.start(COMMAND, **options(*pair)) as client:
        stub = client.dispense("ledger")
        channel = client.broker.dial(stub.Offer(ledger_pb2.Nothing()).service_id)
        served = client.broker.accept_and_serve(client.broker.next_id(), auditing)
        assert ledger_pb2_grpc.AuditorStub(channel).Audit(Entry(amount=1)).pid == client.pid
        broker = client.broker
    assert served.wait(EVENT_TIMEOUT_S)
    assert channel.closed.result(EVENT_TIMEOUT_S)
    with pytest.raises(fastplug.Closed):
        broker.accept(1)
    with pytest.raises(fastplug.Closed):
        client.channel  # noqa: B018


class Sink:
    """What a host gives as sync_stdout=."""

    def __init__(self) -> None:
        self.text = b""

    def write(self, data: bytes) -> None:
        self.text += data


@pytest.mark.parametrize("descriptors", [False, True], ids=["python", "descriptors"])
def test_what_is_printed_reaches_the_host_as_bytes(caplog: pytest.LogCaptureFixture, *, descriptors: bool) -> None:
    out, err = Sink(), Sink()
    caplog.set_level("INFO")
    made = options("auto", "auto", {"sync_fds": descriptors}, sync_stdout=out, sync_stderr=err)
    with fastplug.start(COMMAND, **made) as client:
        stub = client.dispense("ledger")
        stub.Print(ledger_pb2.Text(out="first\nü", err="wrong"))
        stub.Print(ledger_pb2.Text(raw="raw\n"))
        stub.Print(ledger_pb2.Text(out="x" * 200_000 + "last"))
    logged = [record.getMessage() for record in caplog.records if record.name == "fastplug.plugin.ledger"]
    raw = b"raw\n" if descriptors else b""
    assert (out.text, err.text) == ("first\nü\n".encode() + raw + b"x" * 200_000 + b"last\n", b"wrong\n" + raw)
    assert [text for text in logged if text == "raw"] == ([] if descriptors else ["raw", "raw"])


def test_without_a_sink_what_is_printed_is_logged(client: fastplug.Client, stub: Any, caplog: pytest.LogCaptureFixture) -> None:
    seen = threading.Event()
    caplog.handler.addFilter(lambda record: seen.set() or True if record.getMessage() == "to the log" else True)
    with caplog.at_level("INFO"):
        stub.Print(ledger_pb2.Text(out="to the log"))
        assert seen.wait(EVENT_TIMEOUT_S)


def test_a_sink_that_raises_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def write(self, data: bytes) -> None:
            raise OSError("disk full")

    caplog.set_level("INFO")
    with fastplug.start(COMMAND, **options("auto", "auto", sync_stdout=Broken())) as client:
        stub = client.dispense("ledger")
        stub.Print(ledger_pb2.Text(out="one"))
        stub.Print(ledger_pb2.Text(out="two"))
    messages = [record.getMessage() for record in caplog.records]
    assert len([text for text in messages if "sync_stdout= raised" in text]) == 1
    assert "two" in messages


def test_dial_options_win(pair: tuple[str, str]) -> None:
    """Those of the host, and those of the plugin's server."""
    served = {"grpc_options": [["grpc.max_receive_message_length", 5000]]}
    small = (("grpc.max_receive_message_length", 1000),)
    with fastplug.start(COMMAND, **options(*pair, served, grpc_dial_options=small)) as client:
        line: Any = client._line
        assert line.server_cert == b""  # nobody asked
        stub = client.dispense("ledger")
        (short,) = stub.Echo(iter([Entry(note=bytes(500))]))
        assert len(short.note) == 500
        with pytest.raises(grpc.RpcError) as raised:
            list(stub.Echo(iter([Entry(note=bytes(2000))])))
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.RpcError) as raised:
            stub.Put(Entry(note=bytes(6000)))
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert stub.Put(Entry(note=bytes(4000))).pid == client.pid


def test_what_cannot_be_dispensed_or_reached_says_so() -> None:
    with (
        fastplug.start("tests.plugins.sums_plugin:PlainSums", transport="inproc") as client,
        pytest.raises(fastplug.ConfigError, match="grpc"),
    ):
        client.channel  # noqa: B018
    with pytest.raises(fastplug.ConfigError, match="grpc_plugin"):
        fastplug.grpc_plugin()
    with pytest.raises(fastplug.ConfigError, match="grpc_plugin"):
        fastplug.grpc_plugin(ledger_pb2_grpc.add_AuditorServicer_to_server)
    with pytest.raises(fastplug.ConfigError, match="not served"):
        fastplug.grpc_plugin(stub=ledger_pb2_grpc.AuditorStub).grpc_server(None, None)  # type: ignore[arg-type]
    with pytest.raises(fastplug.ConfigError, match="not dispensed"):
        fastplug.grpc_plugin(ledger_pb2_grpc.add_AuditorServicer_to_server, Auditor()).grpc_client(None, None)  # type: ignore[arg-type]


def test_a_brokered_server_tells_its_services(client: fastplug.Client, stub: Any) -> None:
    """As the plugin's own server does."""
    with client.broker.dial(stub.Offer(ledger_pb2.Nothing()).service_id) as channel:
        reflection = Reflection(lambda path, question: next(channel.stream_stream(path)(iter([question]))))
        services = [name for name in reflection.services() if not is_internal(name)]
        assert services == ["test.ledger.Auditor"]
        files = reflection.files("test.ledger.Auditor")
    assert files is not None
    assert "Audit" in files.service("test.ledger.Auditor")


def test_a_brokered_channel_that_nobody_calls_on_leaves_no_file(client: fastplug.Client, stub: Any) -> None:
    """The engine's own socket has no name: a process that is killed would leave it."""
    with client.broker.dial(stub.Offer(ledger_pb2.Nothing()).service_id):
        assert not list(Path(tempfile.gettempdir()).glob("fastplug-grpc-*"))
