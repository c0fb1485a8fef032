"""The allocator and its books, without calls. What happens between two sides is in test_leases.py."""

from __future__ import annotations

import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.two_ends import attached

from fastplug.errors import ArenaExhausted, RemoteProtocolError
from fastplug.shm import _arena
from fastplug.shm._arena import MAX_TABLES, MIN_BLOCK_BYTES, TABLE_SLOTS, Arena, Ledger, size_class_bytes
from fastplug.shm._borrowed import Borrowed
from fastplug.shm._segment import PAGE_BYTES, Segment

MIB = 1 << 20


@given(st.integers(1, 1 << 40))
def test_size_classes(size: int) -> None:
    """At least what was asked for, at most a quarter more, and the size of a class is in that class."""
    got = size_class_bytes(size)
    assert size <= got
    assert got <= max(MIN_BLOCK_BYTES, size + (size + 3) // 4)
    assert size_class_bytes(got) == got


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
        "blocks": 4,
        "blocks_in_use": 0,
        "blocks_lent": 0,
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
    for segment_id in (0, -1, 1 << 31, 258, 10_000):
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


def test_retired_of_nothing() -> None:
    arena = Arena(MIB, MIB)
    ledger = Ledger(arena, "the peer", lambda _id, _segment: None)
    for segment_id in (0, 7, 1 << 31):
        arena.retired(segment_id, ledger)
    assert arena.total_bytes == MIB
