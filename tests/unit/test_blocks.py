from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.unit.test_leases import Pair

from fastplug.errors import ArenaExhausted
from fastplug.shm import _ndarray
from fastplug.shm.blocks import ring


def test_blocks_come_in_turn_and_only_when_they_are_back() -> None:
    with Pair() as pair:
        arrays: list[Any] = [_ndarray.empty(pair.host.arena, 1000, np.float64) for _ in range(3)]
        turns = ring(arrays, 60.0, pair.call.caller.drain)
        for n in range(20):
            block = next(turns)
            assert block is arrays[n % 3]
            block[:] = n
            pair.call.keep(n, block)
            if n >= 2:
                assert pair.implementation.kept[n - 2][0] == n - 2, "what was lent is not given out"
                pair.call.drop(n - 2)
        pair.implementation.kept.clear()
        del block
        arrays.clear()
        turns.close()  # type: ignore[attr-defined]
        pair.assert_nothing_out()


def test_who_does_not_give_back_is_named() -> None:
    with Pair() as pair:
        arrays: list[Any] = [_ndarray.empty(pair.host.arena, 1000, np.float64)]
        drained = []
        turns = ring(arrays, 0.005, lambda: drained.append(1))
        pair.call.keep(1, next(turns))
        with pytest.raises(ArenaExhausted, match="plugin holds it"):
            next(turns)
        assert drained, "late replies are dropped while waiting"


def test_a_view_of_this_process_counts() -> None:
    with Pair() as pair:
        arrays: list[Any] = [_ndarray.empty(pair.host.arena, 1000, np.float64)]
        turns = ring(arrays, 0.005, lambda: None)
        kept = pair.call.echo([next(turns)])
        pair.settle()
        with pytest.raises(ArenaExhausted, match="an array of this process holds it"):
            next(turns)
        del kept
        turns = ring(arrays, 60.0, pair.call.caller.drain)
        pair.call.nothing()
        assert next(turns) is arrays[0]
