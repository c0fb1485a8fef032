"""The rules of leases against a model: a host, two plugins that share its arena, a third that has its own, eight threads, forks, crashes.

All ends are in this process, each with its own arena, ledger, tables and lane, as in test_leases.py; what a plugin has is a dict. The
model is the values: every array that anybody has, own, received, kept or lent on, is compared with what it must be after every step. What
only real processes show is in tests/conformance/test_shared_arena.py and in benchmarks/array_soak.py.
"""

from __future__ import annotations

import gc
import os
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.unit.test_leases import Array, Pair, values
from tests.unit.two_ends import End

from fastplug.shm import _ndarray, _ndarray_memory
from fastplug.shm._arena import Arena
from fastplug.shm.arena import numpy_in

MIB = 1 << 20
# Two plugins with the host's arena, one with a connection and an arena of its own.
SHARED = ("one", "two")
NAMES = (*SHARED, "alone")
sizes = st.integers(1, 300) | st.integers(1, 30_000)


class LeaseRules(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.arena = Arena(24 * MIB, MIB, lasting=True)
        self.pairs: dict[str, Pair] = {}
        for name in NAMES:
            self.connect(name)
        self.here: list[tuple[Array, Array]] = []  # (array, what it must be)
        self.there: dict[str, dict[int, Array]] = {name: {} for name in NAMES}
        self.seed = 0

    def connect(self, name: str) -> None:
        host = End("host", arena=self.arena) if name in SHARED else End("host", limit_bytes=8 * MIB, first_bytes=MIB)
        plugin = End(name, limit_bytes=8 * MIB, first_bytes=MIB)
        self.pairs[name] = Pair(host=host, plugin=plugin)
        if name in SHARED:
            host.borrowed.lent_on = self.arena

    def next_seed(self) -> int:
        self.seed += 1
        return self.seed

    def pick(self, data: st.DataObject) -> tuple[Array, Array]:
        return self.here[data.draw(st.integers(0, len(self.here) - 1))]

    @rule(size=sizes, how=st.sampled_from(["shared", "numpy", "ordinary"]))
    def make_here(self, size: int, how: str) -> None:
        expected = values(size, self.next_seed())
        made: Array = _ndarray.empty(self.arena, size, np.float64) if how == "shared" else np.empty(0)
        if how == "numpy":
            with numpy_in(self.arena):
                made = np.empty(size)
        elif how == "ordinary":
            made = np.empty(size)
        made[:] = expected
        self.here.append((made, expected))

    @rule(size=sizes, name=st.sampled_from(NAMES))
    def make_there(self, size: int, name: str) -> None:
        seed = self.next_seed()
        self.there[name][seed] = values(size, seed)
        self.here.append((self.pairs[name].call.make(seed, size, seed), self.there[name][seed]))

    @precondition(lambda self: self.here)
    @rule(data=st.data(), name=st.sampled_from(NAMES))
    def pass_on(self, data: st.DataObject, name: str) -> None:
        """What is here goes to a plugin, which keeps it: own arrays, received ones, those of another plugin, and what came back."""
        array, expected = self.pick(data)
        key = self.next_seed()
        self.pairs[name].call.keep(key, array)
        self.there[name][key] = expected

    @precondition(lambda self: any(self.there.values()))
    @rule(data=st.data(), part=st.booleans())
    def bring(self, data: st.DataObject, part: bool) -> None:
        name = data.draw(st.sampled_from([name for name in NAMES if self.there[name]]))
        key = data.draw(st.sampled_from(sorted(self.there[name])))
        expected = self.there[name][key]
        if part:
            start, step = data.draw(st.integers(0, 300)), data.draw(st.sampled_from([1, 3]))
            self.here.append((self.pairs[name].call.give_part(key, start, expected.size, step), expected[start::step]))
        else:
            self.here.append((self.pairs[name].call.give(key), expected))

    @precondition(lambda self: self.here)
    @rule(data=st.data(), name=st.sampled_from(NAMES), count=st.integers(1, 4))
    def echo(self, data: st.DataObject, name: str, count: int) -> None:
        chosen = [self.pick(data) for _ in range(count)]
        for got, (_, expected) in zip(self.pairs[name].call.echo([array for array, _ in chosen]), chosen, strict=True):
            assert np.array_equal(got, expected)

    @precondition(lambda self: self.here)
    @rule(data=st.data())
    def slice_here(self, data: st.DataObject) -> None:
        array, expected = self.pick(data)
        start, step = data.draw(st.integers(0, array.size)), data.draw(st.sampled_from([1, 2, -1]))
        self.here.append((array[start:][::step], expected[start:][::step]))

    @precondition(lambda self: self.here)
    @rule(data=st.data())
    def change_a_writable_one(self, data: st.DataObject) -> None:
        array, expected = self.pick(data)
        if array.size:
            own, changed = _ndarray_memory.writable(array), expected.copy()
            own[array.size // 2] = changed[array.size // 2] = -self.next_seed()
            assert np.count_nonzero(own != expected) == 1
            self.here.append((own, changed))

    @precondition(lambda self: self.here)
    @rule(data=st.data())
    def drop_here(self, data: st.DataObject) -> None:
        del self.here[data.draw(st.integers(0, len(self.here) - 1))]

    @precondition(lambda self: any(self.there.values()))
    @rule(data=st.data())
    def drop_there(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([name for name in NAMES if self.there[name]]))
        key = data.draw(st.sampled_from(sorted(self.there[name])))
        self.pairs[name].call.drop(key)
        del self.there[name][key]

    @rule(name=st.sampled_from(NAMES))
    def crash(self, name: str) -> None:
        """A plugin dies and another one comes; what it had lent stays readable here and for whoever it was lent on to."""
        pair = self.pairs[name]
        pair.call.end()
        mapped = pair.host.borrowed.mapped()
        pair.host.leave()
        for segment in mapped.values():
            self.arena.disown(segment)
        pair.plugin.leave()
        if name not in SHARED:
            pair.host.arena.close()
        pair.plugin.arena.close()
        self.there[name].clear()
        self.connect(name)

    @precondition(lambda self: self.here)
    @rule()
    def fork(self) -> None:
        """A child reads what its parent has, writes to what is writable, drops everything: the parent sees nothing of it."""
        gc.disable()  # what is unreachable here is dropped by whoever made it
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = 0 if all(np.array_equal(array, expected) for array, expected in self.here) else 2
                for array, _ in self.here:
                    if array.flags.writeable:
                        array[...] = -7.0
                self.here.clear()
            finally:
                os._exit(code)
        gc.enable()
        assert os.waitpid(pid, 0)[1] == 0

    @rule(name=st.sampled_from(NAMES), size=sizes)
    def eight_threads(self, name: str, size: int) -> None:
        """Eight leases of one plugin's arrays end on eight threads, while this one calls."""
        seeds = [self.next_seed() for _ in range(8)]
        got = [self.pairs[name].call.make(seed, size, seed) for seed in seeds]
        threads = [threading.Thread(target=got.pop) for _ in seeds]
        for thread in threads:
            thread.start()
        for seed in seeds:
            self.pairs[name].call.drop(seed)
        for thread in threads:
            thread.join()
        assert not got

    @invariant()
    def all_values_hold(self) -> None:
        for array, expected in getattr(self, "here", ()):
            assert np.array_equal(array, expected)
        for name, kept in getattr(self, "there", {}).items():
            for key, expected in kept.items():
                assert np.array_equal(self.pairs[name].implementation.kept[key], expected)
        if hasattr(self, "arena"):
            self.arena.check_lent()

    def teardown(self) -> None:
        if not hasattr(self, "pairs"):
            return
        try:
            self.here.clear()
            for pair in self.pairs.values():
                pair.implementation.kept.clear()
            for _ in range(2):  # what was lent on is given back once it has come back itself
                for pair in self.pairs.values():
                    pair.settle()
                stats: dict[str, Any] = self.arena.stats()
                self.arena.disown(None)
            gc.collect()
            assert self.arena.stats()["blocks_in_use"] == 0, stats
            for pair in self.pairs.values():
                assert pair.plugin.in_use()["in_use"] == pair.plugin.in_use()["held"] == 0
        finally:
            for pair in self.pairs.values():
                pair.call.end()
                pair.host.close()
                pair.plugin.close()
            self.arena.close()


LeaseRules.TestCase.settings = settings(max_examples=12, stateful_step_count=30, phases=[Phase.generate])
TestLeaseRules = LeaseRules.TestCase


@pytest.mark.long
class TestLeaseRulesLong(LeaseRules.TestCase):
    settings = settings(max_examples=60, stateful_step_count=50)
