"""One cell: one peer, one call, many times. Every answer is checked, outside the timed part."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .peers import Peer

__all__ = [
    "SIZES",
    "Plan",
    "Samples",
    "WrongAnswerError",
    "clock_overhead_ns",
    "copyto",
    "echo",
    "echo_dict",
    "reads",
    "size_name",
    "touch",
]

SIZES = (64, 8 << 10, 64 << 10, 1 << 20, 16 << 20, 64 << 20)  # bytes
ECHO_DICT = {"alpha": 1.0, "beta": 2.5, "gamma": -3.25, "delta": 1e9}
PERCENTILES = (("p50_ns", 0.50), ("p90_ns", 0.90), ("p99_ns", 0.99), ("p99.9_ns", 0.999))

Samples = dict[str, float]  # calls, p50_ns, p90_ns, p99_ns, p99.9_ns, mean_ns


class WrongAnswerError(Exception):
    """A peer answered something else than it was asked for: its figures would mean nothing."""


@dataclass(frozen=True)
class Plan:
    """How long a cell lasts: until `budget_s` or `calls_max`, but at least `calls_min` calls; before it a tenth as long for warming up."""

    budget_s: float = 0.4
    calls_min: int = 7
    calls_max: int = 20_000


def size_name(size_bytes: int) -> str:
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if size_bytes >= unit:
            return f"{size_bytes // unit}{name}"
    return f"{size_bytes}B"


def echo(peer: Peer, size_bytes: int, plan: Plan) -> Samples:
    call, payload = peer.echo, random.randbytes(size_bytes)

    def once() -> int:
        start = time.perf_counter_ns()
        reply = call(payload)
        stop = time.perf_counter_ns()
        if reply != payload:
            raise WrongAnswerError(f"{peer.name} answered {len(reply)} other bytes to an echo of {size_bytes}")
        return stop - start

    return _sample(once, plan)


def echo_dict(peer: Peer, plan: Plan) -> Samples:
    call = peer.echo_dict

    def once() -> int:
        start = time.perf_counter_ns()
        reply = call(ECHO_DICT)
        stop = time.perf_counter_ns()
        if reply != ECHO_DICT:
            raise WrongAnswerError(f"{peer.name} answered another dict: {reply}")
        return stop - start

    return _sample(once, plan)


def touch(peer: Peer, x: npt.NDArray[np.float64], plan: Plan) -> Samples:
    """Sends `x`; the answer is its shape and its values at three indices drawn for each call."""
    call, shape, uniform, count = peer.touch, x.shape, random.random, x.size

    def once() -> int:
        i, j, k = int(uniform() * count), int(uniform() * count), int(uniform() * count)
        start = time.perf_counter_ns()
        reply = call(x, i, j, k)
        stop = time.perf_counter_ns()
        if reply != (shape, x[i], x[j], x[k]):
            raise WrongAnswerError(f"{peer.name} answered {reply} for {shape} at {i}, {j}, {k}")
        return stop - start

    return _sample(once, plan)


def reads(x: npt.NDArray[np.float64], plan: Plan) -> Samples:
    """What the handler of ``touch`` does, in this process: shape and three values. In 64 MiB each of them waits for memory."""
    uniform, count = random.random, x.size

    def once() -> int:
        i, j, k = int(uniform() * count), int(uniform() * count), int(uniform() * count)
        start = time.perf_counter_ns()
        _ = x.shape, x.item(i), x.item(j), x.item(k)
        return time.perf_counter_ns() - start

    return _sample(once, plan)


def copyto(x: npt.NDArray[np.float64], plan: Plan) -> Samples:
    """numpy's own copy into memory that was touched before: what one copy costs without any call."""
    target = np.zeros_like(x)
    np.copyto(target, x)  # zeros are mapped at the first write

    def once() -> int:
        start = time.perf_counter_ns()
        np.copyto(target, x)
        return time.perf_counter_ns() - start

    return _sample(once, plan)


def clock_overhead_ns() -> float:
    """What reading the clock twice adds to every sample of this module."""
    pairs = [-(time.perf_counter_ns() - time.perf_counter_ns()) for _ in range(10_000)]
    return statistics.median(pairs)


def _sample(once: Callable[[], int], plan: Plan) -> Samples:
    _repeat(once, plan.budget_s / 10, 2, plan.calls_max)
    return summary(_repeat(once, plan.budget_s, plan.calls_min, plan.calls_max))


def _repeat(once: Callable[[], int], budget_s: float, calls_min: int, calls_max: int) -> list[int]:
    samples: list[int] = []
    end = time.perf_counter() + budget_s
    while len(samples) < calls_max and (len(samples) < calls_min or time.perf_counter() < end):
        samples.append(once())
    return samples


def summary(samples_ns: list[int]) -> Samples:
    ordered = sorted(samples_ns)
    figures: dict[str, Any] = {"calls": len(ordered), "mean_ns": round(statistics.fmean(ordered), 1)}
    figures.update({name: ordered[int(len(ordered) * part)] for name, part in PERCENTILES})
    return figures
