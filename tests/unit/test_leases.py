"""Blocks and leases between two ends in one process: what is lent keeps its value, and all of it comes back."""

from __future__ import annotations

import gc
import threading
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.unit.two_ends import NOTHING_OUT, SOON_S, Called, End, two_ends

from fastplug.deadlines import deadline
from fastplug.errors import ArenaExhausted, CopyRequired, DeadlineExceeded, RemoteError
from fastplug.interfaces import interface, interface_of
from fastplug.shm import _ndarray
from fastplug.shm._arena import SCARCE_LOOKS, lease_counts

Array = npt.NDArray[np.float64]
MAX_ITEMS = 40_000  # 320 KB: several size classes, and a few arrays fill a segment


@interface("test.keeper/1")
class Keeper(Protocol):
    def keep(self, key: int, x: Array) -> None: ...
    def drop(self, key: int) -> None: ...
    def give(self, key: int) -> Array: ...
    def give_part(self, key: int, start: int, stop: int, step: int) -> Array: ...
    def take_all(self) -> list[Array]: ...
    def make(self, key: int, size: int, seed: int) -> Array: ...
    def echo(self, x: list[Array]) -> list[Array]: ...
    def slow_echo(self, x: Array) -> Array: ...
    def fail(self, x: Array) -> Array: ...
    def text(self, size: int) -> str: ...
    def read(self, text: str) -> int: ...
    def nothing(self) -> None: ...


def values(size: int, seed: int) -> Array:
    """Every element tells what array and what place it belongs to."""
    return np.arange(size, dtype=np.float64) + seed * 1e6


class KeeperPlugin:
    def __init__(self, end: End) -> None:
        self.end = end
        self.kept: dict[int, Array] = {}
        self.gate = threading.Event()
        self.gate.set()

    def keep(self, key: int, x: Array) -> None:
        self.kept[key] = x

    def drop(self, key: int) -> None:
        del self.kept[key]

    def give(self, key: int) -> Array:
        return self.kept[key]

    def give_part(self, key: int, start: int, stop: int, step: int) -> Array:
        return self.kept[key][start:stop:step]

    def take_all(self) -> list[Array]:
        taken, self.kept = self.kept, {}
        return list(taken.values())

    def make(self, key: int, size: int, seed: int) -> Array:
        made = _ndarray.empty(self.end.arena, size, np.float64)
        made[:] = values(size, seed)
        self.kept[key] = made
        return made

    def echo(self, x: list[Array]) -> list[Array]:
        return x

    def slow_echo(self, x: Array) -> Array:
        assert self.gate.wait(SOON_S)
        return x

    def fail(self, x: Array) -> Array:
        raise ValueError(f"{x.size} values")

    def text(self, size: int) -> str:
        return "y" * size

    def read(self, text: str) -> int:
        return len(text)

    def nothing(self) -> None:
        return None


class Pair:
    """A host and a plugin that talk."""

    def __init__(self, *, host: End | None = None, plugin: End | None = None, strict: bool = False, **sizes: int) -> None:
        self.host, self.plugin = host or End("host", **sizes), plugin or End("plugin", **sizes)
        self.host.join(self.plugin, strict=strict)
        self.plugin.join(self.host)
        self.implementation = KeeperPlugin(self.plugin)
        self.call = Called(self.host, self.plugin, interface_of(Keeper), self.implementation)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.call.end()

    def settle(self) -> None:
        """Two calls: each side has seen the other's head move past what it sent."""
        gc.collect()
        self.call.nothing()
        self.call.nothing()

    def assert_nothing_out(self) -> None:
        self.settle()
        assert self.host.in_use() == NOTHING_OUT
        assert self.plugin.in_use() == NOTHING_OUT


sizes = st.integers(1, 300) | st.integers(1, MAX_ITEMS)


