"""The allocator and its books, without calls. What happens between two sides is in test_leases.py."""

from __future__ import annotations

import gc
import itertools
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.unit.two_ends import SOON_S, attached

from fastplug.errors import ArenaExhausted, RemoteProtocolError
from fastplug.shm import _arena
from fastplug.shm._arena import Arena
from fastplug.shm._borrowed import MAX_SEGMENT_IDS, Borrowed
from fastplug.shm._loans import MAX_TABLES, TABLE_SLOTS, Ledger
from fastplug.shm._segment import PAGE_BYTES, Segment
from fastplug.shm._space import Space, size_of_block

MIB = 1 << 20
MIN_BLOCK_BYTES = 1024
EXACT_BYTES = 16 * MIB


@given(st.integers(1, 1 << 40))
def test_size_classes(size: int) -> None:
    """At least what was asked for, at most a quarter more, and the size of a class is in that class."""
    got = size_of_block(size)
    assert size <= got
    assert got <= max(MIN_BLOCK_BYTES, size + (size + 3) // 4) if size < EXACT_BYTES else got < size + PAGE_BYTES
    assert size_of_block(got) == got


def test_memory_comes_back_and_is_used_again() -> None:
    arena = Arena(8 * MIB, MIB)
    for _ in range(100):
        leases = [arena.allocate(size) for size in (1, 5000, 100_000, 300_000)]
        assert arena.stats()["blocks_in_use"] == 4
        del leases
    assert arena.stats() == {
        "segments": 1,
        "bytes": MIB,
        "limit_bytes": 8 * MIB,
        "free_bytes": MIB - sum(map(size_of_block, (1, 5000, 100_000, 300_000))),
        "scarce": False,
        "blocks": 4,
        "blocks_in_use": 0,
        "blocks_lent": 0,
        "oldest_lent": None,
    }


def test_it_grows_to_its_limit_and_says_what_is_in_use() -> None:
    arena = Arena(4 * MIB, MIB)
    leases = [arena.allocate(700_000) for _ in range(3)]
    with pytest.raises(ArenaExhausted, match=r"of at most 4194304 bytes are in segments, [23]\d{6} bytes are in arrays of this process"):
        leases += [arena.allocate(700_000) for _ in range(3)]
    assert isinstance(ArenaExhausted(), MemoryError)
    assert arena.stats()["bytes"] <= 4 * MIB
    leases.clear()
    assert arena.stats()["blocks_in_use"] == 0
    large = arena.allocate(3 * MIB)
    del large


def test_blocks_do_not_overlap() -> None:
    arena = Arena(64 * MIB, MIB)
    leases = [arena.allocate(size) for size in range(1, 200_000, 3_001)]
    blocks = sorted(_arena.lease_counts(arena))
    sizes = arena.stats()
    assert len(blocks) == len(leases) == sizes["blocks"]
    assert all(offset % 256 == 0 for _, offset in blocks)
    leases.clear()
    gc.collect()
    assert set(_arena.lease_counts(arena).values()) == {(0, 0)}


@pytest.mark.parametrize("size", [(1 << 40) + 1, 1 << 62])
def test_more_than_any_segment(size: int) -> None:
    with pytest.raises(ArenaExhausted, match="more than any segment"):
        Arena(MIB, MIB).allocate(size)


def test_a_closed_arena_gives_nothing_and_its_arrays_stay() -> None:
    arena = Arena(4 * MIB, MIB)
    lease = arena.allocate(10_000)
    arena.close()
    with pytest.raises(ArenaExhausted):
        arena.allocate(10)
    del lease
    assert arena.stats()["bytes"] == 0


def test_the_first_segment_is_not_larger_than_the_limit() -> None:
    arena = Arena(PAGE_BYTES, 4 * MIB)
    assert arena.first_segment().bytes == PAGE_BYTES == arena.total_bytes


@pytest.mark.parametrize(("slots", "size"), [(0, 4096), (511, 4096), (513, 8192), (1024, 4096), (TABLE_SLOTS * MAX_TABLES + 512, 1 << 21)])
def test_tables_that_cannot_be(slots: int, size: int) -> None:
    ledger = Ledger(Arena(MIB, MIB), "the peer", lambda _id, _segment: None)
    table = attached(Segment.create(size))
    with pytest.raises(RemoteProtocolError, match="the peer announced a table"):
        ledger.add_table(table, slots)


def test_further_tables() -> None:
    ledger = Ledger(Arena(MIB, MIB), "the peer", lambda _id, _segment: None)
    ledger.add_table(attached(Segment.create(4096)), 512)
    with pytest.raises(RemoteProtocolError, match="instead of 8192"):
        ledger.add_table(attached(Segment.create(4096)), 512)
    segment = Segment.create(TABLE_SLOTS * 8)
    for _ in range(MAX_TABLES - 1):
        ledger.add_table(attached(segment), TABLE_SLOTS)
    with pytest.raises(RemoteProtocolError):
        ledger.add_table(attached(segment), TABLE_SLOTS)
    ledger.close()
    ledger.close()


def test_segments_that_are_announced_wrongly() -> None:
    borrowed = Borrowed("the peer", lambda _id: None)
    segment = Segment.create(4096)
    borrowed.add_segment(0, attached(segment))
    for segment_id in (0, -1, 1 << 31, MAX_SEGMENT_IDS):
        with pytest.raises(RemoteProtocolError, match=f"the peer announced segment {segment_id}"):
            borrowed.add_segment(segment_id, attached(segment))
    assert not borrowed.drop_segment(5)
    assert not borrowed.drop_segment(-1)
    assert borrowed.drop_segment(0)
    assert not borrowed.drop_segment(0)


def test_at_most_so_many_segments_are_mapped() -> None:
    borrowed = Borrowed("the peer", lambda _id: None)
    segment = Segment.create(4096)
    for segment_id in range(256):
        borrowed.add_segment(segment_id, attached(segment))
    with pytest.raises(RemoteProtocolError, match="at most 256"):
        borrowed.add_segment(256, attached(segment))
    assert borrowed.drop_segment(17)
    borrowed.add_segment(256, attached(segment))
    borrowed.close()


def test_an_id_is_used_again_once_every_peer_has_let_go_of_it() -> None:
    """Or ids grow with all that an arena ever was, and a plugin that is started late cannot follow."""
    arena = Arena(4 * MIB, MIB)
    ledgers = [Ledger(arena, name, lambda _id, _segment: None) for name in "ab"]

    def replace(size: int) -> set[int]:
        """Ids that both were told of, of segments that were made since all others became idle."""
        before = {i for i in range(100) if ledgers[0].announced_segment(i) is not None}
        lease = arena.allocate(size)
        for ledger in ledgers:
            ledger.announce_all()
        del lease
        return {i for i in range(100) if ledgers[0].announced_segment(i) is not None} - before

    assert replace(MIB) == {0}
    assert replace(2 * MIB) == {1}
    with pytest.raises(ArenaExhausted):
        replace(3 * MIB)  # 0 and 1 are retired, and nobody has answered
    for segment_id in (0, 1):
        arena.retired(segment_id, ledgers[0])
    with pytest.raises(ArenaExhausted):
        replace(3 * MIB)
    for segment_id in (0, 1):
        arena.retired(segment_id, ledgers[1])
    assert replace(3 * MIB) in ({0}, {1})


def test_retired_of_nothing() -> None:
    arena = Arena(MIB, MIB)
    ledger = Ledger(arena, "the peer", lambda _id, _segment: None)
    for segment_id in (0, 7, 1 << 31):
        arena.retired(segment_id, ledger)
    assert arena.total_bytes == MIB


def test_a_mix_of_sizes_does_not_use_an_arena_up() -> None:
    """Blocks are split and merged: what was given back in one size is had again in any other."""
    arena = Arena(4 * MIB, 4 * MIB)
    for size in (1000, 3 * MIB, 20_000, 2 * MIB, 1500, 100_000, 3 * MIB, 1024):
        leases = [arena.allocate(size) for _ in range(int(3.3 * MIB) // size_of_block(size))]
        assert arena.stats()["blocks_in_use"] == len(leases) >= 1
        del leases
    small = [arena.allocate(1000) for _ in range(100)]  # they live on, at one end
    for _ in range(50):
        for size in (MIB, 3 * MIB, 2 * MIB + 5, 70_000):
            del small[:1]
            small.append(arena.allocate(1000))
            large = arena.allocate(size)
            del large
    assert arena.stats()["bytes"] == 4 * MIB


@pytest.mark.parametrize("seed", range(5))
def test_growth_with_many_sizes_is_bounded(seed: int) -> None:
    """Whatever the sizes and their order: segments have at most four times what was in use at once."""
    rng = random.Random(seed)
    arena = Arena(512 * MIB, MIB)
    live: list[tuple[int, object]] = []
    used = most = 0
    for _ in range(6000):
        if live and (used > 8 * MIB or rng.random() < 0.45):
            used -= live.pop(rng.randrange(len(live)))[0]
        else:
            size = int(2 ** rng.uniform(10, 21))
            live.append((size, arena.allocate(size)))
            used += size
            most = max(most, used)
    assert arena.total_bytes <= 4 * most
    live.clear()
    total = arena.total_bytes
    again = [arena.allocate(MIB // 2) for _ in range(total // MIB)]  # pieces of other sizes are merged for these
    assert arena.total_bytes == total
    del again


def test_large_blocks_are_exact_and_used_again_only_where_they_fit() -> None:
    arena = Arena(256 * MIB, MIB)
    first = arena.allocate(EXACT_BYTES + 1)
    assert sum(arena.stats()[key] for key in ("bytes", "free_bytes")) >= EXACT_BYTES
    (block,) = [key for key, count in _arena.lease_counts(arena).items() if count == (1, 0)]
    del first
    second = arena.allocate(EXACT_BYTES + 100)
    assert _arena.lease_counts(arena) == {block: (1, 0)}
    longer = arena.allocate(EXACT_BYTES + 2 * PAGE_BYTES)
    assert arena.stats()["blocks_in_use"] == 2
    del second, longer


def test_the_next_segment_is_made_ahead_of_time() -> None:
    arena = Arena(64 * MIB, MIB, ahead=True)
    leases = [arena.allocate(100_000) for _ in range(9)]
    deadline = time.monotonic() + SOON_S
    while arena.stats()["segments"] == 1 and time.monotonic() < deadline:
        time.sleep(0.001)  # the thread announces nothing here that could be waited for
    assert arena.stats()["segments"] == 2
    assert arena.stats()["bytes"] == 2 * MIB
    leases.clear()
    arena.close()


def test_scarcity_begins_at_the_mark_and_ends_when_memory_comes_back() -> None:
    arena = Arena(4 * MIB, MIB)
    leases = []
    while not arena.scarce:
        leases.append(arena.allocate(100_000))
    assert 2.5 * MIB < sum(size_of_block(100_000) for _ in leases) < 3.5 * MIB
    leases.clear()
    for _ in range(_arena.SCARCE_LOOKS + 1):
        arena.allocate(1000)
    assert not arena.scarce


def test_a_hundred_thousand_small_leases() -> None:
    arena = Arena(512 * MIB)
    leases = [arena.allocate(1024) for _ in range(100_000)]
    assert arena.stats()["blocks_in_use"] == 100_000
    for lease in range(0, 100_000, 2):
        leases[lease] = None  # type: ignore[call-overload]
    large = arena.allocate(100 * MIB)
    assert arena.stats()["blocks_in_use"] == 50_001
    leases.clear()
    del large, lease


class SpaceModel(RuleBasedStateMachine):
    """Against a set of free bytes, in units of 256."""

    UNITS = 64

    def __init__(self) -> None:
        super().__init__()
        self.space = Space(self.UNITS * 256)
        self.free = set(range(self.UNITS))
        self.taken: list[tuple[int, int]] = []

    @rule(units=st.integers(1, 12), align=st.sampled_from([1, 2, 4]), from_end=st.booleans())
    def take(self, units: int, align: int, from_end: bool) -> None:
        places = [at for at in range(0, self.UNITS - units + 1, align) if self.free.issuperset(range(at, at + units))]
        got = self.space.take(units * 256, align * 256, from_end)
        if not places:
            assert got == -1
            return
        assert got == (places[-1] if from_end else places[0]) * 256
        self.free -= set(range(got // 256, got // 256 + units))
        self.taken.append((got, units))

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def give(self, data: st.DataObject) -> None:
        at, units = self.taken.pop(data.draw(st.integers(0, len(self.taken) - 1)))
        self.space.give_back(at, units * 256)
        self.free |= set(range(at // 256, at // 256 + units))

    @invariant()
    def the_same_bytes_are_free(self) -> None:
        extents = self.space.extents()
        assert {unit for start, end in extents for unit in range(start // 256, end // 256)} == self.free
        assert all(end < start for (_, end), (start, _) in itertools.pairwise(extents)), "two neighbours are not merged"
        assert self.space.free_bytes == len(self.free) * 256
        for unit in range(self.UNITS):
            before = [at for at, _ in self.taken if at // 256 <= unit]
            assert self.space.begin(unit * 256 + 255) == max(before, default=-1)


TestSpace = SpaceModel.TestCase
TestSpace.settings = settings(max_examples=40, stateful_step_count=40)
