"""One thread of the plugin serves several lanes: what waits to be sent on one of them goes out before a handler of it waits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Protocol

import pytest
from tests.conformance.conftest import Gate, started
from tests.plugins.gate import pass_gate

import fastplug

__all__ = ["PlainHeld"]

SOON_S = 60.0


@fastplug.interface("test.held/1")
class Held(Protocol):
    def keep(self, tell: Callable[[int], int]) -> None: ...
    def use(self, n: int) -> int: ...
    def hold(self, folder: str) -> None: ...


class PlainHeld(Held):
    def __init__(self) -> None:
        self._tell: Callable[[int], int] | None = None

    def keep(self, tell: Callable[[int], int]) -> None:
        self._tell = tell

    def use(self, n: int) -> int:
        return n if n < 1000 or self._tell is None else self._tell(n)

    async def hold(self, folder: str) -> None:  # type: ignore[override]
        await asyncio.get_running_loop().run_in_executor(None, pass_gate, folder)


@pytest.mark.transports("shm")
def test_results_of_another_lane_do_not_wait_for_a_handler_that_waits(transport: str, gate: Gate) -> None:
    taken = threading.Event()

    def tell(n: int) -> int:
        assert taken.wait(SOON_S), "the results before this one were held back"
        return n

    with started(transport, PlainHeld) as client:
        held = client.dispense(Held)
        held.keep(tell)
        holder = threading.Thread(target=held.hold, args=(gate.path,))
        holder.start()
        gate.wait_entered()  # its lane is taken: what follows goes over another one
        try:
            assert list(fastplug.map(held.use, range(1000), in_flight=32)) == list(range(1000))
            results = fastplug.map(held.use, [*range(10), 1000, 11], in_flight=32)
            assert [next(results) for _ in range(10)] == list(range(10))
            taken.set()
            assert list(results) == [1000, 11]
        finally:
            gate.open()
            holder.join(SOON_S)
