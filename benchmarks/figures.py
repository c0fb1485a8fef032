"""Figures in README.md and the documentation come from a result in the tree: ``python -m benchmarks.figures`` writes them.

A block stands between ``<!-- figures:NAME -->`` and ``<!-- /figures -->``; what is in it is made here from RESULT. With --check
nothing is written, and the exit code tells whether every block is as it would be written and README.md has no measured figure outside one.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["BLOCKS", "documents", "load_result", "main", "rewritten", "unfounded"]

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
RESULT = RESULTS / "interleaved.json"
INTEROP = RESULTS / "interop.json"
BLOCK = re.compile(r"(<!-- figures:(?P<name>[\w-]+) -->\n)(?P<body>.*?)(<!-- /figures -->)", re.DOTALL)
FIGURE = re.compile(r"\d[\d.,]*\s?(?:µs|us|ns|GB/s|calls/s)(?![\w/])")
# What is a constant of the library, and not measured, says so in its paragraph: <!-- constant: why -->
CONSTANT = re.compile(r"<!-- constant\b")

LABELS = {
    "shm": "fastplug, shared memory",
    "socket": "fastplug, socket",
    "grpc": "fastplug, gRPC",
    "inproc": "fastplug, in-process",
    "unix_socket": "Unix socket, Python",
    "pipe": "multiprocessing.Pipe",
    "zmq": "pyzmq REQ/REP",
    "grpcio": "grpcio unary, bytes",
    "c_pingpong": "C ping-pong, same layout and wait policy",
    "c_unix_socket": "Unix socket, C",
    "copyto": "np.copyto alone",
}
SITUATION_LABELS = {"idle": "idle", "two_cpus": "a CPU each", "one_cpu": "one CPU", "hogs": "two CPU hogs"}
TOUCH_SIZES = ("8KiB", "64KiB", "1MiB", "16MiB", "64MiB")

Result = dict[str, Any]


def duration(ns: float | None) -> str:
    """Three digits and a unit."""
    if ns is None:
        return "-"
    for factor, unit in ((1e9, "s"), (1e6, "ms"), (1e3, "µs")):
        if ns >= factor:
            value = ns / factor
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    return f"{ns:.0f} ns"


def quotient(value: float) -> str:
    return f"{value:,.0f}x" if value >= 100 else f"{value:.3g}x"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def provenance(result: Result, source: Path = RESULT) -> str:
    about = result["machine"]
    taken = result["situations"].values() if "situations" in result else (result,)
    rounds = max((len(one["rounds"]) for one in taken), default=0)
    packages = ", ".join(
        f"{name} {version}" for name, version in about["packages"].items() if version and name in ("numpy", "grpcio", "pyzmq")
    )
    return (
        f"\n<sub>{result['date'][:10]}, commit {result['commit'][:10]}, {about['cpu']}, {about['cpus']} CPUs, {about['kernel']}, "
        f"{about['python']}, {packages}; median of {rounds} interleaved rounds "
        f"(`{source.relative_to(ROOT)}`).</sub>\n"
    )


def cell(result: Result, situation: str, name: str, peer: str, statistic: str = "p50_ns") -> float | None:
    samples = result["situations"].get(situation, {}).get("median", {}).get(name, {}).get(peer, {})
    value: float | None = samples.get(statistic)
    return value


def echo(result: Result) -> str:
    """64 B there and back: percentiles on the idle machine, p50 and mean in the other situations."""
    others = [name for name in SITUATION_LABELS if name in result["situations"] and name != "idle"]
    head = ["64 B echo", "p50", "p90", "p99", "p99.9", "mean", *(f"p50, {SITUATION_LABELS[name]}" for name in others)]
    rows = [
        [label, *(duration(cell(result, "idle", "echo_64B", peer, f"{name}_ns")) for name in ("p50", "p90", "p99", "p99.9", "mean"))]
        + [duration(cell(result, other, "echo_64B", peer)) for other in others]
        for peer, label in LABELS.items()
        if cell(result, "idle", "echo_64B", peer) is not None
    ]
    return table(head, rows) + provenance(result)


def touch(result: Result) -> str:
    """A call with one float64 array of each size."""
    rows = [
        ["fastplug, array born in shared memory", *(duration(cell(result, "idle", f"touch_{size}_shared", "shm")) for size in TOUCH_SIZES)]
    ]
    for peer, label in LABELS.items():
        if cell(result, "idle", "touch_8KiB", peer) is not None:
            rows.append([label, *(duration(cell(result, "idle", f"touch_{size}", peer)) for size in TOUCH_SIZES)])
    return table(["call with an array, p50", *TOUCH_SIZES], rows) + provenance(result)


def situations(result: Result) -> str:
    """Ours against the Python socket, the C socket and the C ping-pong in every situation: ratios per round, then their median."""
    rows = []
    for name, label in SITUATION_LABELS.items():
        found = result["ratios"].get(name, {})
        row = [label]
        for rival in ("unix_socket", "c_unix_socket", "grpcio"):
            figures = found.get(f"echo_64B: {rival} / shm", {})
            row.append(", ".join(quotient(figures[key]["median"]) if key in figures else "-" for key in ("p50_ns", "mean_ns", "p99_ns")))
        if found:
            rows.append(row)
    head = ["64 B echo, times faster (p50, mean, p99)", *(LABELS[rival] for rival in ("unix_socket", "c_unix_socket", "grpcio"))]
    return table(head, rows) + provenance(result)


def marks(result: Result) -> str:
    """What the project has set itself."""
    relation, verdict = {"<=": "at most", ">=": "at least"}, {True: "yes", False: "**no**", None: "not measured"}
    rows = []
    for mark in result["marks"]:
        unit = "x" if mark["unit"] == "x" else f" {mark['unit']}"
        measured = quotient if unit == "x" else lambda value, unit=unit: f"{value:.3g}{unit}"
        value = "-" if mark["value"] is None else measured(mark["value"])
        rows.append([mark["name"], f"{relation[mark['relation']]} {mark['limit']:g}{unit}", value, verdict[mark["met"]]])
    return table(["mark", "limit", "measured", "met"], rows) + provenance(result)


def headline(result: Result) -> str:
    """Two sentences for the top of README.md."""

    def times(name: str, situation: str = "idle") -> str:
        figure = result["ratios"].get(situation, {}).get(name, {}).get("p50_ns")
        return f"{figure['median']:,.0f}" if figure else "-"

    rivals = {"a Unix socket in Python": "unix_socket", "pyzmq": "zmq", "grpcio": "grpcio"}
    faster = ", ".join(f"{times(f'echo_64B: {rival} / shm')} times faster than {name}" for name, rival in rivals.items())
    call, array = cell(result, "idle", "echo_64B", "shm"), cell(result, "idle", "touch_64MiB_shared", "shm")
    return (
        f"A call with 64 B and its answer take {duration(call)} (median): {faster}. "
        f"A call with a 64 MiB array that lives in shared memory takes {duration(array)}.\n" + provenance(result)
    )


def interop(result: Result) -> str:
    """Calls between Go and Python: p50 of one caller and calls per second of sixteen, of every pair and size."""
    if not result:
        return f"Not measured yet: `python -m benchmarks.interop` writes `{INTEROP.relative_to(ROOT)}`.\n"
    cells = result["median"]
    sizes = [name.removesuffix(", 1 caller") for name in cells if name.endswith(", 1 caller")]
    head = ["a call and its answer", *(f"{size}, p50" for size in sizes), *(f"{size}, 16 callers" for size in sizes)]
    rows = [
        [pair, *(duration(cells[f"{size}, 1 caller"][pair]["p50_ns"]) for size in sizes)]
        + [f"{cells[f'{size}, 16 callers'][pair]['per_s']:,.0f} /s" for size in sizes]
        for pair in next(iter(cells.values()))
    ]
    return table(head, rows) + provenance(result, INTEROP)


# Where the figures of a block come from, if it is not RESULT.
SOURCES = {"interop": INTEROP}
BLOCKS: dict[str, Callable[[Result], str]] = {
    "headline": headline,
    "interop": interop,
    "echo": echo,
    "touch": touch,
    "situations": situations,
    "marks": marks,
}


def documents() -> list[Path]:
    return [
        path for path in (ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if path.exists()
    ]


def load_result(source: Path = RESULT) -> Result:
    """A committed result; empty when there is none."""
    result: Result = json.loads(source.read_text()) if source.exists() else {}
    return result


def rewritten(text: str) -> str:
    """The text of a document with its blocks made anew. Raises KeyError for a block that does not exist."""

    def made(name: str) -> str:
        return BLOCKS[name](load_result(SOURCES.get(name, RESULT)))

    return BLOCK.sub(lambda match: match[1] + made(match["name"]) + match[4], text)


def unfounded(text: str) -> list[str]:
    """Figures outside every block whose paragraph does not say that they are constants."""
    paragraphs = re.split(r"\n\s*\n", BLOCK.sub("", text))
    return [match[0] for paragraph in paragraphs if not CONSTANT.search(paragraph) for match in FIGURE.finditer(paragraph)]


def main(argv: Sequence[str] | None = None) -> int:
    check = "--check" in (sys.argv[1:] if argv is None else argv)
    stale = []
    for path in documents():
        text = path.read_text()
        new = rewritten(text) if BLOCK.search(text) else text
        if new != text and not check:
            path.write_text(new)
        if new != text:
            stale.append(f"{path.relative_to(ROOT)}: {'not as' if check else 'written from'} {RESULT.name}")
    readme = ROOT / "README.md"
    loose = [f"README.md: {figure!r} is in no block" for figure in (unfounded(readme.read_text()) if readme.exists() else [])]
    print("\n".join([*stale, *loose]) or "every figure is from the result")
    return bool(loose or (check and stale))


if __name__ == "__main__":
    raise SystemExit(main())
