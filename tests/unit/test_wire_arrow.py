"""Parts of tables that lie: each is refused before anything reads past the end of its buffers."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pa = pytest.importorskip("pyarrow", reason="the extra `arrow` is not installed")

from fastplug import _wire_arrow  # noqa: E402  it imports pyarrow
from fastplug._wire import Decoder, Encoder, compile_node  # noqa: E402
from fastplug._wire_arrow import Column, Parts, put_together, taken_apart  # noqa: E402
from fastplug.annotation import resolve  # noqa: E402
from fastplug.errors import RemoteProtocolError  # noqa: E402
from fastplug.shm._ndarray import InlineArrays  # noqa: E402
from fastplug.signature import canonical  # noqa: E402

TABLE = pa.table(
    {
        "n": [1, None, 3],
        "s": ["a", "bb", None],
        "l": [[1], [], [2, 3]],
        "d": pa.array(["x", "y", "x"]).dictionary_encode(),
        "t": pa.array([{"a": 1}, {"a": 2}, None]),
        "b": [True, False, None],
        "m": pa.array([[("k", 1)], [], None], pa.map_(pa.string(), pa.int64())),
    }
)
BYTES = np.frombuffer(b"\xff" * 64, np.uint8)


def parts() -> Parts:
    return taken_apart(TABLE, "Table")


def column(number: int, **changes: Any) -> Parts:
    made = parts()
    made.batches[0][number] = dataclasses.replace(made.batches[0][number], **changes)
    return made


def test_parts_are_the_whole() -> None:
    assert put_together(parts(), "Table").equals(TABLE)


INDICES = Column(3, 0, 0, [None, np.array([0, 1, 2], "i4").view("u1")], [])
# What each lie changes; the columns are those of TABLE.
LIES: dict[str, Any] = {
    "no schema": lambda: Parts(b"", parts().batches),
    "half a schema": lambda: Parts(parts().schema[:40], parts().batches),
    "schema of noise": lambda: Parts(b"\xff" * 200, parts().batches),
    "a column less": lambda: Parts(parts().schema, [parts().batches[0][:-1]]),
    "another column's place": lambda: Parts(parts().schema, [parts().batches[0][::-1]]),
    "columns of other lengths": lambda: column(0, length=2),
    "negative length": lambda: column(0, length=-1),
    "more rows than bytes": lambda: column(0, length=9),
    "huge length": lambda: column(0, length=2**62),
    "huge offset": lambda: column(0, offset=2**62),
    "offset behind the end": lambda: column(0, offset=1),
    "too many nulls": lambda: column(0, null_count=4),
    "nulls that are not there": lambda: column(0, null_count=2),
    "no buffers": lambda: column(0, buffers=[]),
    "too many buffers": lambda: column(0, buffers=[None] * 9),
    "no data": lambda: column(0, buffers=[None, None]),
    "short data": lambda: column(0, buffers=[None, BYTES[:20]]),
    "no validity": lambda: column(0, buffers=[BYTES[:0], BYTES]),
    "no validity, and nobody knows": lambda: column(0, buffers=[BYTES[:0], BYTES], null_count=-1),
    "data with gaps": lambda: column(0, buffers=[None, np.frombuffer(b"\0" * 64, np.uint8)[::2]]),
    "offsets of noise": lambda: column(1, buffers=[None, BYTES, BYTES], null_count=0),
    "text that is no UTF-8": lambda: column(1, buffers=[None, np.array([0, 1, 2, 3], "i4").view("u1"), BYTES], null_count=0),
    "children of a flat type": lambda: column(0, children=parts().batches[0][:1]),
    "a list without items": lambda: column(2, children=[]),
    "a list of offsets behind the end": lambda: column(2, buffers=[None, np.array([0, 1, 2, 90], "i4").view("u1")], null_count=0),
    "a dictionary without values": lambda: column(3, children=parts().batches[0][3].children[:1]),
    "indices outside of the dictionary": lambda: column(3, children=[INDICES, parts().batches[0][3].children[1]]),
    "a struct without fields": lambda: column(4, children=[]),
    "a struct of short fields": lambda: column(4, children=[dataclasses.replace(parts().batches[0][4].children[0], length=1)]),
    "a stream of noise": lambda: column(6, stream=BYTES),
    "an empty stream": lambda: column(6, stream=BYTES[:0]),
    "a stream of another type": lambda: column(6, stream=np.frombuffer(_wire_arrow.stream_of(pa.array([1, 2, 3])), np.uint8)),
    "a stream cut off": lambda: column(6, stream=parts().batches[0][6].stream[:-90]),
    "a stream of another length": lambda: column(6, stream=np.frombuffer(_wire_arrow.stream_of(TABLE["m"].chunk(0)[:2]), np.uint8)),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_part_that_lies(lie: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  whose words are mostly Arrow's
        put_together(LIES[lie](), "Table")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", ["RecordBatch", "Array", "ChunkedArray"])
def test_parts_of_another_class(name: str) -> None:
    for lie in (Parts(parts().schema, parts().batches * 2), Parts(parts().schema, []), parts()):
        if name == "RecordBatch" and len(lie.batches) == 1:
            continue
        with pytest.raises(ValueError):  # noqa: PT011
            put_together(lie, name)


NUMBERS = st.integers(-2, 80) | st.sampled_from([2**31, 2**62, -(2**63)])
NOISE = st.binary(max_size=80).map(lambda data: np.frombuffer(data, np.uint8))
COLUMNS = st.recursive(
    st.builds(Column, NUMBERS, NUMBERS, NUMBERS, st.lists(st.none() | NOISE, max_size=3), st.just([]), st.none() | NOISE),
    lambda inner: st.builds(Column, NUMBERS, NUMBERS, NUMBERS, st.lists(st.none() | NOISE, max_size=3), st.lists(inner, max_size=2)),
    max_leaves=3,
)


@given(st.integers(0, 6), COLUMNS)
def test_whatever_a_column_says_it_is_wholly_valid_or_an_error(place: int, lie: Column) -> None:
    made = parts()
    made.batches[0][place] = lie
    try:
        table = put_together(made, "Table")
    except ValueError:
        return
    table.validate(full=True)
    table.to_pylist()


def test_the_codec_says_whose_fault_it_is() -> None:
    """A part that lies is the peer's fault; the payload was sound, so the connection goes on."""
    node = resolve(pa.Table, where="test")
    assert canonical(node) == "arrow[Table]"
    codec, inner = compile_node(node), compile_node(_wire_arrow.parts_node())
    assert Decoder(InlineArrays()).decode(codec, Encoder(InlineArrays()).encode(codec, TABLE)).equals(TABLE)
    with pytest.raises(RemoteProtocolError, match=r"arrow\[Table\] that is wrong"):
        Decoder(InlineArrays()).decode(codec, Encoder(InlineArrays()).encode(inner, LIES["more rows than bytes"]()))
