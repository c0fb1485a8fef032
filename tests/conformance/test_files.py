"""Arrays over mapped files, and what other libraries do with received arrays: no copy where memory is shared, right values everywhere."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.conformance.conftest import started
from tests.conformance.test_threads import in_threads
from tests.plugins.arrays_api import Arrays
from tests.plugins.arrays_plugin import NumpyArrays

import fastplug

N = 50_000


@pytest.fixture(scope="module")
def client(transport: str) -> Iterator[fastplug.Client]:
    with started(transport, NumpyArrays) as client:
        yield client


@pytest.fixture(scope="module")
def arrays(client: fastplug.Client) -> Arrays:
    return client.dispense(Arrays)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    np.save(tmp_path / "data.npy", np.arange(float(N)))
    return tmp_path / "data.npy"


def test_a_mapped_file_is_read_where_it_lies(client: fastplug.Client, arrays: Arrays, transport: str, path: Path) -> None:
    sent = np.load(path, mmap_mode="r")
    for view in (sent, sent[::-3]):
        before = client.stats()
        assert arrays.total(view) == view.sum()
        after = client.stats()
        expected = 0 if transport == "shm" else 1
        assert (after["copies"] - before["copies"], after["plugin_copies"] - before["plugin_copies"]) == (expected, expected)
    assert np.array_equal(arrays.echo(sent), sent)  # a result is never named by a file: the host opens nothing for its plugin
    arrays.keep(sent)
    path.unlink()
    del sent
    gc.collect()
    assert arrays.kept()[-1] == N - 1
    arrays.drop()


def test_on_every_lane(client: fastplug.Client, arrays: Arrays, transport: str, path: Path) -> None:
    before = client.stats()

    def work(i: int) -> None:
        x = np.load(path, mmap_mode="r")
        for _ in range(20):
            assert arrays.total(x[i:]) == x[i:].sum()

    in_threads(work)
    after = client.stats()
    assert after["copies"] - before["copies"] == (0 if transport == "shm" else 8 * 20)


@pytest.mark.transports("shm")
def test_strict_zero_copy_lets_a_mapped_file_pass(transport: str, path: Path) -> None:
    with started(transport, NumpyArrays, strict_zero_copy=True) as client:
        arrays = client.dispense(Arrays)
        assert arrays.total(np.load(path, mmap_mode="r")) == N * (N - 1) / 2
        with pytest.raises(fastplug.CopyRequired):
            arrays.total(np.load(path))


@pytest.mark.transports("shm")
def test_a_file_that_is_shortened_ends_who_reads_it(transport: str, path: Path) -> None:
    with started(transport, NumpyArrays) as client:
        arrays = client.dispense(Arrays)
        arrays.keep(np.load(path, mmap_mode="r"))
        os.truncate(path, 0)
        with pytest.raises(fastplug.PluginDied, match="SIGBUS"):
            arrays.kept()


@pytest.mark.parametrize("n", [100, N])
def test_received_arrays_are_seen_by_other_libraries_where_they_lie(arrays: Arrays, n: int) -> None:
    got = arrays.born(n, 1.5)
    address = got.__array_interface__["data"][0]
    assert got.__array_interface__["data"] == (address, True)
    view = memoryview(got)
    assert view.readonly
    assert np.frombuffer(view).__array_interface__["data"][0] == address
    assert np.asarray(got) is got
    if np.lib.NumpyVersion(np.__version__) >= "2.1.0":  # where DLPack can say that memory is read-only
        other = np.from_dlpack(got)
        assert other.__array_interface__["data"][0] == address
        assert not other.flags.writeable
        assert got.__dlpack_device__() == (1, 0)


def test_what_other_libraries_see_outlives_array_and_plugin(transport: str) -> None:
    with started(transport, NumpyArrays) as client:
        got = client.dispense(Arrays).born(N, 1.5)
        seen = [memoryview(got), np.frombuffer(memoryview(got))]
        if np.lib.NumpyVersion(np.__version__) >= "2.1.0":
            seen.append(np.from_dlpack(got))
        del got
    gc.collect()
    assert [float(one[N - 1]) for one in seen] == [1.5] * len(seen)
