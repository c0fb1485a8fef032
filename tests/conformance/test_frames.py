"""Arrow: every type travels, what was born in shared memory is not copied, and any library with the PyCapsule interface is accepted."""

from __future__ import annotations

import datetime as dt
import decimal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conformance.conftest import started
from tests.plugins.memory import memfd_inode

import fastplug

pa = pytest.importorskip("pyarrow", reason="the extra `arrow` is not installed")

from tests.plugins.arrow_frames import Frames, FramesPlugin  # noqa: E402  it imports pyarrow

N = 3000

ARRAYS: dict[str, Any] = {
    "numbers": pa.array(np.arange(N)),
    "no numbers": pa.array([], pa.float64()),
    "with nulls": pa.array([None, 1, 2] * N),
    "only nulls": pa.array([None] * N),
    "typed nulls": pa.array([None] * N, pa.int16()),
    "bools": pa.array([True, None, False] * N),
    "half floats": pa.array(np.arange(5, dtype="f2")),
    "decimals": pa.array([decimal.Decimal("1.50"), None] * N),
    "times": pa.array([dt.datetime(2024, 1, 1, tzinfo=dt.timezone.utc), None] * N),  # noqa: UP017
    "dates": pa.array([dt.date(2024, 1, 1)] * 10),
    "text": pa.array(["", "é", None, "long " * 20] * N),
    "large text": pa.array(["a", None], pa.large_string()),
    "text views": pa.array(["a", None, "longer than twelve bytes"] * N, pa.string_view()),
    "bytes": pa.array([b"\0", b"\xff"] * N),
    "fixed bytes": pa.array([b"abc", None] * N, pa.binary(3)),
    "lists": pa.array([[1, 2], [], None, [3]] * N),
    "lists of lists": pa.array([[["a"], []], [None]] * N),
    "fixed lists": pa.array([[1.0, 2.0], None] * N, pa.list_(pa.float64(), 2)),
    "structs": pa.array([{"a": 1, "b": "x"}, None, {"a": None, "b": "y"}] * N),
    "maps": pa.array([[("k", 1)], []] * N, pa.map_(pa.string(), pa.int64())),
    "unions": pa.UnionArray.from_sparse(pa.array([0, 1, 0], pa.int8()), [pa.array([1, 2, 3]), pa.array(["a", "b", "c"])]),
    "categories": pa.array(["a", "b", None, "a"] * N).dictionary_encode(),
    "ordered": pa.DictionaryArray.from_arrays(pa.array([0, 1, 0]), pa.array(["lo", "hi"]), ordered=True),
    "runs": pa.RunEndEncodedArray.from_arrays(pa.array([3, 5]), pa.array(["a", "b"])),
    "tensors": pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.int32(), [2]), pa.array([[1, 2], [3, 4]], pa.list_(pa.int32(), 2))),
}
SLICES = {
    "all": slice(None),
    "none": slice(0, 0),
    "head": slice(0, 3),
    "tail": slice(7, None),
    "middle": slice(1003, 2500),
    "few": slice(1001, 1005),
}


@pytest.fixture(scope="module")
def client(transport: str) -> Iterator[fastplug.Client]:
    with started(transport, FramesPlugin) as client:
        yield client


@pytest.fixture(scope="module")
def frames(client: fastplug.Client) -> Frames:
    return client.dispense(Frames)


@pytest.mark.parametrize("case", ARRAYS)
def test_every_type_travels_in_slices(frames: Frames, case: str) -> None:
    for part in SLICES.values():
        sent = ARRAYS[case][part]
        back = frames.array(sent)
        back.validate(full=True)
        assert back.type == sent.type
        assert back.equals(sent)


def test_batches_tables_and_chunked_arrays(frames: Frames) -> None:
    schema = pa.schema(
        [pa.field("n", pa.int64(), nullable=False, metadata={"unit": "m"}), pa.field("s", pa.string())], metadata={"of": "all"}
    )
    batch = pa.record_batch([ARRAYS["numbers"], ARRAYS["text"][:N]], schema=schema)
    back = frames.batch(batch)
    assert back.equals(batch, check_metadata=True)
    for table in (pa.Table.from_batches([batch, batch.slice(5, 100)]), pa.Table.from_batches([], schema), pa.table(batch).slice(10, 5)):
        assert frames.table(table).equals(table, check_metadata=True)
    for chunked in (pa.chunked_array([[1, 2], [], [3]]), pa.chunked_array([], pa.string())):
        assert frames.chunked(chunked).equals(chunked)
    assert frames.optional() == []
    assert [array.equals(column) for array, column in zip(frames.optional(pa.table(batch)), batch.columns, strict=True)] == [True, True]


def test_what_is_no_table(frames: Frames) -> None:
    for value, said in (([1], "list"), (np.arange(3), "ndarray"), ({"a": [1]}, "dict"), (None, "None")):
        with pytest.raises(fastplug.ArgumentError, match=rf"must be arrow\[Table\], got .*{said}"):
            frames.table(value)  # type: ignore[arg-type]
    with pytest.raises(fastplug.ResultError, match="list"):
        frames.wrong()
    assert frames.array(ARRAYS["numbers"]).equals(ARRAYS["numbers"])


