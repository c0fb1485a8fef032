"""Time for what must have happened before a deadline comes, on a machine that is as slow as it likes."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["growing_s"]

# A watchdog: what has not happened by then never will.
LIMIT_S = 60.0


def growing_s(first_s: float) -> Iterator[float]:
    """``first_s``, then twice as long each time.

    For a test whose deadline must come, but not before its call has got somewhere: it tries the next one until the call has.
    """
    after_s = first_s
    while after_s < LIMIT_S:
        yield after_s
        after_s *= 2
    raise AssertionError(f"it has not happened within {after_s / 2:g} s")
