"""A ring of arrays that are given out again and again, each only while no reader has it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from fastplug.errors import ArenaExhausted

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["ring"]

# A reader gives a block back without a system call, so this side looks: soon at first, then once a millisecond.
FIRST_WAIT_S = 20e-6
LONGEST_WAIT_S = 1e-3


def ring(arrays: Sequence[npt.NDArray[Any]], timeout_s: float, drain: Callable[[], None]) -> Iterator[npt.NDArray[Any]]:
    """Yields the arrays in turn, for ever; waits while the next one is lent.

    Args:
        arrays: made with ``empty``.
        timeout_s: longest wait for one array.
        drain: called while waiting; drops late replies, whose arrays would otherwise stay lent.

    Raises:
        ArenaExhausted: the next array was not given back in time; names who holds it.
    """
    from fastplug.shm._ndarray import borrowers_of, readers_of

    while True:
        for array in arrays:
            until, wait_s = time.monotonic() + timeout_s, FIRST_WAIT_S
            while readers_of(array):
                drain()
                if time.monotonic() >= until:
                    holders = ", ".join(borrowers_of(array)) or "an array of this process"
                    raise ArenaExhausted(
                        f"all {len(arrays)} blocks are lent, and the next one was not given back within {timeout_s:g} s: "
                        f"{holders} holds it. "
                        "Let the reader drop its arrays, or ask for more blocks (count=)."
                    )
                time.sleep(wait_s)
                wait_s = min(wait_s * 2, LONGEST_WAIT_S)
            yield array
