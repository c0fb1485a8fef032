"""A record batch of Arrow and a mapped file over shared memory, beside memcpy: ``python -m benchmarks.frames``.

The steps of a round follow one another, so that load falls on all of them; of each the median and the least are shown. Copies are those
that both sides count. The handler answers the number of rows and one value of each column, so nothing else is touched.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

import fastplug

__all__ = ["Frames", "FramesPlugin"]

COLUMNS = 10
BATCH_BYTES = 100 << 20
FILE_BYTES = 1 << 30


@fastplug.interface("bench.frames/1")
class Frames(Protocol):
    def touch_batch(self, x: pa.RecordBatch, at: int) -> tuple[int, float]: ...
    def touch_file(self, x: npt.NDArray[np.float64], at: int) -> tuple[int, float]: ...


class FramesPlugin(Frames):
    def touch_batch(self, x: pa.RecordBatch, at: int) -> tuple[int, float]:
        return x.num_rows, sum(column[at].as_py() for column in x.columns)

    def touch_file(self, x: npt.NDArray[np.float64], at: int) -> tuple[int, float]:
        return x.size, float(x[at])


def batch_of(make: Callable[[int], npt.NDArray[np.float64]]) -> Any:
    """COLUMNS columns of floats, BATCH_BYTES together."""
    columns = []
    for i in range(COLUMNS):
        column = make(BATCH_BYTES // COLUMNS // 8)
        column[:] = i
        columns.append(column)
    return pa.record_batch({f"c{i}": column for i, column in enumerate(columns)})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    with (
        tempfile.TemporaryDirectory() as folder,
        fastplug.start([sys.executable, "-m", "fastplug.entry", f"{__spec__.name}:FramesPlugin"]) as client,
    ):
        frames = client.dispense(Frames)
        path = Path(folder) / "data.bin"
        with path.open("wb") as file:
            file.truncate(FILE_BYTES)
        mapped = np.memmap(path, np.float64, "r")
        source, target = np.ones(BATCH_BYTES // 8), np.ones(BATCH_BYTES // 8)
        born, ordinary = batch_of(client.empty), batch_of(np.empty)
        expected = (BATCH_BYTES // COLUMNS // 8, float(sum(range(COLUMNS))))

        def touch(batch: Any) -> None:
            assert frames.touch_batch(batch, 12345) == expected

        steps: dict[str, Callable[[], object]] = {
            "memcpy of 100 MiB": lambda: np.copyto(target, source),
            "record batch of 100 MiB, born in shared memory": lambda: touch(born),
            "record batch of 100 MiB, ordinary": lambda: touch(ordinary),
            "mapped file of 1 GiB": lambda: frames.touch_file(mapped, 99_999_999),
        }
        samples: dict[str, list[float]] = {name: [] for name in steps}
        copies: dict[str, int] = {}
        for turn in range(rounds + 2):
            for name, step in steps.items():
                before = client.stats()
                start = time.perf_counter()
                step()
                taken = time.perf_counter() - start
                after = client.stats()
                copies[name] = sum(after[key] - before[key] for key in ("copies", "plugin_copies"))
                if turn >= 2:
                    samples[name].append(taken * 1e3)
        for name, values in samples.items():
            print(f"{name:48} {statistics.median(values):9.3f} ms median {min(values):9.3f} ms least {copies[name]:4} copies")


if __name__ == "__main__":
    main()
