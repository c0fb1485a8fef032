"""The checks of the fuzz target, with cases that hypothesis can make smaller."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fuzz.campaign import Check
from tests.fuzz.fuzz_yamux import CHECKS

# An example is hundreds of steps; `make fuzz` makes as many as it is told to.
EXAMPLES = 15


@pytest.mark.parametrize("check", CHECKS)
def test_the_invariant_holds(check: Check) -> None:
    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
    @given(st.randoms(use_true_random=False))
    def holds(rng: random.Random) -> None:
        check(rng)

    holds()
