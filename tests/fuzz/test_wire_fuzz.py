"""fuzz_wire as a test: a few thousand payloads from a fixed seed, and many from a new one in `make fuzz`."""

from __future__ import annotations

import random

import hypothesis
from tests.fuzz.fuzz_wire import fuzz

TRIES_AN_EXAMPLE = 50  # one of these costs a fiftieth of an example of hypothesis


def test_any_payload_is_a_value_or_an_error_of_the_tree() -> None:
    profile = hypothesis.settings.default
    assert profile is not None
    seed = 1 if profile.derandomize else random.SystemRandom().randrange(2**32)
    rounds = profile.max_examples * TRIES_AN_EXAMPLE
    assert fuzz(seed, rounds=rounds) == rounds, f"seed {seed}"
