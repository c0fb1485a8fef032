"""The caller's deadline: a context variable that every protocol reads. The smallest of nested ones wins; without one there is none."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from contextvars import ContextVar

from fastplug.errors import ConfigError

__all__ = ["UNTIL_NS", "deadline", "remaining_s"]

# CLOCK_MONOTONIC in nanoseconds; None without a deadline. Compiled callers read the variable itself (a cached look-up, about 15 ns).
UNTIL_NS: ContextVar[int | None] = ContextVar("fastplug.deadlines", default=None)


@contextlib.contextmanager
def deadline(*, after_s: float) -> Iterator[None]:
    """Bounds every fastplug call in the block: one that has no answer ``after_s`` seconds from now raises DeadlineExceeded.

    Args:
        after_s: seconds from entering the block, for all calls in it together; 0 or less is already over.

    It holds in the current thread or asyncio task. A call's late answer is dropped, and the handle stays usable.

    Raises:
        ConfigError: ``after_s`` is no finite number.
    """
    if not math.isfinite(after_s):
        raise ConfigError(f"deadline(after_s=...) takes a finite number of seconds, got {after_s!r}")
    until_ns = time.monotonic_ns() + int(after_s * 1e9)
    outer = UNTIL_NS.get()
    token = UNTIL_NS.set(until_ns if outer is None else min(outer, until_ns))
    try:
        yield
    finally:
        UNTIL_NS.reset(token)


def remaining_s() -> float | None:
    """Seconds until the current deadline (negative when it is over); None without one."""
    until_ns = UNTIL_NS.get()
    return None if until_ns is None else (until_ns - time.monotonic_ns()) / 1e9
