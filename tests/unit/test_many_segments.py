"""An arena that has had many segments, and a peer that has as many of them as it may."""

from __future__ import annotations

import numpy as np
import pytest
from tests.unit.test_leases import Array, Pair, values
from tests.unit.two_ends import End

from fastplug.errors import ArenaExhausted
from fastplug.shm import _ndarray
from fastplug.shm._arena import Arena
from fastplug.shm._borrowed import MAX_SEGMENT_IDS
from fastplug.shm._loans import MAX_SEGMENTS

MIB = 1 << 20
# Neither has room beside the other: each time the segment of one makes way for that of the other.
ITEMS = (200_000, 350_000)


def test_a_late_peer_of_an_arena_that_has_retired_many() -> None:
    """Ids do not grow with all that an arena ever was."""
    arena = Arena(4 * MIB, MIB, lasting=True)
    ids = set()
    with Pair(host=End("host", arena=arena)) as pair:
        for n in range(MAX_SEGMENTS // 2 + 8):
            for size in ITEMS:
                pair.call.keep(n, values(size, n))
                ids |= {i for i in range(2 * MAX_SEGMENTS + 2) if pair.host.ledger.announced_segment(i) is not None}
                pair.implementation.kept.clear()
                pair.settle()
        assert max(ids) < 8
        with Pair(host=End("host", arena=arena)) as late:
            late.call.keep(1, values(ITEMS[1], 1))
            assert np.array_equal(late.implementation.kept[1], values(ITEMS[1], 1))
            assert late.host.ledger.lent == 1, "by reference"
            late.implementation.kept.clear()
            late.assert_nothing_out()
        pair.assert_nothing_out()


def test_a_peer_that_has_as_many_as_it_may_is_told_of_no_more() -> None:
    """It would end the connection."""
    with Pair(limit_bytes=16 * MIB, first_bytes=MIB) as pair:
        for segment_id in range(1, MAX_SEGMENTS):
            pair.host.ledger.mark_announced(MAX_SEGMENT_IDS + segment_id)
        array: Array = _ndarray.empty(pair.host.arena, 300_000, np.float64)
        array[:] = values(300_000, 1)
        with pytest.raises(ArenaExhausted, match="as many segments"):
            pair.call.keep(1, array)
        del array
        pair.assert_nothing_out()
