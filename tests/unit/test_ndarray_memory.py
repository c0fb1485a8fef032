"""Numpy's allocation handler over an arena: every way that memory can come, grow and go."""

from __future__ import annotations

import contextvars
import gc
import os
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fastplug.errors import LocalProtocolError
from fastplug.shm import _ndarray_memory
from fastplug.shm._arena import Arena
from fastplug.shm._ndarray_memory import allocate_from, allocated, restore
from fastplug.shm.arena import numpy_in

MIB = 1 << 20
LARGE = 20_000


@pytest.fixture(params=[True, False], ids=["implicit", "asked for"])
def arena(request: pytest.FixtureRequest) -> Iterator[Arena]:
    made = Arena(16 * MIB, 4 * MIB)
    before = allocate_from(made, request.param)
    try:
        yield made
    finally:
        restore(before)
        gc.collect()
        assert allocated() == 0
        if not made.closed:
            assert made.stats()["blocks_in_use"] == 0
        made.close()


def in_use(arena: Arena) -> int:
    count: int = arena.stats()["blocks_in_use"]
    return count


def test_small_arrays_are_numpys_own(arena: Arena) -> None:
    for size in (0, 1, 1000, 64 * 1024 - 1):
        x = np.empty(size, np.uint8)
        assert in_use(arena) == 0
    x = np.empty(64 * 1024, np.uint8)
    assert in_use(arena) == 1
    del x
    assert in_use(arena) == 0


def test_zeros_are_zero_in_memory_that_was_used_before(arena: Arena) -> None:
    for _ in range(3):
        x = np.full(LARGE, 7.0)
        del x
        assert not np.zeros(LARGE).any()
    with pytest.raises(MemoryError):
        np.zeros((1 << 62) // 8)


def test_growing_and_shrinking(arena: Arena) -> None:
    x = np.arange(float(LARGE))
    for size in (LARGE + 1, 3 * LARGE, LARGE, 10, LARGE):
        kept = min(size, x.size)
        x.resize(size, refcheck=False)
        assert np.array_equal(x[:kept][:10], np.arange(float(min(kept, 10))))
    assert np.array_equal(np.fromiter(range(LARGE), np.int64), np.arange(LARGE))
    del x
    assert in_use(arena) == 0


def test_a_temporary_is_used_again_for_the_result(arena: Arena) -> None:
    x = np.ones(2 * MIB // 8)
    y = np.sqrt(x) * 2 + 1
    assert y[5] == 3.0
    assert in_use(arena) == 2
    assert arena.stats()["blocks"] <= 4
    del x, y


def test_a_full_arena_and_a_closed_one_give_ordinary_arrays(arena: Arena) -> None:
    arrays = [np.full(MIB // 8, float(n)) for n in range(40)]
    assert 5 <= in_use(arena) <= 16
    assert all((array == n).all() for n, array in enumerate(arrays))
    arena.close()
    more = np.full(LARGE, 1.0)
    assert all((array == n).all() for n, array in enumerate(arrays))
    assert allocated() <= 16
    del arrays, more
    assert allocated() == 0


def test_threads_end_arrays_and_have_handlers_of_their_own(arena: Arena) -> None:
    arrays = [np.ones(LARGE) for _ in range(8)]
    counts: list[int] = []

    def on_thread() -> None:
        counts.append(in_use(arena))
        np.ones(LARGE)
        arrays.pop()

    for _ in range(8):
        thread = threading.Thread(target=on_thread)
        thread.start()
        thread.join()
    assert counts == [8, 7, 6, 5, 4, 3, 2, 1]
    found: list[Any] = []
    context = contextvars.copy_context()
    thread = threading.Thread(target=lambda: found.append(context.run(np.ones, LARGE)))
    thread.start()
    thread.join()
    assert in_use(arena) == 1
    del thread
    found.clear()


def test_many_threads_in_copies_of_the_context(arena: Arena) -> None:
    wrong: list[int] = []

    def work(seed: int) -> None:
        for n in range(60):
            x = np.full(LARGE + 1000 * (n % 7), float(seed))
            y = x * 2
            if (y != 2.0 * seed).any():
                wrong.append(seed)

    threads = [threading.Thread(target=contextvars.copy_context().run, args=(work, seed)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    del threads, thread


def test_a_forked_child_allocates_elsewhere_and_writes_to_copies(arena: Arena) -> None:
    x = np.ones(LARGE)
    pid = os.fork()
    if pid == 0:
        before = in_use(arena)
        y = np.ones(LARGE)
        x += y
        os._exit(in_use(arena) - before + int(x[0] != 2.0))
    assert os.waitpid(pid, 0)[1] == 0
    assert (x == 1.0).all()
    del x


def test_contexts_are_left_in_order() -> None:
    one, two = Arena(4 * MIB, MIB), Arena(4 * MIB, MIB)
    with numpy_in(one):
        x = np.ones(LARGE)
        with numpy_in(two):
            y = np.ones(LARGE)
        z = np.ones(LARGE)
    outside = np.ones(LARGE)
    assert (in_use(one), in_use(two)) == (2, 1)
    del x, y, z, outside
    assert (in_use(one), in_use(two)) == (0, 0)
    one.close()
    two.close()


def test_only_ndarrays_are_made_writable() -> None:
    wrong: Any = [1.0]
    with pytest.raises(TypeError):
        _ndarray_memory.writable(wrong)


def test_the_debug_build_sees_a_lent_block_overwritten() -> None:
    from tests.unit.test_leases import Pair, values

    from fastplug.shm import _ndarray

    with Pair(limit_bytes=16 * MIB, first_bytes=MIB) as pair:
        born: Any = _ndarray.empty(pair.host.arena, LARGE, np.float64)
        born[:] = values(LARGE, 1)
        pair.call.keep(1, born)
        pair.host.arena.check_lent()
        pair.call.nothing()
        born[LARGE // 2 :] = 0.0
        if pair.host.arena.watches:
            with pytest.raises(LocalProtocolError, match="overwritten while it was lent to plugin"):
                pair.host.arena.check_lent()
            pair.host.arena.check_lent()  # said once
        pair.call.drop(1)
        pair.settle()
        born[:] = 5.0
        pair.call.keep(2, born)
        pair.host.arena.check_lent()
        pair.implementation.kept.clear()
        del born
        pair.assert_nothing_out()
