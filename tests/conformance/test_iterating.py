"""Maps and streams are for one thread at a time, and any may close them, also while that one waits."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, cast

import pytest
from tests.adversity.running import Running
from tests.conformance.conftest import Gate
from tests.plugins.flows_api import Flows

import fastplug
from fastplug.errors import ArgumentError, ConfigError, DeadlineExceeded, LocalProtocolError

SOON_S = 60.0
ALREADY = "already being iterated"


def finish(flows: Flows, gate: Gate) -> None:
    """Lets handlers pass; those that begin late need the gate, too."""
    gate.open(3)
    assert flows.double(1) == 2


both_orders = pytest.mark.parametrize("ordered", [True, False])


def waiting(flows: Flows, gate: Gate, ordered: bool) -> Any:
    """A map whose first call does not end before the gate opens."""
    return fastplug.map(flows.wait, [gate.path] * 3, ordered=ordered)


@pytest.fixture
def on_signal() -> Iterator[Callable[[Callable[[], object]], Callable[[], None]]]:
    """Has the main thread do something in a signal handler: gives what sends the signal."""
    before = signal.getsignal(signal.SIGUSR1)

    def set_up(act: Callable[[], object]) -> Callable[[], None]:
        signal.signal(signal.SIGUSR1, lambda *_: act())
        return lambda: signal.pthread_kill(cast("int", threading.main_thread().ident), signal.SIGUSR1)

    yield set_up
    signal.signal(signal.SIGUSR1, before)


@both_orders
def test_a_map_closed_by_another_thread(flows: Flows, gate: Gate, ordered: bool) -> None:
    results = waiting(flows, gate, ordered)
    closer = Running(lambda: (gate.wait_entered(), results.close()))
    assert list(results) == []
    closer.result()
    finish(flows, gate)
    assert list(results) == []


@both_orders
def test_a_map_closed_by_a_signal_handler(flows: Flows, gate: Gate, ordered: bool, on_signal: Any) -> None:
    results = waiting(flows, gate, ordered)
    send = on_signal(results.close)
    sender = Running(lambda: (gate.wait_entered(), send()))
    assert list(results) == []
    sender.result()
    finish(flows, gate)


@both_orders
def test_a_map_closed_by_a_done_callback(flows: Flows, gate: Gate, ordered: bool) -> None:
    first = fastplug.submit(flows.wait, gate.path)
    gate.wait_entered()  # over gRPC a later call may come first
    results = waiting(flows, gate, ordered)
    first.add_done_callback(lambda _: results.close())
    opener = Running(gate.open)
    assert list(results) == []
    opener.result()
    finish(flows, gate)


@both_orders
def test_a_map_closed_while_it_draws(flows: Flows, ordered: bool) -> None:
    def source() -> Iterator[int]:
        yield from range(5)
        results.close()
        yield 5

    results: Any = fastplug.map(flows.double, source(), in_flight=3, ordered=ordered)
    assert set(results) <= {0, 2, 4, 6, 8}
    assert list(results) == []


@both_orders
def test_a_map_of_calls_that_pass_callbacks_closed_by_another_thread(flows: Flows, ordered: bool) -> None:
    called, over = threading.Event(), threading.Event()

    def tell(n: int) -> int:
        called.set()
        assert over.wait(SOON_S)
        return n

    results: Any = fastplug.map(flows.each, [1] * 3, [tell] * 3, ordered=ordered)

    def close() -> None:
        assert called.wait(SOON_S)
        results.close()
        over.set()  # only now: the callback may run on the thread that waits

    closer = Running(close)
    assert set(results) <= {0}
    closer.result()


@both_orders
def test_only_one_thread_at_a_time_iterates_a_map(flows: Flows, gate: Gate, ordered: bool) -> None:
    results = waiting(flows, gate, ordered)

    def second() -> None:
        gate.wait_entered()
        with pytest.raises(LocalProtocolError, match=ALREADY):
            next(results)
        gate.open(3)

    running = Running(second)
    assert list(results) == [None] * 3
    running.result()


def test_a_signal_handler_does_not_iterate_a_map_that_waits(flows: Flows, gate: Gate, on_signal: Any) -> None:
    results = waiting(flows, gate, True)

    def second() -> None:
        with pytest.raises(LocalProtocolError, match=ALREADY):
            next(results)
        gate.open(3)

    send = on_signal(second)
    sender = Running(lambda: (gate.wait_entered(), send()))
    assert list(results) == [None] * 3
    sender.result()


class Held:
    """A stream whose items come from a callback that waits."""

    def __init__(self, flows: Flows) -> None:
        self._called, self._over = threading.Event(), threading.Event()
        self.items: Any = flows.counted(3, self._tell)

    def _tell(self, n: int) -> int:
        self._called.set()
        assert self._over.wait(SOON_S)
        return n

    def wait(self) -> None:
        assert self._called.wait(SOON_S)

    def go_on(self) -> None:
        self._over.set()


def test_a_stream_closed_by_another_thread(flows: Flows) -> None:
    held = Held(flows)
    closer = Running(lambda: (held.wait(), held.items.close()))
    assert list(held.items) == []
    closer.result()
    held.go_on()


def test_only_one_thread_at_a_time_iterates_a_stream(flows: Flows) -> None:
    held = Held(flows)

    def take() -> int:
        try:
            return cast("int", next(held.items))
        except LocalProtocolError:
            held.go_on()
            return -1

    assert sorted(running.result() for running in [Running(take), Running(take)]) == [-1, 0]
    assert list(held.items) == [1, 2]


def test_only_one_task_at_a_time_iterates_a_stream(flows: Flows) -> None:
    async def main() -> list[int]:
        held = Held(flows)
        stream = cast("AsyncIterator[int]", held.items)
        first = asyncio.ensure_future(anext(stream))
        await asyncio.to_thread(held.wait)
        with pytest.raises(LocalProtocolError, match=ALREADY):
            await anext(stream)
        held.go_on()
        return [await first, *[n async for n in stream]]

    assert asyncio.run(main()) == [0, 1, 2]


@pytest.mark.parametrize("in_flight", [1, 4, 64])
def test_a_map_of_calls_that_take_a_stream(flows: Flows, in_flight: int) -> None:
    sums = [sum(range(10 * n)) for n in range(20)]
    assert list(fastplug.map(flows.total, [range(10 * n) for n in range(20)], in_flight=in_flight)) == sums
    wrong = [range(3), cast("range", 5), range(4)]
    results = fastplug.map(flows.total, wrong, in_flight=in_flight, on_error="continue")
    assert next(results) == 3
    with pytest.raises(ArgumentError, match="cannot be iterated"):
        next(results)
    assert list(results) == [6]


def test_a_map_whose_callbacks_call_the_plugin(flows: Flows, transport: str) -> None:
    for _ in range(1 if transport == "grpc" else 20):  # each callback over gRPC is a server
        results = fastplug.map(flows.each, [3] * 60, [flows.double] * 60, in_flight=8, ordered=False)
        assert list(results) == [6] * 60


def outcomes(results: Iterator[Any]) -> list[Any]:
    """Of each item its result, or the class of its error."""
    found: list[Any] = []
    while True:
        try:
            found.append(next(results))
        except StopIteration:
            return found
        except Exception as error:  # noqa: BLE001  whichever it is
            found.append(type(error))


def test_each_item_of_a_map_has_its_outcome_behind_a_deadline(flows: Flows, gate: Gate) -> None:
    with fastplug.deadline(after_s=0.05):
        late = fastplug.map(flows.wait, [gate.path] * 20, in_flight=4, on_error="continue")
        assert outcomes(late) == [DeadlineExceeded] * 20
    gate.open(20)
    assert flows.double(1) == 2
    with fastplug.deadline(after_s=0.0):
        assert outcomes(fastplug.map(flows.total, [[1]] * 20, in_flight=4, on_error="continue")) == [DeadlineExceeded] * 20
        assert outcomes(fastplug.map(flows.each, [1] * 20, [abs] * 20, in_flight=4, on_error="continue")) == [DeadlineExceeded] * 20
        assert outcomes(fastplug.map(flows.double, range(20), in_flight=4)) == [DeadlineExceeded]


@pytest.mark.parametrize("in_flight", ["4", None, 2.5, 0, -1])
def test_in_flight_is_a_number(flows: Flows, in_flight: Any) -> None:
    with pytest.raises(ConfigError, match="in_flight"):
        fastplug.map(flows.double, [1], in_flight=in_flight)


def test_a_stream_is_not_mapped(flows: Flows) -> None:
    for act in (fastplug.submit, fastplug.map):
        with pytest.raises(ConfigError, match=r"count returns a stream: call it and iterate; it does not wait for the plugin either$"):
            act(cast("Any", flows.count), 3 if act is fastplug.submit else [3])