def made(client: fastplug.Client, call: Any) -> tuple[Any, tuple[int, int]]:
    before = client.stats()
    result = call()
    after = client.stats()
    return result, (after["copies"] - before["copies"], after["plugin_copies"] - before["plugin_copies"])


def addresses(batch: Any) -> list[int]:
    return [buffer.address for column in batch.columns for buffer in column.buffers() if buffer is not None]


@pytest.mark.transports("shm")
def test_what_is_born_in_shared_memory_is_not_copied(client: fastplug.Client, frames: Frames) -> None:
    """From arrays of numpy, and from an IPC stream that was written there; there and back, whole and in slices."""
    values = client.empty(N)
    values[:] = np.arange(N)
    source = pa.record_batch({"x": np.arange(N), "s": [f"text {i}" for i in range(N)]})
    room = client.empty(1 << 20, np.uint8)
    with pa.ipc.new_stream(pa.FixedSizeBufferWriter(pa.py_buffer(room)), source.schema) as writer:
        writer.write_batch(source)
    born = pa.ipc.open_stream(pa.py_buffer(room)).read_next_batch()
    for batch in (pa.record_batch({"x": values}), pa.record_batch({"x": values[100:]}), born, born.slice(16, 2900)):
        assert made(client, lambda batch=batch: frames.in_shared_memory(batch))[1] == (0, 0)
        back, copies = made(client, lambda batch=batch: frames.batch(batch))
        assert copies == (0, 0)
        assert back.equals(batch)
        assert back.num_columns == 0 or set(addresses(back)) == set(addresses(frames.batch(back)))
    theirs, copies = made(client, lambda: frames.born(N))
    assert copies == (0, 0)
    for part in (theirs, theirs.slice(80, 2000)):
        again, copies = made(client, lambda part=part: frames.batch(part))
        assert copies == (0, 0)
        assert again.equals(part)


@pytest.mark.transports("shm")
def test_other_batches_are_copied_once(client: fastplug.Client, frames: Frames) -> None:
    batch = pa.record_batch({"x": np.arange(N), "y": np.arange(N) * 0.5})
    seen, copies = made(client, lambda: frames.in_shared_memory(batch))
    assert seen == [True, True]
    assert copies == (2, 0)


@pytest.mark.transports("shm")
def test_a_slice_does_not_send_what_it_leaves_out(client: fastplug.Client, frames: Frames) -> None:
    big = pa.table({"x": np.arange(1_000_000), "s": ["text"] * 1_000_000, "l": pa.array([[1]] * 1_000_000)})
    before = client.stats()["copied_bytes"]
    assert frames.table(big.slice(500_000, 100)).num_rows == 100
    assert client.stats()["copied_bytes"] - before < 20_000


def test_a_mapped_file_of_arrow_is_read_where_it_lies(client: fastplug.Client, frames: Frames, transport: str, tmp_path: Path) -> None:
    path = tmp_path / "data.arrow"
    n = 40_000  # the least buffer, of offsets, has more than 64 KiB
    table = pa.table({"x": np.arange(float(n)), "s": [f"text {i}" for i in range(n)], "small": np.zeros(n, np.uint8)})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pa.memory_map(str(path)) as source:
        mapped = pa.ipc.open_file(source).read_all()
    expected = {"shm": 1, "socket": 4, "inproc": 4}[transport] if transport != "grpc" else None  # 40 kB are copied
    for sent in (mapped, mapped.slice(0, n - 5)):
        before = client.stats()
        assert frames.rows(sent) == [sent.num_rows, float(n - 6 if sent is not mapped else n - 1)]
        after = client.stats()
        if expected is not None:
            assert after["copies"] - before["copies"] == expected
    assert frames.table(mapped).equals(table)


def test_received_tables_outlive_the_plugin(transport: str) -> None:
    with started(transport, FramesPlugin) as client:
        frames = client.dispense(Frames)
        alive = [frames.born(N), frames.batch(pa.record_batch({"s": [f"text {i}" for i in range(N)]}))]
        assert (memfd_inode(np.frombuffer(alive[0].column(0).buffers()[1], np.uint8)) != 0) == (transport == "shm")
    assert alive[0].column(0).to_numpy().sum() == N * (N - 1) / 2
    assert alive[1].column(0)[N - 1].as_py() == f"text {N - 1}"


def test_frames_of_polars(frames: Frames) -> None:
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame({"x": [1.5, None], "s": ["a", "bb"]})
    assert pl.from_arrow(frames.table(frame)).equals(frame)
    assert pl.from_arrow(frames.chunked(frame["x"]))[0] == 1.5


def test_frames_of_pandas(frames: Frames) -> None:
    pd = pytest.importorskip("pandas", minversion="2.2")
    frame = pd.DataFrame({"x": [1.5, 2.5], "s": ["a", "bb"]})
    assert frames.table(frame).to_pandas().equals(frame)
    assert frames.table(pa.Table.from_pandas(frame)).to_pandas().equals(frame)
