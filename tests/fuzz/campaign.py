"""Runs fuzz targets: python -m tests.fuzz.campaign [TARGET...] --seconds N --seed S

A target is a module ``fuzz_NAME`` of this folder. It opens with its invariant and has ``CHECKS``: functions that take a random.Random and
raise when the invariant is broken. A failure prints check, seed and round, which are enough to see it again.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import logging
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = ["TARGETS", "checks_of", "run"]

TARGETS = sorted(path.stem.removeprefix("fuzz_") for path in Path(__file__).parent.glob("fuzz_*.py"))

Check = Callable[[random.Random], None]


def checks_of(target: str) -> Sequence[Check]:
    """What a target checks, in the order in which it is done again and again."""
    checks: Sequence[Check] = importlib.import_module(f"tests.fuzz.fuzz_{target}").CHECKS
    return checks


def run(target: str, seed: int, *, rounds: int | None = None, seconds: float | None = None) -> int:
    """Each check in turn until one of the two bounds; how many rounds that were. A round depends on its number and the seed alone."""
    until = time.monotonic() + seconds if seconds is not None else float("inf")
    checks = itertools.cycle(checks_of(target))
    for done in itertools.count():
        if done == rounds or time.monotonic() >= until:
            return done
        check = next(checks)
        try:
            check(random.Random(f"{seed}/{done}"))
        except BaseException:
            print(f"fuzz_{target} failed: {check.__name__}, seed {seed}, round {done}")
            raise
    raise AssertionError("unreachable")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="*", help=f"of {', '.join(TARGETS)}; all by default")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each target (10)")
    parser.add_argument("--seed", type=int, help="a new one by default")
    options = parser.parse_args()
    if unknown := set(options.target) - set(TARGETS):
        parser.error(f"there is no target {', '.join(sorted(unknown))}; choose from {', '.join(TARGETS)}")
    logging.disable(logging.CRITICAL)
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    for target in options.target or TARGETS:
        rounds = run(target, seed, seconds=options.seconds)
        print(f"fuzz_{target}: {rounds} rounds in {options.seconds:g} s, seed {seed}, no violation", flush=True)


if __name__ == "__main__":
    main()
