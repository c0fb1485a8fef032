"""Each fuzz target, for a few rounds of a fixed seed; `make fuzz` runs them for long, from new seeds."""

from __future__ import annotations

import pytest
from tests.fuzz import campaign

# Some seconds for all of them: a round takes from microseconds to some milliseconds.
ROUNDS = 300


@pytest.mark.parametrize("target", campaign.TARGETS)
def test_the_invariant_holds(target: str) -> None:
    assert campaign.run(target, seed=1, rounds=ROUNDS) == ROUNDS
