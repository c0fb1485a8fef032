"""The largest and the most: an array of 4 GiB, and a hundred thousand small ones that are lent at the same time."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
from tests.conformance.conftest import started
from tests.plugins.lender_api import Lender
from tests.plugins.lender_plugin import NumpyLender

pytestmark = pytest.mark.long

MACHINE_BYTES = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
HUGE = (4 << 30) // 8
MANY = 100_000


@pytest.mark.skipif(MACHINE_BYTES < 23 << 30, reason="an array of 4 GiB takes 8 GiB of memory; asked of machines with 24 GiB")
def test_four_gib() -> None:
    with started("shm", NumpyLender) as client:
        lender = client.dispense(Lender)
        x = client.empty(HUGE)
        x[:] = 0.0
        for _ in range(20):
            at = random.randrange(HUGE - 1000)
            x[at] = 3.0
            assert lender.total(x[at - at % 7 : at + 1000]) == x[at - at % 7 : at + 1000].sum()
        assert lender.echo(x)[at] == 3.0
        assert client.stats()["copies"] == client.stats()["plugin_copies"] == 0
        del x


def test_a_hundred_thousand_small_leases() -> None:
    with started("shm", NumpyLender) as client:
        lender = client.dispense(Lender)
        x = np.arange(128.0)
        for n in range(MANY):
            x[0] = n
            lender.keep(x)
        stats = client.stats()
        assert stats["lent"] == MANY
        assert stats["arena"]["oldest_lent"]["peers"] == ["NumpyLender"]
        assert lender.kept_total() == MANY * (np.arange(128.0).sum()) + MANY * (MANY - 1) / 2
        assert lender.oldest()[0] == 0.0
        lender.drop()
        lender.total(x)
        assert client.stats()["lent"] == 0
