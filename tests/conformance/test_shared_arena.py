"""One arena of the host for several plugins: a block goes to all of them, and what one returns to the others, without a copy."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import numpy as np
import pytest
from tests.conformance.conftest import started
from tests.plugins.lender_api import Lender
from tests.plugins.lender_plugin import NumpyLender
from tests.plugins.memory import memfd_inode

import fastplug
from fastplug.errors import Closed, ConfigError

LARGE = 20_000
MIB = 1 << 20


@pytest.fixture
def arena() -> Iterator[fastplug.Arena]:
    with fastplug.Arena(limit_bytes=64 * MIB) as made:
        yield made


def test_one_block_for_three_plugins_and_from_one_to_the_other(arena: fastplug.Arena) -> None:
    with (
        started("shm", NumpyLender, arena=arena) as one,
        started("shm", NumpyLender, arena=arena) as two,
        started("shm", NumpyLender) as alone,
    ):
        first, second, third = (client.dispense(Lender) for client in (one, two, alone))

        def copies() -> list[int]:
            return [client.stats()[key] for client in (one, two, alone) for key in ("copies", "plugin_copies")]

        before = copies()
        x = arena.empty(LARGE)
        x[:] = np.arange(LARGE)
        with arena.numpy():
            y = np.sqrt(x)
        for lender in (first, second):
            assert lender.total(x[::2]) == x[::2].sum()
            assert lender.total(y) == y.sum()
            lender.keep(x)
        assert copies() == before
        assert sorted(arena.stats()["oldest_lent"]["peers"]) == ["NumpyLender"] * 2

        made = first.root(x)  # the first one's own memory
        for _ in range(3):
            assert second.total(made[1::3]) == made[1::3].sum()
        second.keep(made)
        back = second.oldest()  # the host's block comes back by reference
        assert np.shares_memory(back, x)
        assert second.kept_total() == x.sum() + made.sum()
        there = second.echo(made)  # memory of the first, lent on and come back
        assert memfd_inode(there) == memfd_inode(made)
        assert first.total(there) == made.sum()  # and home
        assert copies() == before

        assert third.total(made) == made.sum()
        assert third.total(x) == x.sum()
        assert copies() == [*before[:4], before[4] + 2, before[5]]

        one.kill()  # what it lent stays readable for whoever has it
        assert second.kept_total() == x.sum() + np.sqrt(np.arange(LARGE)).sum() * 2
        assert np.array_equal(made, np.sqrt(np.arange(LARGE)) * 2)
        second.drop()
        assert second.total(x) == x.sum()
        del made, there, back, x, y
        gc.collect()
        assert second.total(arena.empty(LARGE)[:0]) == 0.0
        assert arena.stats()["blocks_lent"] == arena.stats()["blocks_in_use"] == 0


def test_segments_that_came_later_and_clients_that_came_later(arena: fastplug.Arena) -> None:
    large = arena.empty(MIB)  # 8 MiB: a second segment, before any client
    large[:] = 2.0
    for _ in range(2):
        with started("shm", NumpyLender, arena=arena) as client:
            assert client.dispense(Lender).total(large) == 2.0 * MIB
            assert client.stats()["copies"] == 0
    blocks = arena.blocks(LARGE, count=2)
    with started("shm", NumpyLender, arena=arena) as client:
        for n in range(5):
            block = next(blocks)
            block[:] = n
            assert client.dispense(Lender).total(block) == n * LARGE
    del large, block, blocks


def test_what_an_arena_refuses(arena: fastplug.Arena) -> None:
    with pytest.raises(ConfigError, match="must be positive"):
        fastplug.Arena(limit_bytes=0)
    with pytest.raises(ConfigError, match="both given"):
        fastplug.ClientConfig(target="x", arena=arena, arena_limit_bytes=1)
    with pytest.raises(ConfigError, match=r"takes a fastplug\.Arena"):
        fastplug.ClientConfig(target="x", arena=object())
    with pytest.raises(ConfigError, match="at least 1"):
        arena.blocks(5, count=0)
    with pytest.raises(TypeError, match="memory of one process"):
        arena.__reduce__()
    assert "at most 67108864 bytes" in repr(arena)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            arena.empty(5)
        except Closed:
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    arena.close()
    with pytest.raises(Closed):
        arena.empty(5)
    with pytest.raises(Closed), started("shm", NumpyLender, arena=arena):
        pass
    assert "closed" in repr(arena)
