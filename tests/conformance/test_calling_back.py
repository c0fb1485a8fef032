"""Callbacks that call the plugin, from several threads at once: more threads than lanes, calls that are waited for beside submitted ones.

Each runs on the thread that docs/calls.md names, and whoever has a lane lets the callback use it that it waits for itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from tests.conformance.conftest import Gate, started
from tests.plugins.flows_api import Flows
from tests.plugins.flows_plugin import WORKERS, PlainFlows, serve_with_workers

import fastplug

# A watchdog for what a correct connection does within a second or two, and the long form of it within a minute.
SOON_S = 180.0
# More items than may be under way: the consumer has to give credit.
ITEMS = 100

Job = Callable[[Flows, int], None]


@pytest.fixture(params=[1, WORKERS], ids=["1-worker", "workers"])
def flows(transport: str, request: pytest.FixtureRequest) -> Iterator[Flows]:
    several = request.param > 1
    options = {"workers": request.param} if several and transport == "inproc" else {}
    target = serve_with_workers if several and transport != "inproc" else PlainFlows
    with started(transport, target, **options) as client:  # type: ignore[arg-type]
        yield client.dispense(Flows)


def on_the_thread_for_callbacks() -> None:
    assert threading.current_thread().name.startswith("fastplug callbacks "), threading.current_thread()


def waited_for(flows: Flows, n: int) -> None:
    here = threading.current_thread()

    def tell(i: int) -> int:
        assert threading.current_thread() is here
        return flows.double(n + i)

    assert flows.each(3, tell) == 6 * n + 6


def waited_for_without_a_call(flows: Flows, n: int) -> None:
    here = threading.current_thread()

    def tell(i: int) -> int:
        assert threading.current_thread() is here
        return n + i

    assert flows.each(3, tell) == 3 * n + 3


def submitted(flows: Flows, n: int) -> None:
    def tell(i: int) -> int:
        on_the_thread_for_callbacks()
        return flows.double(n + i)

    assert fastplug.submit(flows.each, 3, tell).result(SOON_S) == 6 * n + 6


def submitted_and_iterated(flows: Flows, n: int) -> None:
    def tell(i: int) -> int:
        on_the_thread_for_callbacks()
        return n + sum(flows.count(ITEMS))

    assert fastplug.submit(flows.each, 1, tell).result(SOON_S) == n + sum(range(ITEMS))


def submitted_by_a_callback(flows: Flows, n: int) -> None:
    """The thread that has the lane is inside a callback of its own."""
    here = threading.current_thread()

    def tell(i: int) -> int:
        assert threading.current_thread() is here
        submitted(flows, n + i)
        return flows.double(n)

    assert flows.each(2, tell) == 4 * n


def streamed(flows: Flows, n: int) -> None:
    def tell(i: int) -> int:
        on_the_thread_for_callbacks()
        return flows.double(n + i)

    assert list(flows.counted(3, tell)) == [2 * n, 2 * n + 2, 2 * n + 4]


def fed(flows: Flows, n: int) -> None:
    here = threading.current_thread()

    def values() -> Iterator[int]:
        for i in range(ITEMS):
            assert threading.current_thread() is here
            yield i if i % 40 else flows.double(i)

    def tell(i: int) -> int:
        assert threading.current_thread() is here
        return i if i % 40 else flows.double(n)

    assert flows.fed_back(values(), tell) == sum(i for i in range(ITEMS) if i % 40) + sum(2 * n for i in range(0, ITEMS, 40))


def at_once(flows: Flows, jobs: list[Job], rounds: int) -> None:
    """Each job on a thread of its own, so often."""
    failed: list[BaseException] = []

    def work(job: Job, n: int) -> None:
        try:
            for i in range(rounds):
                job(flows, 100 * n + i)
        except BaseException as error:  # noqa: BLE001 - the test raises it
            failed.append(error)

    threads = [threading.Thread(target=work, args=(job, n), daemon=True, name=f"{job.__name__} {n}") for n, job in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON_S)
    assert not [thread.name for thread in threads if thread.is_alive()], "these hang"
    if failed:
        raise failed[0]
    assert flows.double(4) == 8


ROUNDS = [3, pytest.param(300, marks=pytest.mark.long)]
# Over gRPC each callback that is passed is a connection, and takes some milliseconds.
SLOWER = {"grpc": 10}


def rounds_over(transport: str, rounds: int) -> int:
    return max(2, rounds // SLOWER.get(transport, 1))


@pytest.mark.parametrize("rounds", ROUNDS)
def test_as_many_threads_submit_as_there_are_lanes(flows: Flows, transport: str, rounds: int) -> None:
    for threads in (1, 2, WORKERS, WORKERS + 1):
        at_once(flows, [submitted] * threads, rounds_over(transport, rounds))


@pytest.mark.transports("shm", "socket", "inproc")
@pytest.mark.parametrize("rounds", [2, pytest.param(50, marks=pytest.mark.long)])
def test_more_threads_submit_than_a_host_may_open_lanes(flows: Flows, rounds: int) -> None:
    at_once(flows, [submitted] * 20, rounds)


@pytest.mark.parametrize("rounds", [10, pytest.param(1000, marks=pytest.mark.long)])
def test_beside_a_call_that_is_waited_for(flows: Flows, transport: str, rounds: int) -> None:
    for waiting in (waited_for, waited_for_without_a_call):
        for beside in (submitted, submitted_and_iterated, streamed):
            at_once(flows, [waiting, beside], rounds_over(transport, rounds))


@pytest.mark.parametrize("rounds", ROUNDS)
def test_each_kind_and_all_at_once(flows: Flows, transport: str, rounds: int) -> None:
    kinds = [waited_for, submitted, submitted_and_iterated, submitted_by_a_callback, streamed, fed, waited_for_without_a_call, submitted]
    for job in kinds:
        job(flows, 1)
    at_once(flows, kinds, rounds_over(transport, rounds))


@pytest.mark.transports("shm", "socket")
def test_an_answer_that_was_made_within_a_handler_is_not_held_back_by_it(flows: Flows, gate: Gate) -> None:
    """The plugin may publish answers together, but not when it does not know how long until the next one."""
    assert list(fastplug.map(flows.double, range(1000))) == list(range(0, 2000, 2))  # now it knows that double() is quick
    calls: list[fastplug.Call[int]] = []

    def tell(n: int) -> int:
        calls.extend(fastplug.submit(flows.double, i) for i in range(8))  # with the answer behind them
        return n + 1

    def open_the_gate() -> None:
        gate.wait_entered()
        try:
            found.extend(call.result(SOON_S / 3) for call in calls)
        finally:
            gate.open()

    found: list[int] = []
    opener = threading.Thread(target=open_the_gate)
    opener.start()
    assert flows.tell_and_wait(tell, gate.path) == 1
    opener.join(SOON_S)
    assert found == list(range(0, 16, 2))


@pytest.mark.transports("shm", "socket", "inproc")  # over gRPC requests may pass each other
def test_results_of_a_map_do_not_wait_for_a_handler_that_waits(flows: Flows) -> None:
    """They may share a frame, but one of the handlers calls back, and the callback waits for the results before it."""
    assert list(fastplug.map(flows.use, range(1000))) == [0] * 1000  # now the plugin knows that use() is quick
    taken = threading.Event()

    def tell(n: int) -> int:
        if n == 5:
            assert taken.wait(SOON_S / 3)
        return n

    flows.keep(tell)
    results = fastplug.map(flows.use, range(10))
    assert [next(results) for _ in range(5)] == list(range(5))
    taken.set()
    assert list(results) == list(range(5, 10))
    assert flows.drop() == 1
