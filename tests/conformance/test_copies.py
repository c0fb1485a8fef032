"""What is copied, by the counters, and by what the kernel says about where an array lies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from tests.conformance.conftest import Gate, started
from tests.plugins.arrays_api import Arrays
from tests.plugins.arrays_plugin import NumpyArrays
from tests.plugins.memory import address, memfd_inode

import fastplug

pytestmark = pytest.mark.transports("shm")

N = 5000


@pytest.fixture(scope="module")
def client(transport: str) -> Iterator[fastplug.Client]:
    with started(transport, NumpyArrays) as client:
        yield client


@pytest.fixture(scope="module")
def arrays(client: fastplug.Client) -> Arrays:
    return client.dispense(Arrays)


def born(client: fastplug.Client, value: float = 1.0) -> np.ndarray[Any, np.dtype[np.float64]]:
    made = client.empty(N)
    made[:] = value
    return made


def copies(client: fastplug.Client, call: Callable[[], object]) -> tuple[int, int, int, int]:
    """Copies and copied bytes of one call: on this side, and on the plugin's."""
    keys = ("copies", "copied_bytes", "plugin_copies", "plugin_copied_bytes")
    before = client.stats()
    answer = call()
    after = client.stats()
    assert answer is not None
    return tuple(after[key] - before[key] for key in keys)  # type: ignore[return-value]


def test_an_ordinary_array_is_copied_once(client: fastplug.Client, arrays: Arrays) -> None:
    assert copies(client, lambda: arrays.total(np.ones(N))) == (1, 8 * N, 0, 0)
    assert copies(client, lambda: arrays.total(np.ones(N), weights=np.ones(N))) == (2, 16 * N, 0, 0)
    assert copies(client, lambda: arrays.total(np.ones(2 * N)[::2])) == (1, 8 * N, 0, 0)


def test_an_array_born_shared_is_not_copied(client: fastplug.Client, arrays: Arrays) -> None:
    x = born(client)
    assert copies(client, lambda: arrays.total(x)) == (0, 0, 0, 0)
    assert copies(client, lambda: arrays.total(x[::-1])) == (0, 0, 0, 0)
    assert copies(client, lambda: arrays.total(x[10:4000:3])) == (0, 0, 0, 0)
    assert copies(client, lambda: arrays.items(x.reshape(50, 100).T)) == (0, 0, 0, 0)


def test_a_result_is_copied_once_or_not_at_all(client: fastplug.Client, arrays: Arrays) -> None:
    assert copies(client, lambda: arrays.made(N, 1.0)) == (0, 0, 1, 8 * N)
    assert copies(client, lambda: arrays.born(N, 1.0)) == (0, 0, 0, 0)
    assert copies(client, lambda: arrays.born_part(N)) == (0, 0, 0, 0)


def test_what_the_host_sent_comes_back_without_a_copy(client: fastplug.Client, arrays: Arrays) -> None:
    x = born(client)
    assert copies(client, lambda: arrays.echo(x)) == (0, 0, 0, 0)
    assert copies(client, lambda: arrays.view(x, 10, 4000, 7)) == (0, 0, 0, 0)
    assert copies(client, lambda: arrays.twice(x)) == (0, 0, 0, 0)
    assert copies(client, lambda: arrays.echo(np.ones(N))) == (1, 8 * N, 0, 0)
    assert address(arrays.echo(x)) == address(x)
    assert address(arrays.view(x, 10, 4000, 7)) == address(x[10:])


def test_a_received_array_goes_back_without_a_copy(client: fastplug.Client, arrays: Arrays) -> None:
    x = arrays.born(N, 2.0)
    assert copies(client, lambda: arrays.total(x)) == (0, 0, 0, 0)
    assert copies(client, lambda: arrays.echo(x)) == (0, 0, 0, 0)
    assert copies(client, lambda: arrays.total(x[::2])) == (0, 0, 0, 0)


def test_small_arrays_travel_inside_the_message(client: fastplug.Client, arrays: Arrays) -> None:
    small = np.ones(127)
    assert copies(client, lambda: arrays.total(small)) == (1, 1016, 1, 1016)  # into the message, and out of it
    assert memfd_inode(client.empty(127)) == 0
    assert arrays.seen(small).inode == 0
    assert arrays.seen(np.ones(128)).inode != 0


def test_the_handler_reads_the_hosts_memory(client: fastplug.Client, arrays: Arrays) -> None:
    x = born(client)
    inode = memfd_inode(x)
    assert inode != 0
    seen = arrays.seen(x)
    assert seen.pid == client.pid
    assert seen.inode == inode
    assert (seen.strides, seen.c_contiguous) == (x.strides, True)
    assert arrays.seen(x[::-2]).strides == (-16,)