class LeaseModel(RuleBasedStateMachine):
    """Every array on either side, own, received, or a view of one, always has the values that it had at first."""

    @initialize()
    def start(self) -> None:
        self.pair = Pair(limit_bytes=16 << 20, first_bytes=1 << 20)
        self.here: list[tuple[Array, Array]] = []  # (array, what it must be)
        self.there: dict[int, Array] = {}
        self.seed = 0

    def pick(self, data: st.DataObject) -> tuple[Array, Array]:
        return self.here[data.draw(st.integers(0, len(self.here) - 1))]

    def next_seed(self) -> int:
        self.seed += 1
        return self.seed

    @rule(size=sizes, born_shared=st.booleans())
    def make_here(self, size: int, born_shared: bool) -> None:
        expected = values(size, self.next_seed())
        made: Array = _ndarray.empty(self.pair.host.arena, size, np.float64) if born_shared else np.empty(size)
        made[:] = expected
        self.here.append((made, expected))

    @rule(size=sizes)
    def make_there(self, size: int) -> None:
        seed = self.next_seed()
        got = self.pair.call.make(seed, size, seed)
        assert not got.flags.writeable
        self.there[seed] = values(size, seed)
        self.here.append((got, self.there[seed]))

    @precondition(lambda self: self.here)
    @rule(data=st.data())
    def view(self, data: st.DataObject) -> None:
        array, expected = self.pick(data)
        start = data.draw(st.integers(0, array.size))
        step = data.draw(st.sampled_from([1, 2, -1, 7]))
        self.here.append((array[start:][::step], expected[start:][::step]))

    @precondition(lambda self: self.here)
    @rule(data=st.data())
    def drop_here(self, data: st.DataObject) -> None:
        del self.here[data.draw(st.integers(0, len(self.here) - 1))]

    @precondition(lambda self: self.here)
    @rule(data=st.data())
    def keep_there(self, data: st.DataObject) -> None:
        array, expected = self.pick(data)
        key = self.next_seed()
        self.pair.call.keep(key, array)
        self.there[key] = expected

    @precondition(lambda self: self.there)
    @rule(data=st.data())
    def drop_there(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.there)))
        self.pair.call.drop(key)
        del self.there[key]

    @precondition(lambda self: self.there)
    @rule(data=st.data())
    def bring(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.there)))
        self.here.append((self.pair.call.give(key), self.there[key]))

    @precondition(lambda self: self.there)
    @rule(data=st.data())
    def bring_part(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.there)))
        start, stop = data.draw(st.integers(0, 500)), data.draw(st.integers(0, MAX_ITEMS))
        step = data.draw(st.sampled_from([1, 3]))
        self.here.append((self.pair.call.give_part(key, start, stop, step), self.there[key][start:stop:step]))

    @precondition(lambda self: self.here)
    @rule(data=st.data(), count=st.integers(1, 5), keep=st.booleans())
    def echo(self, data: st.DataObject, count: int, keep: bool) -> None:
        chosen = [self.pick(data) for _ in range(count)]
        got = self.pair.call.echo([array for array, _ in chosen])
        for array, (_, expected) in zip(got, chosen, strict=True):
            assert np.array_equal(array, expected)
            if keep:
                self.here.append((array, expected))

    @precondition(lambda self: self.here)
    @rule(data=st.data())
    def a_call_that_fails(self, data: st.DataObject) -> None:
        with pytest.raises(RemoteError, match="values"):
            self.pair.call.fail(self.pick(data)[0])

    @precondition(lambda self: self.here)
    @rule(data=st.data())
    def a_late_reply(self, data: st.DataObject) -> None:
        self.pair.implementation.gate.clear()
        with pytest.raises(DeadlineExceeded), deadline(after_s=0.001):
            self.pair.call.slow_echo(self.pick(data)[0])
        self.pair.implementation.gate.set()

    @rule(size=st.integers(0, 300_000))
    def a_long_payload(self, size: int) -> None:
        assert self.pair.call.text(size) == "y" * size

    @rule()
    def crash(self) -> None:
        """The plugin dies; a new one shares the same arena of the host."""
        self.pair.call.end()
        self.pair.host.leave()
        arena = self.pair.host.arena
        self.pair.plugin.leave()
        self.pair = Pair(host=End("host", arena=arena), limit_bytes=16 << 20, first_bytes=1 << 20)
        self.there.clear()

    @invariant()
    def all_values_hold(self) -> None:
        for array, expected in getattr(self, "here", ()):
            assert np.array_equal(array, expected)
        for key, expected in getattr(self, "there", {}).items():
            assert np.array_equal(self.pair.implementation.kept[key], expected)

    def teardown(self) -> None:
        if not hasattr(self, "pair"):
            return
        try:
            self.here.clear()
            self.pair.implementation.kept.clear()
            self.pair.assert_nothing_out()
        finally:
            self.pair.call.end()


LeaseModel.TestCase.settings = settings(max_examples=40, stateful_step_count=40)
TestLeaseModel = LeaseModel.TestCase


# -- one rule at a time

BIG = 50_000  # 400 KB


def test_a_block_that_comes_home_is_held_until_it_is_decoded() -> None:
    """The owner moves head past a frame that names its blocks only when it has leases of its own."""
    with Pair(limit_bytes=16 << 20, first_bytes=1 << 20) as pair:
        looked: list[tuple[int, int]] = []

        def in_the_middle_of_decoding(_segment_id: int) -> None:
            looked.append((pair.plugin.lane.held, pair.host.ledger.lent))

        home: Array = _ndarray.empty(pair.host.arena, BIG, np.float64)
        home[:] = values(BIG, 1)
        pair.host.on_missing = in_the_middle_of_decoding
        pair.call.keep(1, home)
        pair.implementation.kept[2] = values(4 * BIG, 2)  # needs a segment that the host does not know yet
        got = pair.call.take_all()
        assert looked == [(1, 1)]
        assert np.array_equal(got[0], home)
        assert np.shares_memory(got[0], home)
        del got, home
        pair.assert_nothing_out()


