"""A plugin that has no descriptor left for the memory that it is sent: the call is answered, and the next ones are fast again."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np
import pytest
from tests.conformance.conftest import started
from tests.plugins.lender_api import Lender
from tests.plugins.lender_plugin import NumpyLender

# A watchdog for a line that has been written.
SAID_WITHIN_S = 60.0

SIZE = 1_000_000  # 8 MB: more than the first segment has


def await_record(caplog: pytest.LogCaptureFixture, text: str) -> None:
    """What the plugin logs comes by a pipe of its own, also behind the answer of a call."""
    said_by = time.monotonic() + SAID_WITHIN_S
    while text not in caplog.text:
        assert time.monotonic() < said_by
        time.sleep(0.01)


def test_arrays_are_copied_while_the_limit_holds(caplog: pytest.LogCaptureFixture) -> None:
    with started("shm", NumpyLender) as client, caplog.at_level(logging.WARNING):
        lender = client.dispense(Lender)
        lender.total(np.ones(1))  # its modules are loaded now, which takes descriptors
        lender.limit_descriptors(True)
        x = client.empty(SIZE)
        x[:] = np.arange(SIZE)
        before = client.stats()
        assert lender.total(x) == x.sum()
        assert lender.total(x[::-2]) == x[::-2].sum()
        back = lender.echo(x)
        assert np.array_equal(back, x)
        assert np.shares_memory(back, x)
        after = client.stats()
        assert after["plugin_copies"] - before["plugin_copies"] == 3
        assert after["copies"] == before["copies"]
        await_record(caplog, "RLIMIT_NOFILE")

        lender.limit_descriptors(False)
        assert lender.total(x) == x.sum()  # fetched once more, and then announced again
        for _ in range(100):
            client.ping()
            before = client.stats()
            assert lender.total(x) == x.sum()
            if client.stats()["plugin_copies"] == before["plugin_copies"]:
                break
        else:
            pytest.fail("the segment was not mapped again")
        del back


def test_a_mapped_file_that_cannot_be_opened_is_copied(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", np.arange(50_000.0))
    np.save(tmp_path / "other.npy", np.arange(50_000.0))
    with started("shm", NumpyLender) as client, caplog.at_level(logging.WARNING):
        lender = client.dispense(Lender)
        lender.total(np.load(tmp_path / "data.npy", mmap_mode="r")[:100])  # its modules are loaded now, which takes descriptors

        def counted(name: str) -> tuple[int, int]:
            x = np.load(tmp_path / name, mmap_mode="r")
            before = client.stats()
            assert lender.total(x[::-3]) == x[::-3].sum()
            after = client.stats()
            return after["copies"] - before["copies"], after["plugin_copies"] - before["plugin_copies"]

        lender.limit_descriptors(True)
        assert counted("data.npy") == (0, 1)  # named, not opened, and fetched
        await_record(caplog, "data.npy")
        client.ping()  # what the plugin said of it has come
        assert counted("data.npy") == (1, 0)
        lender.limit_descriptors(False)
        assert counted("other.npy") == (0, 0)
