"""Streams and callbacks against a model: random interleavings of items, closes, errors, calls and kills."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from tests.conformance.conftest import started
from tests.plugins.flows_api import Flows
from tests.plugins.flows_plugin import PlainFlows

import fastplug
from fastplug.errors import Closed, PluginDied

STREAMS_MAX = 6


class Failed(Exception):
    """What a generator of the caller raises."""


class Fed:
    """A stream both ways: doubled numbers, from a generator here that ends, fails or goes on."""

    def __init__(self, length: int, fails: bool) -> None:
        self.length, self.fails = length, fails
        self.closed = False

    def numbers(self) -> Iterator[int]:
        try:
            yield from range(self.length)
            if self.fails:
                raise Failed
        finally:
            self.closed = True


class Machine(RuleBasedStateMachine):
    transport = ""
    client: fastplug.Client | None = None

    @initialize()
    def start(self) -> None:
        if Machine.client is None or Machine.client.exited:
            Machine.client = started(self.transport, PlainFlows)
        self.flows: Flows = Machine.client.dispense(Flows)
        self.flows.drop()
        self.flows.log()
        self.streams: list[tuple[Any, Iterator[int], bool, Fed | None]] = []  # stream, what the model says, fails at its end, feed
        self.kept = 0
        self.calls: list[tuple[fastplug.Call[int], int]] = []
        self.dead = False

    def _open(self, stream: Any, model: Iterator[int], fails: bool, fed: Fed | None = None) -> None:
        self.streams.append((stream, model, fails, fed))

    alive = precondition(lambda self: not self.dead)
    room = precondition(lambda self: not self.dead and len(self.streams) < STREAMS_MAX)
    some = precondition(lambda self: not self.dead and self.streams)

    @room
    @rule(n=st.sampled_from((0, 1, 31, 32, 33, 10**9)))
    def count(self, n: int) -> None:
        self._open(self.flows.count(n), iter(range(n)), False)

    @room
    @rule(n=st.integers(0, 70))
    def break_at(self, n: int) -> None:
        self._open(self.flows.break_at(n), iter(range(n)), True)

    @room
    @rule(length=st.sampled_from((0, 1, 40, 10**9)), fails=st.booleans())
    def doubled(self, length: int, fails: bool) -> None:
        fed = Fed(length, fails)
        self._open(self.flows.doubled(fed.numbers()), (2 * n for n in range(length)), fails, fed)

    @room
    @rule(n=st.integers(0, 40))
    def counted(self, n: int) -> None:
        self._open(self.flows.counted(n, lambda i: 2 * i), (2 * i for i in range(n)), False)

    @some
    @rule(which=st.integers(0, STREAMS_MAX), items=st.sampled_from((1, 2, 16, 50)))
    def take(self, which: int, items: int) -> None:
        index = which % len(self.streams)
        stream, model, fails, fed = self.streams[index]
        for _ in range(items):
            expected = next(model, None)
            if expected is not None:
                assert next(stream) == expected
                continue
            del self.streams[index]
            with pytest.raises((Failed if fed else KeyError) if fails else StopIteration):
                next(stream)
            with pytest.raises(StopIteration):
                next(stream)
            assert fed is None or fed.closed
            return

    @some
    @rule(which=st.integers(0, STREAMS_MAX), how=st.sampled_from(("close", "drop")))
    def leave(self, which: int, how: str) -> None:
        stream, _, _, _ = self.streams.pop(which % len(self.streams))
        if how == "close":
            stream.close()
            with pytest.raises(StopIteration):
                next(stream)
        del stream

    @alive
    @rule(n=st.integers(0, 20))
    def each(self, n: int) -> None:
        assert self.flows.each(n, lambda i: self.flows.double(i) + (self.flows.each(2, abs) if i == 3 else 0)) == n * (n - 1) + (n > 3)

    @alive
    @rule()
    def keep(self) -> None:
        self.flows.keep(lambda n: n + 1)
        self.kept += 1

    @alive
    @rule(n=st.integers(-5, 5))
    def use(self, n: int) -> None:
        assert self.flows.use(n) == self.kept * (n + 1)

    @alive
    @rule()
    def drop(self) -> None:
        assert self.flows.drop() == self.kept
        self.kept = 0

    @alive
    @rule(n=st.integers(0, 100), total=st.booleans())
    def submit(self, n: int, total: bool) -> None:
        call = fastplug.submit(self.flows.total, range(n)) if total else fastplug.submit(self.flows.double, n)
        self.calls.append((call, sum(range(n)) if total else 2 * n))

    @alive
    @rule(n=st.integers(0, 4))
    def submit_calling_back(self, n: int) -> None:
        self.calls.append((fastplug.submit(self.flows.each, n, self.flows.double), n * (n - 1)))

    @alive
    @rule(n=st.integers(0, 3), submitted=st.booleans())
    def call_back_and_wait(self, n: int, submitted: bool) -> None:
        """The callback waits for a call that calls back itself, on another thread if it was submitted."""

        def tell(i: int) -> int:
            if submitted:
                return fastplug.submit(self.flows.each, i, self.flows.double).result(60.0)
            return self.flows.each(i, self.flows.double)

        assert self.flows.each(n, tell) == sum(i * (i - 1) for i in range(n))

    @precondition(lambda self: not self.dead and self.calls)
    @rule(which=st.integers(0, 100), cancelled=st.booleans())
    def result(self, which: int, cancelled: bool) -> None:
        call, expected = self.calls.pop(which % len(self.calls))
        if not cancelled or not call.cancel():
            assert call.result(60.0) == expected

    @precondition(lambda self: not self.dead and Machine.client is not None and Machine.client.pid is not None)
    @rule(one=st.integers(0, 3))
    def kill(self, one: int) -> None:
        if one:
            return  # a new process for each would take most of the time
        assert Machine.client is not None
        assert Machine.client.pid is not None
        os.kill(Machine.client.pid, signal.SIGKILL)
        self.dead = True
        for stream, model, _, _ in self.streams:
            with pytest.raises((PluginDied, Closed, StopIteration, KeyError, Failed)):
                self._rest(stream, model)
        with pytest.raises((PluginDied, Closed)):
            self.flows.double(1)

    def _rest(self, stream: Any, model: Iterator[int]) -> None:
        """What had come is still there, and right."""
        while True:
            assert next(stream) == next(model)

    @precondition(lambda self: self.dead)
    @rule()
    def call_the_dead(self) -> None:
        with pytest.raises((PluginDied, Closed)):
            self.flows.use(1)

    @invariant()
    def usable(self) -> None:
        if hasattr(self, "flows") and not self.dead:
            assert self.flows.double(21) == 42

    def teardown(self) -> None:
        if not hasattr(self, "flows"):
            return
        for stream, _, _, _ in self.streams:
            with contextlib.suppress(PluginDied, Closed):
                stream.close()
        self.streams.clear()
        for call, _ in self.calls:
            call.cancel()
        if self.dead and Machine.client is not None:
            Machine.client.kill()
            Machine.client = None
        gc.collect()


@pytest.mark.parametrize("examples", [8, pytest.param(400, marks=pytest.mark.long)])
def test_flows_do_what_the_model_does(transport: str, examples: int) -> None:
    Machine.transport, Machine.client = transport, None
    try:
        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            Machine,
            settings=settings(max_examples=examples, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)),
        )
    finally:
        if Machine.client is not None:
            Machine.client.kill()
            Machine.client = None