def test_what_is_named_in_a_message_is_not_reused_for_its_next_array() -> None:
    """Over the limit, idle segments are cut anew: the first array's block is neither lent yet nor free."""
    with Pair(limit_bytes=1 << 20, first_bytes=1 << 20) as pair:
        with pytest.raises(ArenaExhausted):
            pair.call.echo([values(100_000, 1), values(100_000, 2)])
        one, two = pair.call.echo([values(50_000, 1), values(50_000, 2)])
        assert np.array_equal(one, values(50_000, 1))
        assert np.array_equal(two, values(50_000, 2))
        del one, two
        pair.assert_nothing_out()


def test_the_limit_is_an_error_that_names_the_oldest_leases() -> None:
    with Pair(limit_bytes=1 << 20, first_bytes=1 << 20) as pair:
        pair.call.keep(0, values(BIG, 0))
        mine: Array = _ndarray.empty(pair.host.arena, BIG, np.float64)
        with pytest.raises(ArenaExhausted, match=r"oldest: \d+ bytes lent to plugin 1 allocations ago.*arena_limit_bytes"):
            pair.call.keep(2, values(BIG, 2))
        assert pair.host.ledger.lent == 1
        assert pair.host.arena.stats()["oldest_lent"] == {"peers": ["plugin"], "bytes": 458752, "allocations_ago": 1}
        pair.call.drop(0)
        pair.call.keep(3, values(BIG, 3))
        assert np.array_equal(pair.implementation.kept[3], values(BIG, 3))
        del mine
        pair.implementation.kept.clear()
        pair.assert_nothing_out()


def test_over_the_high_water_mark_what_is_kept_is_copied_by_who_keeps_it() -> None:
    with Pair(limit_bytes=4 << 20, first_bytes=1 << 20) as pair:
        for key in range(60):  # 24 MB in all
            pair.call.keep(key, values(BIG, key))
        born: Array = _ndarray.empty(pair.host.arena, 20_000, np.float64)
        born[:] = values(20_000, 99)
        pair.call.keep(99, born)
        stats = pair.host.arena.stats()
        assert stats["scarce"]
        assert stats["bytes"] <= 4 << 20
        assert 3 <= pair.host.ledger.lent <= 8
        assert pair.plugin.port.copies >= 50
        for key in range(60):
            assert np.array_equal(pair.implementation.kept[key], values(BIG, key))
            assert not pair.implementation.kept[key].flags.writeable
        assert np.array_equal(pair.implementation.kept[99], born)
        del born
        pair.implementation.kept.clear()
        pair.call.keep(0, values(BIG, 1))
        for _ in range(SCARCE_LOOKS):
            pair.call.echo([values(1000, 1)])
        assert not pair.host.arena.scarce
        pair.implementation.kept.clear()
        pair.assert_nothing_out()


def test_an_idle_segment_is_retired_to_make_room() -> None:
    with Pair(limit_bytes=4 << 20, first_bytes=1 << 20) as pair:
        pair.call.keep(1, values(100_000, 1))
        pair.call.keep(2, values(100_000, 2))
        before = pair.host.arena.stats()
        pair.implementation.kept.clear()
        pair.settle()
        pair.call.keep(3, values(400_000, 3))
        assert np.array_equal(pair.implementation.kept[3], values(400_000, 3))
        assert pair.host.arena.stats()["bytes"] <= 4 << 20
        assert pair.host.arena.stats()["segments"] < before["segments"] + 1
        pair.implementation.kept.clear()
        pair.assert_nothing_out()


def test_a_segment_counts_until_the_peer_has_let_go_of_it() -> None:
    with Pair(limit_bytes=3 << 20, first_bytes=1 << 20) as pair:
        pair.host.answers_retire = False
        pair.call.keep(1, values(100_000, 1))
        pair.implementation.kept.clear()
        pair.settle()
        with pytest.raises(ArenaExhausted):
            pair.call.keep(2, values(380_000, 2))
        pair.host.arena.retired(0, pair.host.ledger)
        pair.call.keep(3, values(380_000, 3))
        pair.implementation.kept.clear()
        pair.assert_nothing_out()


