"""The interleaved runner: ``python -m benchmarks.run``.

In each round every peer is measured in turn, cell by cell, so that both sides of a ratio meet the same machine. Writes
benchmarks/results/<name>.json and its plots; the progress goes to stderr. benchmarks/README.md says what each figure means.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from . import floor, machine, measure, ratios, startup
from .measure import Plan, Samples
from .peers import MODULES, Peer, load
from .situations import SITUATIONS, Situation, hogs, pin

__all__ = ["main"]

RESULTS = machine.ROOT / "benchmarks" / "results"
SMALL_SIZES = (8 << 10, 1 << 20)  # of the situations that do not run every cell
FLOOR_CALLS = 20_000
FLOOR_CALLS_HOGS = 500  # each may wait for a time slice

Cell = tuple[str, str, Callable[[], Samples]]  # cell, peer, measurement


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def started(names: list[str], situation: Situation, notes: dict[str, str]) -> Iterator[list[Peer]]:
    """The peers that can be started here, pinned as the situation wants it; all of them are stopped in the end."""
    peers: list[Peer] = []
    try:
        if situation.pinned == 1:
            pin([], situation)  # what shares one CPU is born there: a process looks at its CPUs when it starts
        for name in names:
            try:
                peer = load(name)
            except ImportError as error:
                notes[name] = f"not installed: {error}"
                continue
            peers.append(peer)
            peer.start()
        pin(peers, situation)
        yield peers
    finally:
        for peer in peers:
            peer.stop()
        pin([], SITUATIONS[0])


def cells(peers: list[Peer], situation: Situation, plan: Plan, sizes: tuple[int, ...]) -> Iterator[Cell]:
    """Every measurement of one round, the peers in turn within each cell."""
    cpus = situation.cpus()
    calls = FLOOR_CALLS_HOGS if situation.hogs else FLOOR_CALLS
    for peer in peers:
        yield "echo_64B", peer.name, lambda peer=peer: measure.echo(peer, 64, plan)  # type: ignore[misc]
    yield "echo_64B", "c_pingpong", lambda: floor.measure_pingpong(calls, calls // 10, cpus)
    yield "echo_64B", "c_unix_socket", lambda: floor.measure_unix_socket(64, calls // 4, calls // 40, cpus)
    for peer in peers if situation.every_cell else []:
        yield "echo_dict", peer.name, lambda peer=peer: measure.echo_dict(peer, plan)  # type: ignore[misc]
    for size in sizes:
        x = np.random.default_rng(size).standard_normal(size // 8)
        name = f"touch_{measure.size_name(size)}"
        for peer in peers:
            yield name, peer.name, lambda peer=peer, x=x: measure.touch(peer, x, plan)  # type: ignore[misc]
        yield name, "copyto", lambda x=x: measure.copyto(x, plan)  # type: ignore[misc]
        yield name, "c_memcpy", lambda size=size: floor.measure_memcpy([size], cpus[0])[-1]  # type: ignore[misc]
        yield f"{name}_shared", "numpy_reads", lambda x=x: measure.reads(x, plan)  # type: ignore[misc]
        for peer in peers:
            shared = peer.born(x.size)
            if shared is not None:
                shared[:] = x
                yield f"{name}_shared", peer.name, lambda peer=peer, shared=shared: measure.touch(peer, shared, plan)  # type: ignore[misc]


def one_round(peers: list[Peer], situation: Situation, plan: Plan, sizes: tuple[int, ...]) -> ratios.Round:
    before = machine.load()
    table: dict[str, dict[str, Any]] = {}
    for cell, peer, run in cells(peers, situation, plan, sizes):
        try:
            table.setdefault(cell, {})[peer] = run()
        except Exception as error:  # noqa: BLE001  one peer's failure is a row of the result, not the end of the others
            table[cell][peer] = {"error": f"{type(error).__name__}: {error}"}
            say(f"    {cell} {peer}: {table[cell][peer]['error']}")
    return {"load_before": before, "load_after": machine.load(), "cells": table}


def run_situation(situation: Situation, names: list[str], rounds: int, scale: float, notes: dict[str, str]) -> list[ratios.Round]:
    plan = Plan(budget_s=situation.budget_s * scale)
    sizes = measure.SIZES if situation.every_cell else SMALL_SIZES
    out = []
    with started(names, situation, notes) as peers, hogs(situation.hogs):
        for number in range(rounds):
            start = time.monotonic()
            out.append(one_round(peers, situation, plan, sizes))
            echo = out[-1]["cells"]["echo_64B"]
            p50 = ", ".join(f"{peer} {samples['p50_ns'] / 1e3:.2f}" for peer, samples in echo.items() if "error" not in samples)
            say(f"  {situation.name} {number + 1}/{rounds} ({time.monotonic() - start:.0f} s): echo_64B p50 µs: {p50}")
    return out


def run_startup() -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name in startup.__all__:
        try:
            out[name] = getattr(startup, name)()
        except Exception as error:  # noqa: BLE001  the calls' figures are worth keeping
            out[name] = {"error": f"{type(error).__name__}: {error}"}
        say(f"  {name}: {out[name]}")
    return out


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--name", default="interleaved", help="of the result in benchmarks/results (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="per situation (default: %(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, help="of the time per cell (default: %(default)s)")
    parser.add_argument("--peers", nargs="+", choices=MODULES, default=list(MODULES), help="default: all")
    parser.add_argument("--situations", nargs="*", choices=[one.name for one in SITUATIONS], default=[one.name for one in SITUATIONS])
    parser.add_argument("--no-startup", action="store_true", help="without import, open() and kill -9")
    options = parser.parse_args(argv)
    floor.compile_floor()
    result: dict[str, Any] = {"name": options.name, **machine.describe(), "clock_overhead_ns": measure.clock_overhead_ns(), "notes": {}}
    rounds = {
        one.name: run_situation(one, options.peers, options.rounds, options.scale, result["notes"])
        for one in SITUATIONS
        if one.name in options.situations
    }
    result["situations"] = {name: {"median": ratios.medians(each), "rounds": each} for name, each in rounds.items()}
    result["ratios"] = ratios.ratios(rounds)
    result["startup"] = {} if options.no_startup else run_startup()
    result["marks"] = ratios.marks(result)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{options.name}.json"
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    for mark in result["marks"]:
        verdict = {True: "met", False: "MISSED", None: "not measured"}[mark["met"]]
        say(f"  {verdict:12} {mark['name']}: {mark['value']} ({mark['relation']} {mark['limit']} {mark['unit']})")
    say(f"wrote {path}")
    from . import plots

    for plot in plots.draw(result, RESULTS):
        say(f"wrote {plot}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
