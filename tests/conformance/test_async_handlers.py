"""Handlers that are ``async def``, and methods that are declared so: one meaning over every transport."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from tests.conformance.conftest import Gate, started
from tests.plugins.aio_api import Aio, AioStreams, PlainAio
from tests.plugins.aio_plugin import AioPlugin, AioStreamsPlugin, UncollectedAioStreamsPlugin

import fastplug
from fastplug.errors import Cancelled, DeadlineExceeded, LocalProtocolError, RemoteError

SOON_S = 60.0


@pytest.fixture(scope="module")
def client(transport: str) -> Iterator[fastplug.Client]:
    with started(transport, AioPlugin) as client:
        client.dispense(PlainAio).double(1)  # its threads start here
        yield client


@pytest.fixture
def aio(client: fastplug.Client) -> Iterator[Aio]:
    handle = client.dispense(Aio)
    handle.log()
    yield handle
    gc.collect()
    assert handle.plain(1) == 2, "the handle is not usable any more"


@pytest.fixture
def plain(client: fastplug.Client, aio: Aio) -> PlainAio:
    return client.dispense(PlainAio)


@pytest.fixture(scope="module")
def streams_client(transport: str) -> Iterator[fastplug.Client]:
    with started(transport, AioStreamsPlugin) as client:
        streams = client.dispense(AioStreams)
        values: Any = streams.count(1)
        assert list(values) == [0]  # its threads start here

        async def draw() -> None:  # and what wakes whoever waits while a loop makes an item
            assert await streams.total(_counting(11)) == 55

        asyncio.run(draw())
        yield client


@pytest.fixture
def streams(streams_client: fastplug.Client) -> Iterator[AioStreams]:
    handle = streams_client.dispense(AioStreams)
    handle.log()
    yield handle
    gc.collect()
    assert list(handle.each(2)) == [0, 1], "the handle is not usable any more"


# -- one answer


def test_an_ordinary_caller(plain: PlainAio) -> None:
    assert plain.double(21) == 42
    assert [plain.double(n, more=1) for n in range(50)] == [2 * n + 1 for n in range(50)]
    with pytest.raises(KeyError) as failed:
        plain.fail(7)
    assert isinstance(failed.value, RemoteError)
    assert "in fail" in str(failed.value)
    with pytest.raises(RemoteError, match="SystemExit"):
        plain.fail(-1)
    assert list(fastplug.map(plain.double, range(300))) == [2 * n for n in range(300)]
    assert plain.plain(1) == 2


def test_awaited_methods(aio: Aio) -> None:
    async def main() -> None:
        assert await aio.double(21) == 42
        assert await aio.double(1, more=5) == 7
        assert await asyncio.gather(*[aio.double(n) for n in range(100)]) == [2 * n for n in range(100)]
        assert await asyncio.create_task(aio.double(3)) == 6
        with pytest.raises(KeyError):
            await aio.fail(7)
        assert await fastplug.submit(aio.double, 4) == 8
        assert aio.plain(1) == 2

    asyncio.run(main())
    assert fastplug.submit(aio.double, 4).result(SOON_S) == 8
    assert list(fastplug.map(aio.double, range(10))) == [2 * n for n in range(10)]


def test_many_are_under_way_on_one_worker(plain: PlainAio, transport: str) -> None:
    count = 100 if transport == "grpc" else 500  # 128 are under way at most there
    calls = [fastplug.submit(plain.meet, count) for _ in range(count - 1)]
    assert plain.plain(3) == 4
    assert not any(call.done() for call in calls)
    assert plain.meet(count) == count
    assert [call.result(SOON_S) for call in calls] == [count] * (count - 1)


def test_the_context_is_that_of_the_task(aio: Aio) -> None:
    async def one(name: str) -> str:
        with fastplug.metadata(who=name):
            return await aio.who()

    async def main() -> list[str]:
        return await asyncio.gather(*[one(f"n{n}") for n in range(50)], aio.who())

    assert asyncio.run(main()) == [*[f"n{n} n{n}" for n in range(50)], "nobody nobody"]


def test_arrays(start: Callable[..., fastplug.Client]) -> None:
    aio = start(AioPlugin).dispense(Aio)  # its own: its arena grows

    async def main() -> None:
        for size in (10, 20_000, 300_000):
            x = np.arange(size, dtype=float)
            found = await asyncio.gather(*[aio.scaled(x, n) for n in range(8)])
            for n, y in enumerate(found):
                assert np.array_equal(y, x * n)

    asyncio.run(main())


def check_stack(error: DeadlineExceeded | Cancelled) -> None:
    """That of the task. A plugin that got no CPU for 100 ms can only tell where its threads are, and over gRPC nothing."""
    stack = error.plugin_stack
    if "all threads" not in stack and "does not answer" not in error.no_stack:
        assert stack.splitlines()[0].endswith("in rest")
        assert "in _for_ever" in stack


def test_a_deadline_cancels_the_task(plain: PlainAio, gate: Gate) -> None:
    error = gate.give_up(plain.rest, gate.path)
    while (log := plain.log()) == []:
        pass
    assert log == ["cancelled True"]
    check_stack(error)


def test_cancelling_a_call_cancels_the_task(aio: Aio, gate: Gate) -> None:
    call = fastplug.submit(aio.rest, gate.path)
    gate.wait_entered()
    assert call.cancel()
    with pytest.raises(Cancelled) as caught:
        call.result()
    check_stack(caught.value)
    while (log := aio.log()) == []:
        pass
    assert log == ["cancelled True"]

    async def main() -> None:
        task = asyncio.create_task(aio.rest(gate.path))
        await asyncio.get_running_loop().run_in_executor(None, gate.wait_entered)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    while (log := aio.log()) == []:
        pass
    assert log == ["cancelled True"]


def test_the_end_of_a_connection_cancels_the_tasks(transport: str, gate: Gate) -> None:
    with started(transport, AioPlugin) as client:
        handle = client.dispense(PlainAio)
        calls = [fastplug.submit(handle.rest, gate.path) for _ in range(3)]
        for _ in calls:
            gate.wait_entered()
    for call in calls:
        with pytest.raises(fastplug.PluginError):
            call.result(SOON_S)


@pytest.mark.parametrize("workers", [1, 4])
def test_from_many_threads(transport: str, workers: int) -> None:
    with started(transport, AioPlugin, **({"workers": workers} if transport == "inproc" else {})) as client:
        handle = client.dispense(PlainAio)
        with ThreadPoolExecutor(20) as pool:
            submit = pool.submit
            jobs = [submit(lambda n: [handle.double(n + k) for k in range(50)], n) for n in range(20)]
            assert [job.result(SOON_S) for job in jobs] == [[2 * (n + k) for k in range(50)] for n in range(20)]


# -- streams


def test_a_stream(streams: AioStreams) -> None:
    found: Any = streams.count(1000)
    assert list(found) == list(range(1000))
    assert streams.log() == ["ended"]

    async def main() -> None:
        assert [n async for n in streams.count(300)] == list(range(300))
        many = [_gathered(streams.count(200)) for _ in range(20)]
        assert await asyncio.gather(*many) == [list(range(200))] * 20
        with pytest.raises(KeyError):
            await _gathered(streams.break_at(50))

    asyncio.run(main())


def test_arrays_in_a_stream(start: Callable[..., fastplug.Client]) -> None:
    streams = start(AioStreamsPlugin).dispense(AioStreams)  # its own: its arena grows

    async def main() -> None:
        kept = [x async for x in streams.arrays(20_000, 40)]
        assert [float(x[7]) for x in kept] == list(range(40))

    asyncio.run(main())


async def _gathered(values: AsyncIterator[int]) -> list[int]:
    return [n async for n in values]


def test_early_close(streams: AioStreams) -> None:
    stream: Any = streams.count(10**9)
    assert [next(stream) for _ in range(100)] == list(range(100))
    stream.close()
    while (log := streams.log()) == []:
        pass
    assert log in (["GeneratorExit"], ["CancelledError"])
    beats: Any = streams.beats()
    next(beats)
    beats.close()
    while (log := streams.log()) == []:
        pass
    assert log == ["cancelled"]


def test_a_generator_makes_no_more_than_may_be_under_way(streams: AioStreams) -> None:
    stream: Any = streams.count(10**9)
    assert next(stream) == 0
    assert list(streams.each(100)) == list(range(100))
    stream.close()


def test_a_stream_as_argument(streams: AioStreams) -> None:
    async def numbers(n: int) -> AsyncIterator[int]:
        for i in range(n):
            if i % 10 == 0:
                await asyncio.sleep(0)
            yield i

    async def failing() -> AsyncIterator[int]:
        yield 1
        raise LookupError("here")

    async def main() -> None:
        assert await streams.total(numbers(300)) == sum(range(300))
        assert await streams.total(numbers(0)) == 0
        assert await streams.first(numbers(10**9)) == 0
        with pytest.raises(LookupError, match="here"):
            await streams.total(failing())
        assert [n async for n in streams.doubled(numbers(100))] == [2 * n for n in range(100)]
        doubled: Any = streams.doubled(numbers(10**9))
        assert [await anext(doubled) for _ in range(3)] == [0, 2, 4]
        doubled.close()
        with pytest.raises(LocalProtocolError, match="async for"):
            next(iter(streams.doubled(numbers(3))))  # type: ignore[call-overload]

    asyncio.run(main())
    ordinary: Any = streams
    assert fastplug.submit(ordinary.total, range(1000)).result(SOON_S) == sum(range(1000))
    assert list(ordinary.doubled(range(1000))) == [2 * n for n in range(1000)]


async def _counting(n: int) -> AsyncIterator[int]:
    for i in range(n):
        if i % 10 == 0:
            await asyncio.sleep(0)
        yield i


def test_many_streams_from_one_loop(start: Callable[..., fastplug.Client]) -> None:
    """More than there are lanes: whoever waits for an item must not keep the loop from making it."""
    streams = start(AioStreamsPlugin).dispense(AioStreams)

    async def main() -> None:
        assert await asyncio.gather(*[streams.total(_counting(n)) for n in range(60, 90)]) == [n * (n - 1) // 2 for n in range(60, 90)]
        found = await asyncio.gather(*[_gathered(streams.doubled(_counting(n))) for n in range(60, 90)])
        assert found == [[2 * i for i in range(n)] for n in range(60, 90)]

    asyncio.run(asyncio.wait_for(main(), SOON_S))


def test_each_item_may_wait_for_the_answer_to_the_one_before(start: Callable[..., fastplug.Client]) -> None:
    streams = start(AioStreamsPlugin).dispense(AioStreams)

    async def main() -> list[int]:
        answers: asyncio.Queue[int] = asyncio.Queue()

        async def asked() -> AsyncIterator[int]:
            yield 1
            while (answer := await answers.get()) < 1 << 20:
                yield answer

        found = []
        async for value in streams.doubled(asked()):
            found.append(value)
            answers.put_nowait(value)
        return found

    assert asyncio.run(asyncio.wait_for(main(), SOON_S)) == [1 << n for n in range(1, 21)]


def test_callbacks(start: Callable[..., fastplug.Client]) -> None:
    streams = start(AioStreamsPlugin).dispense(AioStreams)  # its own: the loop has an executor then

    async def main() -> int:
        return await streams.asked(5, lambda n: 10 * n)

    assert asyncio.run(main()) == 150
    assert fastplug.submit(streams.asked, 2, abs).result(SOON_S) == 3


@pytest.mark.transports("shm", "socket", "inproc")
def test_the_callback_of_a_handler_that_raises(start: Callable[..., fastplug.Client]) -> None:
    """It is let go without a search for cycles in the plugin."""

    def tell(n: int) -> int:
        raise KeyError(n)

    alive = weakref.ref(tell)
    handle = start(UncollectedAioStreamsPlugin).dispense(AioStreams)
    try:
        with pytest.raises(KeyError):
            fastplug.submit(handle.asked, 1, tell).result(SOON_S)
        del tell
        end = time.monotonic() + SOON_S
        while alive() is not None and time.monotonic() < end:
            gc.collect()
        assert alive() is None
    finally:
        gc.enable()  # of a plugin in this process