def test_retired_slots_are_used_again_and_their_counters_go_on() -> None:
    with Pair(limit_bytes=1 << 20, first_bytes=1 << 20, slots=512) as pair:
        for turn in range(40):  # sizes in turn, so that the one segment is cut anew each time
            size = (30_000, 60_000, 90_000)[turn % 3]
            got = pair.call.echo([values(size, turn)])
            assert np.array_equal(got[0], values(size, turn))
            del got
            pair.settle()
        counts = [pair.plugin.table.read(8 * slot, 8) for slot in range(512)]
        used = [count for count in counts if any(count)]
        assert len(used) <= 4
        assert sum(int.from_bytes(count, "little") for count in used) >= 40
        pair.assert_nothing_out()


def test_when_all_slots_are_in_use_nothing_more_is_lent() -> None:
    with Pair(slots=512) as pair:
        for key in range(512):
            pair.call.keep(key, values(200, key))
        with pytest.raises(ArenaExhausted, match="512 leases"):
            pair.call.keep(512, values(1000, 512))
        copies = pair.host.port.copies
        pair.call.keep(511, values(200, 511))  # what the ring takes goes inside the message
        assert pair.host.port.copies == copies + 1
        pair.call.keep(513, values(2, 513))
        for key in range(512):
            assert np.array_equal(pair.implementation.kept[key], values(200, key))
        pair.implementation.kept.clear()
        pair.call.keep(514, values(200, 514))
        pair.implementation.kept.clear()
        pair.assert_nothing_out()


def test_a_request_that_was_not_sent_lends_nothing() -> None:
    """The ring is full and the deadline comes: the blocks that the request names are not lent."""
    with Pair() as pair:
        pair.implementation.gate.clear()
        array: Array = _ndarray.empty(pair.host.arena, BIG, np.float64)
        array[:] = values(BIG, 1)
        not_sent = 0
        while not not_sent:
            before = pair.host.lane.positions
            with pytest.raises(DeadlineExceeded) as failed, deadline(after_s=0.0005):
                pair.call.slow_echo(array)
            not_sent += "nothing was sent" in str(failed.value) and pair.host.lane.positions == before
        pair.implementation.gate.set()
        pair.settle()
        assert _ndarray.readers_of(array) == 0
        del array
        pair.assert_nothing_out()


def test_a_dead_peer_has_nothing_any_more() -> None:
    pair = Pair()
    mine: Array = _ndarray.empty(pair.host.arena, BIG, np.float64)
    pair.call.keep(1, mine)
    received = pair.call.make(2, BIG, 2)
    assert pair.host.ledger.lent == 1
    assert _ndarray.borrowers_of(mine) == ["plugin"]
    pair.call.end()
    pair.host.leave()
    assert pair.host.ledger.lent == 0
    assert _ndarray.borrowers_of(mine) == []
    assert np.array_equal(received, values(BIG, 2)), "what was received stays readable"
    del mine
    gc.collect()
    stats = pair.host.arena.stats()
    assert (stats["blocks_in_use"], stats["blocks_lent"]) == (0, 0)


def test_strict_refuses_copies_of_more_than_a_kilobyte() -> None:
    with Pair(strict=True) as pair:
        pair.call.keep(1, values(127, 1))
        with pytest.raises(CopyRequired, match="1024 bytes"):
            pair.call.keep(2, values(128, 2))
        shared: Array = _ndarray.empty(pair.host.arena, 128, np.float64)
        shared[:] = values(128, 3)
        pair.call.keep(3, shared)
        assert np.array_equal(pair.implementation.kept[3], values(128, 3))
        pair.implementation.kept.clear()
        del shared
        pair.assert_nothing_out()


def test_an_array_of_another_connection_is_copied() -> None:
    with Pair() as pair, Pair() as other:
        foreign = other.call.make(1, BIG, 1)
        copies = pair.host.port.copies
        pair.call.keep(1, foreign)
        assert pair.host.port.copies == copies + 1
        assert np.array_equal(pair.implementation.kept[1], foreign)


def test_lease_counts_tell_who_has_what() -> None:
    with Pair() as pair:
        array: Array = _ndarray.empty(pair.host.arena, BIG, np.float64)
        assert list(lease_counts(pair.host.arena).values()) == [(1, 0)]
        pair.call.keep(1, array)
        assert list(lease_counts(pair.host.arena).values()) == [(1, 1)]
        del array
        assert list(lease_counts(pair.host.arena).values()) == [(0, 1)]
        pair.implementation.kept.clear()
        assert list(lease_counts(pair.host.arena).values()) == [(0, 0)]


def test_leases_end_on_any_thread() -> None:
    with Pair() as pair:
        arrays = [pair.call.make(key, BIG, key) for key in range(8)]
        pair.implementation.kept.clear()
        threads = [threading.Thread(target=arrays.pop) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        pair.assert_nothing_out()


def test_two_ends_of_nothing() -> None:
    """Everything is given back when the objects go: the fixture for all tests looks at mappings and descriptors."""
    host, plugin = two_ends()
    assert host.in_use() == plugin.in_use() == NOTHING_OUT
