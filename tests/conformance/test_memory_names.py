"""Ordinary numpy in handlers and on the host, writable and private arrays: what these names mean over each transport, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conformance.conftest import started
from tests.plugins.lender_api import Floats, Lender
from tests.plugins.lender_plugin import NumpyLender
from tests.plugins.memory import memfd_inode

import fastplug

LARGE = 20_000  # 160 KB: more than what numpy keeps to itself


@pytest.fixture(scope="module")
def client(transport: str) -> Iterator[fastplug.Client]:
    with started(transport, NumpyLender) as client:
        yield client


@pytest.fixture(scope="module")
def lender(client: fastplug.Client) -> Lender:
    return client.dispense(Lender)


def copies(client: fastplug.Client, transport: str) -> tuple[int, int]:
    """Of the host and of the plugin, where these are copies that shared memory would not need."""
    stats = client.stats()
    return (stats["copies"], stats["plugin_copies"]) if transport == "shm" else (0, 0)


def test_what_a_handler_computes_is_not_copied(client: fastplug.Client, lender: Lender, transport: str) -> None:
    x = client.empty(LARGE)
    x[:] = np.arange(LARGE)
    before = copies(client, transport)
    for _ in range(3):
        assert np.array_equal(lender.root(x), np.sqrt(x) * 2)
    assert copies(client, transport) == before
    del x


@pytest.mark.parametrize("how", ["full", "zeros", "calloc", "view", "reshaped", "resized", "sorted", "concatenated"])
def test_however_numpy_makes_it(client: fastplug.Client, lender: Lender, transport: str, how: str) -> None:
    before = copies(client, transport)
    got = lender.made(LARGE, how)
    assert np.array_equal(got, np.zeros(LARGE) if how == "calloc" else np.ones(LARGE))
    assert copies(client, transport) == before
    assert np.array_equal(lender.made(LARGE, "fromiter"), np.ones(LARGE))  # grown by numpy from a small one: it may be copied


def test_in_containers_too(client: fastplug.Client, lender: Lender, transport: str) -> None:
    before = copies(client, transport)
    one, two, pair = lender.several(LARGE)
    assert [array[5] for array in (*one, *two.values(), pair.one, pair.other)] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert copies(client, transport) == before


def test_what_a_handler_keeps_and_changes_does_not_change_what_it_returned(lender: Lender) -> None:
    ones = np.ones(LARGE)
    first = lender.add(ones)
    second = lender.add(ones)
    third = lender.add(ones)
    assert [array[LARGE - 1] for array in (first, second, third)] == [2.0, 3.0, 4.0]


def test_numpy_of_the_host_in_an_arena(client: fastplug.Client, lender: Lender, transport: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(float(LARGE)))
    before = copies(client, transport)
    with client.arena():
        x: Floats = np.load(tmp_path / "x.npy")
        y = np.sqrt(x)
    z = np.sqrt(x)
    assert lender.total(x) == x.sum()
    assert lender.total(y[::2]) == y[::2].sum()
    assert copies(client, transport) == before
    assert lender.total(z) == z.sum()
    assert copies(client, transport)[0] == before[0] + (transport == "shm")
    assert bool(memfd_inode(x)) == bool(memfd_inode(y)) == (transport == "shm")
    assert not memfd_inode(z)
    x[0] = 5.0
    assert lender.total(x) == x.sum()
    y.resize(2 * LARGE, refcheck=False)
    assert lender.total(y) == y.sum()
    del x, y


def test_writable(client: fastplug.Client, lender: Lender, transport: str) -> None:
    got = lender.made(LARGE, "full")
    for array in (got, got[::2], got[::-3], got.reshape(-1, 100).T, got[:100]):
        own = fastplug.writable(array)
        assert own.shape == array.shape
        assert np.array_equal(own, array)
        own[..., 0] = 9.0
        assert got.sum() == LARGE
        assert own.sum() > array.sum()
    with pytest.raises(ValueError, match="read-only"):
        got[0] = 1.0
    mine = np.ones(3)
    fastplug.writable(mine)[0] = 2.0
    assert mine[0] == 1.0
    many = np.broadcast_to(got[:1], (3, LARGE))
    fastplug.writable(many)[0, 0] = 2.0
    x = client.empty(LARGE)
    x[:] = 1.0
    assert lender.change(x)[0] == -1.0
    assert x[0] == 1.0
    del own, array, many, x


def test_a_writable_array_outlives_the_plugin(transport: str) -> None:
    with started(transport, NumpyLender) as client:
        own = fastplug.writable(client.dispense(Lender).made(LARGE, "full"))
    own[5] = 2.0
    assert own.sum() == LARGE + 1
    del own


def test_private(lender: Lender) -> None:
    got = lender.made(LARGE, "full")
    own = fastplug.private(got)
    own[0] = 3.0
    assert got[0] == 1.0
    assert not memfd_inode(own)
    assert fastplug.private(np.asfortranarray(np.ones((3, 4)))).flags.f_contiguous


@pytest.mark.parametrize("order", ["C", "F"])
def test_empty_like(lender: Lender, order: Any) -> None:
    got = lender.like(np.ones((100, 200), order=order)[:, ::1])
    assert got.shape == (100, 200)
    assert got.flags.f_contiguous == (order == "F")
    assert (got == 5.0).all()
    made = fastplug.empty_like(np.ones((3, 2), order=order), dtype="int8")
    assert made.dtype == np.int8
    assert made.flags.f_contiguous == (order == "F")


def test_a_child_that_a_handler_forks_writes_to_nothing_of_its_parent(lender: Lender, transport: str) -> None:
    if transport in ("grpc", "inproc"):
        pytest.skip("a handler there runs beside threads that must not be forked")
    got = lender.fork(LARGE)
    assert np.array_equal(got, np.ones(LARGE))
    assert np.array_equal(lender.made(LARGE, "full"), np.ones(LARGE))


def test_everything_is_given_back(client: fastplug.Client, lender: Lender, transport: str) -> None:
    for how in ("full", "view", "resized"):
        lender.made(LARGE, how)
    if transport == "shm":
        lender.total(np.ones(1))
        assert lender.numpy_blocks() <= 1  # the sum that it keeps
        stats = client.stats()
        assert stats["borrowed"]["leases"] == 0
        assert stats["arena"]["blocks_in_use"] == 0
        assert stats["arena"]["oldest_lent"] is None