def test_the_host_reads_the_handlers_memory(arrays: Arrays) -> None:
    x = arrays.born(N, 2.0)
    inode = memfd_inode(x)
    assert inode != 0
    assert arrays.seen(x).inode == inode


def test_what_the_owner_writes_after_the_call_is_seen_by_who_kept_the_array(client: fastplug.Client, arrays: Arrays) -> None:
    """Legal only for who knows that the plugin kept it: design, "a lent block must not be overwritten while lent"."""
    x = born(client)
    arrays.keep(x)
    x[:] = 7.0
    assert np.array_equal(arrays.kept(), np.full(N, 7.0))
    arrays.drop()


def test_an_ordinary_array_may_be_overwritten_at_once(arrays: Arrays) -> None:
    x = np.ones(N)
    arrays.keep(x)
    x[:] = 7.0
    assert np.array_equal(arrays.kept(), np.ones(N))
    arrays.drop()


def test_strict_zero_copy_refuses_what_would_be_copied(start: Callable[..., fastplug.Client]) -> None:
    client = start(NumpyArrays, strict_zero_copy=True)
    arrays = client.dispense(Arrays)
    with pytest.raises(fastplug.CopyRequired, match=r"client\.empty"):
        arrays.total(np.ones(N))
    with pytest.raises(fastplug.CopyRequired):
        arrays.total(born(client), weights=np.ones(N))
    assert client.stats()["plugin_calls"] == 0
    assert client.stats()["lent"] == 0
    assert arrays.total(np.ones(127)) == 127.0
    assert arrays.total(born(client)) == N
    assert arrays.total(arrays.born(N, 2.0)) == 2.0 * N
    assert np.array_equal(arrays.made(N, 1.0), np.ones(N))  # the plugin's own copy is the plugin's business


@pytest.mark.transports("socket", "grpc", "inproc")
def test_strict_zero_copy_without_shared_memory_refuses_every_array(start: Callable[..., fastplug.Client]) -> None:
    client = start(NumpyArrays, strict_zero_copy=True)
    arrays = client.dispense(Arrays)
    with pytest.raises(fastplug.CopyRequired):
        arrays.total(client.empty(N))
    assert arrays.total(np.ones(127)) == 127.0


def test_blocks_come_again_when_nobody_has_them(client: fastplug.Client, arrays: Arrays) -> None:
    ring = client.blocks((N,), np.float64, count=2)
    first, second, third, fourth = (next(ring) for _ in range(4))
    assert third is first
    assert fourth is second
    assert address(first) != address(second)
    for i in range(20):
        block = next(ring)
        block[:] = i
        assert arrays.total(block) == i * N


def test_blocks_wait_for_a_reader_and_then_name_it(client: fastplug.Client, arrays: Arrays) -> None:
    ring = client.blocks(N, count=1, timeout_s=0.05)
    block = next(ring)
    block[:] = 1.0
    arrays.keep(block)
    with pytest.raises(fastplug.ArenaExhausted, match=r"all 1 blocks are lent.*NumpyArrays.*count="):
        next(ring)
    arrays.drop()
    assert next(client.blocks(N, count=1)) is not None


def test_blocks_go_on_when_the_reader_lets_go(client: fastplug.Client, arrays: Arrays, gate: Gate) -> None:
    import threading

    block = client.empty(N)
    block[:] = 1.0
    ring = client.blocks(N, count=1)
    lent = next(ring)
    lent[:] = 2.0
    totals: list[float] = []
    caller = threading.Thread(target=lambda: totals.append(arrays.held(lent, gate.path)))
    caller.start()
    gate.wait_entered()
    gate.open()
    again = next(ring)  # waits for the handler's end
    assert again is lent
    caller.join()
    assert totals == [2.0 * N]


def test_memory_that_was_used_is_used_again(client: fastplug.Client, arrays: Arrays) -> None:
    arrays.total(np.ones(N))
    before = client.stats()["arena"]
    for _ in range(300):
        arrays.total(np.ones(N))
        arrays.echo(born(client))
        arrays.born(N, 1.0)
    after = client.stats()
    assert after["arena"]["segments"] == before["segments"]
    assert after["arena"]["blocks"] <= before["blocks"] + 4
    assert after["lent"] == 0


def test_a_full_arena_names_who_has_it(start: Callable[..., fastplug.Client]) -> None:
    client = start(NumpyArrays, arena_limit_bytes=8 << 20)
    arrays = client.dispense(Arrays)
    with pytest.raises(fastplug.ArenaExhausted, match="arena_limit_bytes") as caught:
        arrays.total(np.ones(2 << 20))
    assert isinstance(caught.value, MemoryError)
    arrays.keep(np.ones(700_000))
    with pytest.raises(fastplug.ArenaExhausted, match=r"oldest: .*NumpyArrays"):
        arrays.total(np.ones(700_000))
    arrays.drop()
    assert arrays.total(np.ones(700_000)) == 700_000.0
