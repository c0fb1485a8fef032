"""Awaited calls: several loops and threads on one handle, and whatever may end meanwhile. One meaning over every transport."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import pytest
from tests.conformance.conftest import Gate
from tests.plugins.flows_api import Flows
from tests.plugins.workers_plugin import WORKERS, Waiting, serve_with_workers

import fastplug
from fastplug.errors import Cancelled, Closed, PluginDied

SOON_S = 60.0
READER = "fastplug reader"

Start = Callable[..., fastplug.Client]


async def _soon(awaitable: Awaitable[Any]) -> Any:
    return await asyncio.wait_for(awaitable, SOON_S)


async def _waited(flows: Flows, gate: Gate) -> None:
    await fastplug.submit(flows.wait, gate.path)


async def _entered(gate: Gate) -> None:
    await asyncio.get_running_loop().run_in_executor(None, gate.wait_entered)


async def _doubled(flows: Flows, n: int) -> int:
    return await fastplug.submit(flows.double, n)


def _reads() -> bool:
    return any(thread.name == READER for thread in threading.enumerate())


def _without_reader() -> None:
    """That of an earlier test ends when it has had nothing to do for a while."""
    for thread in threading.enumerate():
        if thread.name == READER:
            thread.join(SOON_S)


@pytest.mark.transports("shm", "socket")
def test_no_thread_waits(flows: Flows, gate: Gate) -> None:
    async def main() -> None:
        waiting = asyncio.ensure_future(_waited(flows, gate))
        await _entered(gate)
        assert not _reads()
        gate.open()
        await _soon(waiting)

    _without_reader()
    for _ in range(3):  # each loop anew
        asyncio.run(main())


class WithoutReaders(asyncio.SelectorEventLoop):
    """As one that cannot watch descriptors (a proactor's)."""

    def add_reader(self, *args: object) -> NoReturn:
        if self.is_running():
            raise NotImplementedError
        super().add_reader(*args)  # type: ignore[arg-type]


def test_a_loop_that_cannot_watch(flows: Flows, gate: Gate) -> None:
    async def main() -> list[int]:
        waiting = asyncio.ensure_future(_waited(flows, gate))
        await _entered(gate)
        many = asyncio.gather(*[_doubled(flows, n) for n in range(50)])
        gate.open()
        await _soon(waiting)
        return list(await _soon(many))

    loop = WithoutReaders()
    assert loop.run_until_complete(main()) == [2 * n for n in range(50)]
    loop.close()


def test_loops_and_threads_on_one_handle(flows: Flows, gate: Gate) -> None:
    found: list[int] = []

    async def main(start: int) -> None:
        for n in range(start, start + 100, 10):
            found.extend(await _soon(asyncio.gather(*[_doubled(flows, n + k) for k in range(10)])))

    def work(start: int) -> None:
        found.extend(flows.double(n) for n in range(start, start + 300))

    async def held() -> None:
        waiting = [asyncio.ensure_future(_waited(flows, gate)) for _ in range(2)]
        await _entered(gate)
        for thread in threads:
            thread.start()
        gate.open(2)
        for one in waiting:
            await _soon(one)

    threads = [threading.Thread(target=lambda n=n: asyncio.run(main(1000 * n))) for n in range(3)]
    threads += [threading.Thread(target=work, args=(1000 * n,)) for n in range(3, 5)]
    asyncio.run(held())
    for thread in threads:
        thread.join(SOON_S)
    expected = [2 * n for start in range(3) for n in range(1000 * start, 1000 * start + 100)]
    expected += [2 * n for start in range(3, 5) for n in range(1000 * start, 1000 * start + 300)]
    assert sorted(found) == expected


def test_one_call_awaited_by_several_tasks(flows: Flows, gate: Gate) -> None:
    async def main() -> None:
        call = fastplug.submit(flows.wait, gate.path)

        async def wait() -> None:
            await call

        tasks = [asyncio.ensure_future(wait()) for _ in range(3)]
        await _entered(gate)
        gate.open()
        await _soon(asyncio.gather(*tasks))
        await call

    asyncio.run(main())


def test_an_answer_that_another_thread_takes(flows: Flows, gate: Gate) -> None:
    """A thread waits for a later call on the same handle: it has the link, reads the answer that the loop waits for, and tells it."""

    async def main() -> None:
        waiting = asyncio.ensure_future(_waited(flows, gate))
        await _entered(gate)
        beside = [asyncio.get_running_loop().run_in_executor(None, flows.double, n) for n in range(4)]
        gate.open()
        await _soon(waiting)
        assert await _soon(asyncio.gather(*beside)) == [0, 2, 4, 6]

    asyncio.run(main())


def test_cancelled_by_another_thread(flows: Flows, gate: Gate) -> None:
    async def main() -> None:
        call = fastplug.submit(flows.wait, gate.path)

        async def wait() -> None:
            await call

        task = asyncio.ensure_future(wait())
        await _entered(gate)
        assert await asyncio.get_running_loop().run_in_executor(None, call.cancel)
        with pytest.raises(Cancelled):
            await _soon(task)

    asyncio.run(main())
    gate.open()


def test_a_loop_that_is_closed_meanwhile(flows: Flows, gate: Gate) -> None:
    """Its call goes on without anybody; what others await on the handle comes."""
    loop = asyncio.new_event_loop()
    task = loop.create_task(_waited(flows, gate))
    loop.run_until_complete(_entered(gate))
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    gate.open()
    assert asyncio.run(_doubled(flows, 4)) == 8
    del task, loop


def test_a_loop_that_runs_again(flows: Flows, gate: Gate) -> None:
    loop = asyncio.new_event_loop()
    task = loop.create_task(_waited(flows, gate))
    loop.run_until_complete(_entered(gate))
    gate.open()
    assert flows.double(4) == 8  # reads the other answer, too
    loop.run_until_complete(_soon(task))
    loop.close()


@pytest.mark.transports("shm", "socket", "grpc")
def test_the_plugin_dies(start: Start, gate: Gate) -> None:
    client = start("tests.plugins.flows_plugin:PlainFlows")
    flows = client.dispense(Flows)
    assert client.pid is not None

    async def main() -> None:
        waiting = [asyncio.ensure_future(_waited(flows, gate)) for _ in range(3)]
        await _entered(gate)
        os.kill(client.pid or 0, signal.SIGKILL)
        for error in await _soon(asyncio.gather(*waiting, return_exceptions=True)):
            assert isinstance(error, PluginDied)

    asyncio.run(main())


@pytest.mark.transports("shm", "socket", "grpc")
def test_the_client_is_closed(start: Start, gate: Gate) -> None:
    """By the loop's own thread, and by another one."""

    async def main(*, here: bool) -> None:
        client = start("tests.plugins.flows_plugin:PlainFlows")
        flows = client.dispense(Flows)
        waiting = asyncio.ensure_future(_waited(flows, gate))
        await _entered(gate)
        if here:
            client.kill()
        else:
            await asyncio.get_running_loop().run_in_executor(None, client.kill)
        with pytest.raises((Closed, PluginDied)):
            await _soon(waiting)

    asyncio.run(main(here=True))
    asyncio.run(main(here=False))


@pytest.mark.transports("shm", "socket")
def test_a_loop_within_a_callback(flows: Flows) -> None:
    """Its thread has the link already: the awaited call nests, as any other."""

    def tell(n: int) -> int:
        return asyncio.run(_doubled(flows, n))

    assert flows.each(3, tell) == sum(2 * n for n in range(3))


@pytest.mark.transports("shm", "socket")
def test_many_lanes(start: Start, gate: Gate) -> None:
    waiting = start(f"{serve_with_workers.__module__}:{serve_with_workers.__qualname__}").dispense(Waiting)

    async def pass_gate() -> str:
        return await fastplug.submit(waiting.wait, gate.path)

    async def main() -> set[str]:
        tasks = [asyncio.ensure_future(pass_gate()) for _ in range(WORKERS)]
        for _ in tasks:
            await _entered(gate)
        gate.open(WORKERS)
        return set(await _soon(asyncio.gather(*tasks)))

    for _ in range(2):
        assert len(asyncio.run(main())) == WORKERS


@pytest.mark.transports("shm", "socket")
def test_forked_meanwhile(flows: Flows, gate: Gate) -> None:
    """The child can await nothing of its parent's; the parent's loop hears of its own answer."""

    async def main() -> None:
        waiting = asyncio.ensure_future(_waited(flows, gate))
        await _entered(gate)
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(Closed):
                fastplug.submit(flows.double, 1)
                os._exit(1)
            os._exit(0)
        _, status = await asyncio.get_running_loop().run_in_executor(None, os.waitpid, pid, 0)
        assert status == 0
        gate.open()
        await _soon(waiting)

    asyncio.run(main())
