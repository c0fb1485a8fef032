"""Ratios and marks. Pure: takes the rounds of a result, gives the figures that it is judged by.

A ratio is made within one round, where both sides met the same machine, and then the median over the rounds is taken.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

__all__ = ["MARKS", "STATISTICS", "marks", "medians", "ratios"]

STATISTICS = ("p50_ns", "p90_ns", "p99_ns", "p99.9_ns", "mean_ns")
Round = dict[str, Any]  # {"cells": {cell: {peer: samples}}, "load_before": ..., "load_after": ...}

# What a 64 B echo is divided by, or divides.
RIVALS = ("unix_socket", "pipe", "zmq", "grpcio", "c_unix_socket", "c_pingpong")


def medians(rounds: list[Round]) -> dict[str, Any]:
    """Cell -> peer -> statistic -> median over the rounds."""
    out: dict[str, Any] = {}
    for cell in _names(one["cells"] for one in rounds):
        out[cell] = {}
        for peer in _names(one["cells"].get(cell, {}) for one in rounds):
            all_samples = [one["cells"][cell][peer] for one in rounds if peer in one["cells"].get(cell, {})]
            good = [samples for samples in all_samples if "error" not in samples]
            if good:
                out[cell][peer] = {name: round(statistics.median(samples[name] for samples in good), 1) for name in ("calls", *STATISTICS)}
            else:
                out[cell][peer] = {"error": all_samples[0]["error"]}
    return out


def _names(mappings: Any) -> list[str]:
    return list(dict.fromkeys(name for mapping in mappings for name in mapping))


def per_round(rounds: list[Round], figure: Callable[[Any], float]) -> dict[str, Any] | None:
    """`figure` of each round's cells and its median; None when a round lacks a side of it."""
    try:
        values = [figure(one["cells"]) for one in rounds]
    except KeyError:
        return None
    return (
        {"median": float(f"{statistics.median(values):.4g}"), "per_round": [float(f"{value:.4g}") for value in values]} if values else None
    )


def quotient(cell_a: str, peer_a: str, cell_b: str, peer_b: str, name: str) -> Callable[[Any], float]:
    return lambda cells: cells[cell_a][peer_a][name] / cells[cell_b][peer_b][name]


def difference_us(cell: str, peer_a: str, peer_b: str, name: str) -> Callable[[Any], float]:
    return lambda cells: (cells[cell][peer_a][name] - cells[cell][peer_b][name]) / 1e3


def without_reads(cells: Any) -> float:
    """The call with 64 MiB to that with 8 KiB, p50, each less what its handler's three reads take in one process."""
    large, small = (
        cells[cell]["shm"]["p50_ns"] - cells[cell]["numpy_reads"]["p50_ns"] for cell in ("touch_64MiB_shared", "touch_8KiB_shared")
    )
    return float(large / small)


def ratios(situations: dict[str, list[Round]]) -> dict[str, Any]:
    """Situation -> name of the ratio -> statistic -> {median, per_round}."""
    out: dict[str, Any] = {}
    for situation, rounds in situations.items():
        pairs = {f"echo_64B: {rival} / shm": ("echo_64B", rival, "echo_64B", "shm") for rival in RIVALS}
        pairs |= {"echo_64B: shm / unix_socket": ("echo_64B", "shm", "echo_64B", "unix_socket")}
        pairs |= {"touch_64MiB_shared / touch_8KiB_shared": ("touch_64MiB_shared", "shm", "touch_8KiB_shared", "shm")}
        for size in ("64KiB", "1MiB", "16MiB", "64MiB"):
            pairs[f"touch_{size}: shm / copyto"] = (f"touch_{size}", "shm", f"touch_{size}", "copyto")
            pairs[f"touch_{size}: shm / c_memcpy"] = (f"touch_{size}", "shm", f"touch_{size}", "c_memcpy")
            pairs[f"touch_{size}: unix_socket / shm"] = (f"touch_{size}", "unix_socket", f"touch_{size}", "shm")
        found = {
            label: {name: value for name in STATISTICS if (value := per_round(rounds, quotient(*pair, name)))}
            for label, pair in pairs.items()
        }
        above = per_round(rounds, difference_us("touch_1MiB", "shm", "copyto", "p50_ns"))
        if above:
            found["touch_1MiB: shm - copyto, us"] = {"p50_ns": above}
        bare = per_round(rounds, without_reads)
        if bare:
            found["touch_64MiB_shared / touch_8KiB_shared, less the reads"] = {"p50_ns": bare}
        out[situation] = {label: figures for label, figures in found.items() if figures}
    return out


