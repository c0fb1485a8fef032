"""Streams and callbacks over gRPC: under TLS and one socket, on several workers, and what is on the wire."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import threading
import time
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from typing import Any, Protocol

import pytest
from tests.conformance.conftest import Gate, started
from tests.plugins.flows_api import Flows
from tests.plugins.flows_plugin import PlainFlows

import fastplug
from fastplug.errors import ArgumentError, RemoteError, RpcError
from fastplug.interfaces import interface_of
from fastplug.protocols.grpc.schema import Rpc, schema_of

SOON_S = 60.0
RPCS = {rpc.method.name: rpc for rpc in schema_of(interface_of(Flows)).rpcs}


def serve_with_four_workers() -> None:
    fastplug.serve(PlainFlows(), workers=4)


@pytest.fixture(scope="module")
def plugin() -> Iterator[fastplug.Client]:
    with started("grpc", PlainFlows) as client:
        client.dispense(Flows)  # its threads start here
        yield client


@pytest.mark.parametrize(
    "options",
    [{"auto_mtls": True}, {"grpc_broker_multiplex": True}, {"auto_mtls": True, "grpc_broker_multiplex": True}],
    ids=["mtls", "multiplexed", "both"],
)
def test_under_tls_and_on_one_socket(options: dict[str, Any]) -> None:
    with started("grpc", PlainFlows, **options) as client:
        flows: Flows = client.dispense(Flows)
        assert list(flows.count(300)) == list(range(300))
        assert list(flows.doubled(range(300))) == [2 * n for n in range(300)]
        assert flows.each(5, lambda n: flows.double(n) + flows.each(2, abs)) == 20 + 5
        flows.keep(lambda n: n + 1)
        assert flows.use_thread(1) == 2
        assert flows.drop() == 1


def test_on_several_workers(gate: Gate) -> None:
    with started("grpc", serve_with_four_workers) as client:  # type: ignore[arg-type]
        flows: Flows = client.dispense(Flows)
        slow = [fastplug.submit(flows.wait, gate.path) for _ in range(3)]
        for _ in slow:
            gate.wait_entered()
        found: list[object] = []
        wrong: list[BaseException] = []

        def work() -> None:
            try:
                found.append(list(flows.doubled(iter(range(50)))) == [2 * n for n in range(50)])
                found.append(flows.each(5, lambda n: flows.each(n, abs)) == 0 + 0 + 1 + 3 + 6)
                found.append(sum(flows.counted(5, lambda n: n)) == 10)
            except BaseException as error:  # noqa: BLE001  the test says which
                wrong.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SOON_S)
        assert (wrong, found) == ([], [True] * 12)
        assert not any(call.done() for call in slow)
        gate.open(3)
        for call in slow:
            call.result(SOON_S)


def test_a_generator_runs_once_its_handler_has_begun(gate: Gate) -> None:
    """Else a call that it makes may be taken up before, by the only worker, and waits for ever below the handler that waits for it."""
    with started("grpc", PlainFlows) as client:
        flows: Flows = client.dispense(Flows)
        slow = fastplug.submit(flows.wait, gate.path)
        gate.wait_entered()
        open_yet, seen = threading.Event(), []

        def source() -> Iterator[int]:
            seen.append(open_yet.is_set())
            yield flows.total([1])

        fed = fastplug.submit(flows.total, source())
        while client.stats()["plugin_calls"] < 2:  # both have come, and the second waits for the worker
            pass
        open_yet.set()
        gate.open(1)
        slow.result(SOON_S)
        assert fed.result(SOON_S) == 1
        assert seen == [True]


def test_a_generator_that_takes_from_the_stream_it_feeds(plugin: fastplug.Client) -> None:
    flows: Flows = plugin.dispense(Flows)

    def source() -> Iterator[int]:
        yield 1
        yield next(stream)

    stream = flows.doubled(source())
    assert next(stream) == 2
    with pytest.raises(fastplug.LocalProtocolError, match="cannot take from it on the same thread"):
        next(stream)
    assert list(stream) == []

    def tries() -> Iterator[int]:
        with pytest.raises(fastplug.LocalProtocolError):
            next(stream)
        yield 3

    stream = flows.doubled(tries())
    assert list(stream) == [6]


def test_a_generator_whose_other_thread_takes_from_the_stream_it_feeds(plugin: fastplug.Client) -> None:
    flows: Flows = plugin.dispense(Flows)
    raised: list[BaseException] = []

    def take() -> None:
        try:
            next(stream)
        except BaseException as error:  # noqa: BLE001  what comes is the question
            raised.append(error)

    def source() -> Iterator[int]:
        other = threading.Thread(target=take)
        other.start()
        other.join(SOON_S)
        yield 1

    stream = flows.doubled(source())
    assert list(stream) == [2]
    assert [type(error) for error in raised] == [fastplug.LocalProtocolError]


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_stream_that_is_closed_while_its_generator_runs(plugin: fastplug.Client, elsewhere: bool) -> None:
    flows: Flows = plugin.dispense(Flows)
    ended: list[bool] = []

    def source() -> Iterator[int]:
        try:
            if elsewhere:
                closer = threading.Thread(target=stream.close)
                closer.start()
                closer.join(SOON_S)
            else:
                stream.close()
            yield 1
        finally:
            ended.append(True)

    stream: Any = flows.doubled(source())
    assert (list(stream), ended) == ([], [True])
    assert flows.double(1) == 2


@fastplug.interface("test.flows/1")
class Awaited(Protocol):
    async def double(self, n: int) -> int: ...
    async def fail(self, n: int) -> int: ...
    async def total(self, values: AsyncIterable[int]) -> int: ...
    def doubled(self, values: AsyncIterable[int]) -> AsyncIterator[int]: ...
    async def each(self, n: int, tell: Callable[[int], int]) -> int: ...


def test_methods_that_are_declared_async(plugin: fastplug.Client) -> None:
    flows: Awaited = plugin.dispense(Awaited)

    async def numbers(n: int) -> AsyncIterator[int]:
        for i in range(n):
            await asyncio.sleep(0)
            yield i

    async def main() -> None:
        assert await asyncio.gather(*[flows.double(n) for n in range(200)]) == [2 * n for n in range(200)]
        with pytest.raises(ValueError, match="7"):
            await flows.fail(7)
        assert await flows.total(numbers(50)) == sum(range(50))
        assert [n async for n in flows.doubled(numbers(50))] == [2 * n for n in range(50)]
        assert await flows.each(5, abs) == 10

    asyncio.run(main())


# -- what a program that is no fastplug host may send


@pytest.fixture
def sent(plugin: fastplug.Client) -> Callable[..., list[Any]]:
    """``sent(method, *requests)``: the fields of each request; the responses."""

    def send(method: str, *requests: dict[str, Any]) -> list[Any]:
        rpc: Rpc = RPCS[method]
        call = plugin.channel.stream_stream(rpc.path)(
            iter([rpc.request(**fields).SerializeToString() for fields in requests]), timeout=SOON_S
        )
        return [rpc.response.FromString(response) for response in call]

    return send


def test_where_the_items_are(sent: Callable[..., list[Any]]) -> None:
    assert [response.result for response in sent("total", {"values": 1}, {}, {"values": 0}, {"values": 4})] == [5]
    assert [response.result for response in sent("total")] == [0]
    item = {"dtype": "float64", "shape": [1], "data": bytes(7) + b"\x40"}
    assert [response.result for response in sent("total_of", {"first": 3}, {"values": item}, {}, {"values": item})] == [7.0]
    assert [response.result for response in sent("total_of", {"first": 3, "values": item})] == [5.0]
    assert [response.result for response in sent("doubled", {"values": 1}, {"values": 2})] == [2, 4]


@pytest.mark.parametrize(
    ("method", "requests", "says"),
    [
        ("total_of", [{"first": 1}, {"values": {"dtype": "int8", "shape": [1], "data": b"a"}}], "int8"),
        ("total", [{"failed": b"no error"}], "error"),
        ("each", [{"n": 1}], "'tell' is missing"),
    ],
)
def test_requests_that_are_wrong(plugin: fastplug.Client, sent: Callable[..., list[Any]], method: str, requests: Any, says: str) -> None:
    with pytest.raises(Exception, match=says) as failed:
        sent(method, *requests)
    error: Any = failed.value
    assert error.code().name in ("INVALID_ARGUMENT", "UNKNOWN")
    assert plugin.dispense(Flows).double(1) == 2


def test_a_number_that_nobody_accepts(sent: Callable[..., list[Any]], plugin: fastplug.Client) -> None:
    with pytest.raises(Exception, match="BrokerTimeout"):
        sent("each", {"n": 1, "tell": 4711})
    assert plugin.dispense(Flows).double(1) == 2


# -- what the handler learns


def test_a_stream_that_fails_is_no_stream_that_ends(plugin: fastplug.Client) -> None:
    flows: Flows = plugin.dispense(Flows)
    seen: list[BaseException] = []

    def broken() -> Iterator[int]:
        yield 1
        raise LookupError("mine")

    stream = flows.doubled(broken())
    assert next(stream) == 2
    with pytest.raises(LookupError, match="mine") as failed:
        next(stream)
    seen.append(failed.value)
    assert not isinstance(seen[0], RemoteError | RpcError)
    with pytest.raises(ArgumentError, match="item of the stream"):
        list(flows.doubled([1, "x"]))  # type: ignore[list-item]


@pytest.fixture
def stopped() -> Iterator[fastplug.Client]:
    """Its plugin takes nothing up."""
    with started("grpc", PlainFlows) as client:
        client.dispense(Flows)
        assert client.pid is not None
        os.kill(client.pid, signal.SIGSTOP)
        try:
            yield client
        finally:
            os.kill(client.pid, signal.SIGCONT)


class Tell:
    def __call__(self, n: int) -> int:
        return n


def give_up(flows: Flows, *, by_deadline: bool = False) -> weakref.ref[Tell]:
    """A call whose callback the plugin never hears of; what is left of the callback."""
    tell = Tell()
    with fastplug.deadline(after_s=0.05) if by_deadline else contextlib.nullcontext():
        call = fastplug.submit(flows.each, 1, tell)
    if not by_deadline:
        call.cancel()
    with pytest.raises((fastplug.Cancelled, fastplug.DeadlineExceeded)):
        call.result(SOON_S)
    for thread in threading.enumerate():
        if thread.name.startswith("fastplug call "):
            thread.join(SOON_S)
    return weakref.ref(tell)


@pytest.mark.parametrize("by_deadline", [False, True])
def test_callbacks_of_calls_that_are_given_up_before_they_begin(stopped: fastplug.Client, by_deadline: bool) -> None:
    flows: Flows = stopped.dispense(Flows)
    passed = [give_up(flows, by_deadline=by_deadline) for _ in range(5)]
    watchdog = time.monotonic() + SOON_S
    while any(tell() is not None for tell in passed) or any("grpc-broker-" in thread.name for thread in threading.enumerate()):
        assert time.monotonic() < watchdog
        gc.collect()


def test_callbacks_of_calls_that_are_given_up_make_room(stopped: fastplug.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastplug.protocols.grpc.callbacks.CALLBACKS_MAX", 3)
    monkeypatch.setattr("fastplug.protocols.grpc.callbacks.GIVEN_UP_S", SOON_S)
    flows: Flows = stopped.dispense(Flows)
    for _ in range(10):
        give_up(flows)


def test_more_callbacks_than_may_be_passed(plugin: fastplug.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastplug.protocols.grpc.callbacks.CALLBACKS_MAX", 3)
    flows: Flows = plugin.dispense(Flows)
    for _ in range(3):
        flows.keep(abs)
    with pytest.raises(fastplug.LocalProtocolError, match="keeps 3 callbacks"):
        flows.keep(abs)
    assert flows.use(-2) == 6
    assert flows.drop() == 3
