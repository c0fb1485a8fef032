"""The plots of a result: latency against the size of the array, and percentiles of the 64 B echo.

By hand: ``python -m benchmarks.plots <result.json>``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter

from .measure import PERCENTILES, SIZES, size_name
from .situations import SITUATIONS

__all__ = ["draw"]

# name: label, colour, marker, line. Ours in full lines and strong colours; rivals thinner; the floor dashed and grey.
SERIES: dict[str, tuple[str, str, str, str]] = {
    "shm_shared": ("fastplug, array in shared memory", "#b3001b", "o", "-"),
    "shm": ("fastplug, shared memory", "#e4572e", "s", "-"),
    "inproc": ("fastplug, in-process", "#f2a541", "D", "-"),
    "socket": ("fastplug, socket", "#7d5ba6", "^", "-"),
    "grpc": ("fastplug, gRPC", "#c17fb5", "v", "-"),
    "unix_socket": ("Unix socket (Python)", "#2a7f9e", "P", "-"),
    "pipe": ("multiprocessing.Pipe", "#5aa469", "X", "-"),
    "zmq": ("pyzmq REQ/REP", "#3d5a80", "<", "-"),
    "grpcio": ("grpcio unary (bytes)", "#264653", ">", "-"),
    "copyto": ("np.copyto alone", "#555555", "", "--"),
    "c_unix_socket": ("Unix socket (C)", "#999999", "", "--"),
    "c_pingpong": ("C ping-pong, same wait policy", "#555555", "", ":"),
}
DPI = 130


def draw(result: dict[str, Any], folder: Path) -> list[Path]:
    """Writes <name>-sizes.png and <name>-percentiles.png, as far as the result holds what they show."""
    out = []
    idle = result["situations"].get("idle", {}).get("median", {})
    if any(cell.startswith("touch_") for cell in idle):
        out.append(_save(_sizes(idle, _caption(result)), folder / f"{result['name']}-sizes.png"))
    if result["situations"]:
        out.append(_save(_percentiles(result["situations"], _caption(result)), folder / f"{result['name']}-percentiles.png"))
    return out


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
    return path


def _caption(result: dict[str, Any]) -> str:
    about, date = result["machine"], result["date"][:10]
    rounds = max((len(one["rounds"]) for one in result["situations"].values()), default=0)
    machine = f"{about['cpu']}, {about['cpus']} CPUs, {about['kernel']}, {about['python']}"
    return f"{machine}; {date}, commit {result['commit'][:10]}; median of {rounds} rounds"


def _time(ns: float, _position: int = 0) -> str:
    for factor, unit in ((1e9, "s"), (1e6, "ms"), (1e3, "µs")):
        if ns >= factor:
            return f"{ns / factor:g} {unit}"
    return f"{ns:g} ns"


def _style(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=11, loc="left")
    axes.yaxis.set_major_formatter(FuncFormatter(_time))
    axes.grid(visible=True, which="major", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _line(axes: Any, name: str, xs: list[float], ys: list[float]) -> None:
    label, colour, marker, line = SERIES[name]
    ours = label.startswith("fastplug")
    axes.plot(
        xs,
        ys,
        line,
        color=colour,
        marker=marker or None,
        markersize=5,
        linewidth=2.2 if ours else 1.3,
        label=label,
        zorder=3 if ours else 2,
    )


def _sizes(cells: dict[str, Any], caption: str) -> Any:
    figure, axes = plt.subplots(figsize=(11, 6.4))
    for name in SERIES:
        peer, suffix = ("shm", "_shared") if name == "shm_shared" else (name, "")
        points = [(size, cells.get(f"touch_{size_name(size)}{suffix}", {}).get(peer, {}).get("p50_ns")) for size in SIZES]
        xs, ys = [size for size, ns in points if ns], [ns for _, ns in points if ns]
        if xs:
            _line(axes, name, [float(size) for size in xs], ys)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(SIZES, [size_name(size).replace("iB", " iB").replace(" iB", "iB") for size in SIZES])
    axes.minorticks_off()
    _style(axes, "One call with a float64 array: median round trip against size")
    axes.set_xlabel("bytes in the array")
    axes.set_ylabel("round trip, p50 (log)")
    _finish(figure, axes, caption)
    return figure


def _percentiles(situations: dict[str, Any], caption: str) -> Any:
    shown = [one for one in SITUATIONS if one.name in situations]
    columns = min(2, len(shown))
    figure, grid = plt.subplots(
        -(-len(shown) // columns), columns, figsize=(12, 4.2 * -(-len(shown) // columns) + 0.6), sharey=True, squeeze=False
    )
    names = [*(name for name, _ in PERCENTILES), "mean_ns"]
    for axes, situation in zip(grid.flat, shown, strict=False):
        row = situations[situation.name]["median"].get("echo_64B", {})
        for name in SERIES:
            if name in row and "error" not in row[name]:
                _line(axes, name, [0, 1, 2, 3], [row[name][key] for key in names[:4]])
                axes.plot([4], [row[name]["mean_ns"]], color=SERIES[name][1], marker=SERIES[name][2] or "_", markersize=6, linestyle="none")
        axes.set_yscale("log")
        axes.set_xticks(range(5), [key.removesuffix("_ns") for key in names])
        axes.minorticks_off()
        _style(axes, f"64 B echo: {situation.label}")
        axes.tick_params(labelleft=True)
    for axes in list(grid.flat)[len(shown) :]:
        axes.set_visible(False)
    grid[0][0].set_ylabel("round trip (log)")
    _finish(figure, grid[0][0], caption)
    return figure


def _finish(figure: Any, axes: Any, caption: str) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.tight_layout(rect=(0, 0.035, 0.74, 1))
    figure.legend(handles, labels, loc="center left", bbox_to_anchor=(0.745, 0.52), frameon=False, fontsize=9)
    figure.text(0.01, 0.012, caption, fontsize=7.5, color="#555555")


def main() -> None:
    for argument in sys.argv[1:]:
        path = Path(argument)
        for plot in draw(json.loads(path.read_text()), path.parent):
            print(plot)


if __name__ == "__main__":
    main()
