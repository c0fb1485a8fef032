"""Buffers and tables of Arrow, echoed and looked into. Not named *_api: pyarrow has no types for the checkers."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tests.plugins.memory import memfd_inode

import fastplug

__all__ = ["Frames", "FramesPlugin"]


@fastplug.interface("test.frames/1")
class Frames(Protocol):
    def batch(self, x: pa.RecordBatch) -> pa.RecordBatch: ...
    def table(self, x: pa.Table) -> pa.Table: ...
    def array(self, x: pa.Array) -> pa.Array: ...
    def chunked(self, x: pa.ChunkedArray) -> pa.ChunkedArray: ...
    def optional(self, x: pa.Table | None = None) -> list[pa.Array]: ...
    def in_shared_memory(self, x: pa.RecordBatch) -> list[bool]: ...
    def rows(self, x: pa.Table) -> list[float]: ...
    def born(self, n: int) -> pa.RecordBatch: ...
    def wrong(self) -> pa.Table: ...


class FramesPlugin(Frames):
    def batch(self, x: pa.RecordBatch) -> pa.RecordBatch:
        return x

    def table(self, x: pa.Table) -> pa.Table:
        return x

    def array(self, x: pa.Array) -> pa.Array:
        return x

    def chunked(self, x: pa.ChunkedArray) -> pa.ChunkedArray:
        return x

    def optional(self, x: pa.Table | None = None) -> list[pa.Array]:
        return [] if x is None else [column.combine_chunks() for column in x.columns]

    def in_shared_memory(self, x: pa.RecordBatch) -> list[bool]:
        buffers = [buffer for column in x.columns for buffer in column.buffers() if buffer is not None]
        arrays: list[npt.NDArray[np.uint8]] = [np.frombuffer(buffer, np.uint8) for buffer in buffers]
        return [memfd_inode(array) != 0 for array in arrays]

    def rows(self, x: pa.Table) -> list[float]:
        """How many, and the last number of the first column."""
        return [x.num_rows, x.column(0)[-1].as_py()]

    def born(self, n: int) -> pa.RecordBatch:
        values = fastplug.empty(n)
        values[:] = np.arange(n)
        return pa.record_batch({"x": values})

    def wrong(self) -> pa.Table:
        return [1]


if __name__ == "__main__":
    fastplug.serve(FramesPlugin())