# name, where the figure is, "<=" or ">=", limit, unit
MARKS: tuple[tuple[str, tuple[str, ...], str, float, str], ...] = (
    ("64 B echo, times a Python Unix socket", ("ratios", "idle", "echo_64B: unix_socket / shm", "p50_ns", "median"), ">=", 20, "x"),
    ("64 B echo, times grpcio", ("ratios", "idle", "echo_64B: grpcio / shm", "p50_ns", "median"), ">=", 300, "x"),
    ("a CPU each: times a Python Unix socket", ("ratios", "two_cpus", "echo_64B: unix_socket / shm", "p50_ns", "median"), ">=", 20, "x"),
    ("a CPU each: times grpcio", ("ratios", "two_cpus", "echo_64B: grpcio / shm", "p50_ns", "median"), ">=", 300, "x"),
    ("one CPU: p50 to the socket's", ("ratios", "one_cpu", "echo_64B: shm / unix_socket", "p50_ns", "median"), "<=", 1.05, "x"),
    ("one CPU: mean to the socket's", ("ratios", "one_cpu", "echo_64B: shm / unix_socket", "mean_ns", "median"), "<=", 1.05, "x"),
    ("two hogs: p50 to the socket's", ("ratios", "hogs", "echo_64B: shm / unix_socket", "p50_ns", "median"), "<=", 1.05, "x"),
    ("two hogs: mean to the socket's", ("ratios", "hogs", "echo_64B: shm / unix_socket", "mean_ns", "median"), "<=", 1.05, "x"),
    (
        "array in shared memory, 64 MiB to 8 KiB",
        ("ratios", "idle", "touch_64MiB_shared / touch_8KiB_shared", "p50_ns", "median"),
        "<=",
        1.3,
        "x",
    ),
    (
        "a CPU each: 64 MiB to 8 KiB",
        ("ratios", "two_cpus", "touch_64MiB_shared / touch_8KiB_shared", "p50_ns", "median"),
        "<=",
        1.3,
        "x",
    ),
    (
        "a CPU each: 64 MiB to 8 KiB, less what the handler's reads take in one process",
        ("ratios", "two_cpus", "touch_64MiB_shared / touch_8KiB_shared, less the reads", "p50_ns", "median"),
        "<=",
        1.3,
        "x",
    ),
    ("one copy of 1 MiB above np.copyto", ("ratios", "idle", "touch_1MiB: shm - copyto, us", "p50_ns", "median"), "<=", 3, "µs"),
    ("one copy of 64 MiB to np.copyto", ("ratios", "idle", "touch_64MiB: shm / copyto", "p50_ns", "median"), "<=", 1.3, "x"),
    ("import fastplug above python -c pass", ("startup", "import_time", "above_pass", "median_ms"), "<=", 25, "ms"),
    ("open() to the first result", ("startup", "open_to_first_result", "median_ms"), "<=", 250, "ms"),
    ("kill -9 during a call to the exception", ("startup", "kill_to_exception", "during_call", "max_ms"), "<=", 50, "ms"),
)


def marks(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The figures that the project has set itself, each with its limit and whether it is met (None: not measured)."""
    out = []
    for name, path, relation, limit, unit in MARKS:
        value: Any = result
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        met = None if value is None else value >= limit if relation == ">=" else value <= limit
        out.append({"name": name, "value": value, "relation": relation, "limit": limit, "unit": unit, "met": met})
    return out
