"""What memory costs: ``python -m benchmarks.memory``. In each round every cell has its turn: both sides of a ratio meet one machine.

Writes benchmarks/results/memory.json. The cells of 4 GiB need 24 GiB of memory and are left out elsewhere, with that as their reason.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import fastplug

from . import machine
from .keeper import Keeper
from .measure import Plan, Samples, WrongAnswerError, _sample, copyto, size_name
from .peers.ours import plugin_environment

__all__ = ["MARKS", "main"]

MIB = 1 << 20
HUGE_BYTES = 4096 * MIB
HUGE_MACHINE_BYTES = 23 * 1024 * MIB
LARGE = 64 * MIB // 8

Cell = tuple[str, Callable[[], Samples]]

# figure: cells that it is made of, how, its limit, its unit
MARKS: tuple[tuple[str, str, str, str, float], ...] = (
    ("64 MiB in shared memory, to 8 KiB", "touch_64MiB_shared", "/", "touch_8KiB_shared", 1.2),
    ("4 GiB in shared memory, to 8 KiB", "touch_4GiB_shared", "/", "touch_8KiB_shared", 1.5),
    ("one copy of 1 MiB, above np.copyto, us", "touch_1MiB", "-", "copyto_1MiB", 2.0),
    ("one copy of 64 MiB, to np.copyto", "touch_64MiB", "/", "copyto_64MiB", 1.1),
    ("return np.sqrt(x) * 2 of 64 MiB, to numpy in one process", "root_64MiB", "/", "root_64MiB_numpy", 1.1),
    ("one element of a received 64 MiB array changed, us", "writable_64MiB", "", "", 10.0),
    ("64 MiB filled and sent in recycled memory, to np.empty and fill", "fill_and_send_64MiB", "/", "empty_and_fill_64MiB", 1.0),
)


def timed(body: Callable[[], Any], right: Callable[[Any], bool], plan: Plan) -> Samples:
    """``body`` is timed, and what it returns is checked outside."""

    def once() -> int:
        start = time.perf_counter_ns()
        found = body()
        stop = time.perf_counter_ns()
        if not right(found):
            raise WrongAnswerError(f"a wrong answer: {found!r}"[:200])
        return stop - start

    return _sample(once, plan)


def touch(keeper: Keeper, x: Any, plan: Plan) -> Samples:
    draw = random.random

    def once() -> int:
        i = int(draw() * x.size)
        start = time.perf_counter_ns()
        found = keeper.touch(x, i)
        stop = time.perf_counter_ns()
        if found != (x.size, x[i]):
            raise WrongAnswerError(f"{found} for element {i}")
        return stop - start

    return _sample(once, plan)


def fill_and_send(client: fastplug.Client, keeper: Keeper, plan: Plan) -> Samples:
    blocks = client.blocks(LARGE, count=2)

    def once() -> int:
        value = random.random()
        start = time.perf_counter_ns()
        block = next(blocks)
        block.fill(value)
        found = keeper.touch(block, 5)
        stop = time.perf_counter_ns()
        if found != (LARGE, value):
            raise WrongAnswerError(f"{found} for {value}")
        return stop - start

    return _sample(once, plan)


def empty_and_fill() -> Any:
    x = np.empty(LARGE)
    x.fill(3.0)
    return x[5]


def change_one(received: Any) -> Any:
    own = fastplug.writable(received)
    own[LARGE // 2] = -1.0
    return own


def cells(client: fastplug.Client, keeper: Keeper, arrays: dict[str, Any], plan: Plan) -> Iterator[Cell]:
    for name, array in arrays.items():
        yield f"touch_{name}", lambda array=array: touch(keeper, array, plan)  # type: ignore[misc]
        if not name.endswith("shared"):
            yield f"copyto_{name}", lambda array=array: copyto(array, plan)  # type: ignore[misc]
    x = arrays["64MiB_shared"]
    ordinary = arrays["64MiB"]
    yield "root_64MiB", lambda: timed(lambda: keeper.root(x), lambda got: bool(got[9] == np.sqrt(x[9]) * 2), plan)
    yield "root_64MiB_numpy", lambda: timed(lambda: np.sqrt(ordinary) * 2, lambda got: bool(got[9] == np.sqrt(ordinary[9]) * 2), plan)
    received = keeper.root(x)
    yield (
        "writable_64MiB",
        lambda: timed(lambda: change_one(received), lambda own: bool(own[LARGE // 2] == -1.0 != received[LARGE // 2]), plan),
    )
    yield "fill_and_send_64MiB", lambda: fill_and_send(client, keeper, plan)
    yield "empty_and_fill_64MiB", lambda: timed(empty_and_fill, lambda value: bool(value == 3.0), plan)


def arrays_for(client: fastplug.Client, huge: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for size in (8 << 10, MIB, 64 * MIB):
        found[size_name(size)] = np.random.default_rng(size).random(size // 8)
        found[f"{size_name(size)}_shared"] = client.empty(size // 8)
        found[f"{size_name(size)}_shared"][:] = found[size_name(size)]
    if huge:
        found["4GiB_shared"] = client.empty(HUGE_BYTES // 8)
        found["4GiB_shared"][:] = 1.0
    return found


def judged(rounds: list[dict[str, Samples]]) -> list[dict[str, Any]]:
    """Each mark, of p50: made within a round, where both sides met the same machine, then the median over the rounds."""
    out = []
    for name, cell, how, other, limit in MARKS:
        value = None
        if cell in rounds[0] and (not how or other in rounds[0]):
            pairs = [(one[cell]["p50_ns"], one[other]["p50_ns"] if how else 0.0) for one in rounds]
            value = round(statistics.median(mine / theirs if how == "/" else (mine - theirs) / 1e3 for mine, theirs in pairs), 3)
        out.append({"name": name, "value": value, "limit": limit, "met": None if value is None else value <= limit})
    return out


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="per cell and round (default: %(default)s)")
    parser.add_argument("--no-huge", action="store_true", help="without the cells of 4 GiB")
    parser.add_argument("--no-save", action="store_true", help="prints only")
    options = parser.parse_args(argv)
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    huge = not options.no_huge and memory_bytes >= HUGE_MACHINE_BYTES
    if not huge:
        print("without 4 GiB: it takes 8 GiB of memory on a machine with 24", file=sys.stderr)
    rounds: list[dict[str, Samples]] = []
    target = [sys.executable, "-m", "benchmarks.keeper"]
    with fastplug.start(target, env=plugin_environment(), transport="shm") as client:
        keeper, plan = client.dispense(Keeper), Plan(budget_s=options.seconds)
        arrays = arrays_for(client, huge)
        for number in range(options.rounds):
            rounds.append({name: run() for name, run in cells(client, keeper, arrays, plan)})
            print(f"round {number + 1}: " + ", ".join(f"{name} {one['p50_ns'] / 1e3:.2f}" for name, one in rounds[-1].items()), flush=True)
        arrays.clear()
    keys = rounds[0][next(iter(rounds[0]))]
    medians = {cell: {key: statistics.median(one[cell][key] for one in rounds) for key in keys} for cell in rounds[0]}
    marks = judged(rounds)
    for mark in marks:
        print(
            f"{ {True: 'met', False: 'MISSED', None: 'not measured'}[mark['met']]:12} {mark['name']}: {mark['value']} (<= {mark['limit']})"
        )
    if not options.no_save:
        path = machine.ROOT / "benchmarks" / "results" / "memory.json"
        result = {"name": "memory", **machine.describe(), "rounds": rounds, "median": medians, "marks": marks}
        path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
