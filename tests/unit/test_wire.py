"""The value codec by hand: what is accepted, what is refused and in which words, limits, hostile values."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import struct
import sys
import uuid
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.twin.wire_nodes import Colour, Perm, Point, Tree, node_of

from fastplug import _wire
from fastplug._wire import Decoder, Encoder, MethodCodec, compile_node
from fastplug.annotation import MISSING, FieldNode, Kind, TypeNode
from fastplug.errors import ArgumentError, LocalProtocolError, RemoteProtocolError


def codec_of(annotation: Any) -> Any:
    return compile_node(node_of(annotation))


def encode(annotation: Any, value: Any) -> bytes:
    return Encoder().encode(codec_of(annotation), value)


def carried(annotation: Any, value: Any) -> Any:
    return Decoder().decode(codec_of(annotation), encode(annotation, value))


def decode(annotation: Any, text: str) -> Any:
    return Decoder().decode(codec_of(annotation), bytes.fromhex(text))


class Level(enum.IntEnum):
    LOW = 1


class Name(enum.StrEnum):
    ANNA = "anna"


class Text(str):
    __slots__ = ()


Pair = collections.namedtuple("Pair", "a b")  # noqa: PYI024  a subclass of tuple, however it is made


@pytest.mark.parametrize(
    ("annotation", "value", "arrives"),
    [
        (int, True, 1),
        (int, Level.LOW, 1),
        (int, np.int8(-3), -3),
        (int, np.uint64(2**64 - 1), 2**64 - 1),
        (float, 3, 3.0),
        (float, True, 1.0),
        (float, np.float32(0.5), 0.5),
        (float, np.float64(0.5), 0.5),
        (float, np.longdouble(0.5), 0.5),
        (float, np.int64(2), 2.0),
        (complex, 2, 2 + 0j),
        (complex, 0.5, 0.5 + 0j),
        (complex, np.complex64(1j), 1j),
        (complex, np.float32(0.5), 0.5 + 0j),
        (bool, np.True_, True),
        (str, Name.ANNA, "anna"),
        (str, Text("x"), "x"),
        (str, np.str_("x"), "x"),
        (bytes, bytearray(b"x"), b"x"),
        (bytes, memoryview(b"abcd")[::2], b"ac"),
        (bytes, memoryview(bytearray(4)).cast("i"), bytes(4)),
        (bytes, np.bytes_(b"x"), b"x"),
        (list[int], [], []),
        (tuple[int, str], Pair(1, "b"), (1, "b")),
        (dict[str, int], collections.OrderedDict(a=1), {"a": 1}),
        (dt.datetime, dt.datetime(2024, 2, 29, 23, 59, 59, 999999, fold=1), dt.datetime(2024, 2, 29, 23, 59, 59, 999999, fold=1)),
        (dt.date, dt.date.max, dt.date.max),
        (Colour, Colour.VERT, Colour.GREEN),
        (Perm, Perm(0), Perm(0)),
        (Perm, Perm.R | Perm.X, Perm.R | Perm.X),
        (int | None, None, None),
        (Tree, Tree(b"a", Tree(b"b"), right=Tree(b"c")), Tree(b"a", Tree(b"b"), right=Tree(b"c"))),
    ],
)
def test_accepted(annotation: Any, value: Any, arrives: Any) -> None:
    got = carried(annotation, value)
    assert got == arrives
    assert type(got) is type(arrives)


@pytest.mark.parametrize(
    ("annotation", "value", "got"),
    [
        (bool, 1, "int"),
        (int, 1.0, "float"),
        (int, np.float32(1), "numpy.float32"),
        (int, np.True_, "numpy.bool"),
        (int, np.timedelta64(1, "s"), "numpy.timedelta64"),
        (int, "1", "str"),
        (int, None, "None"),
        pytest.param(int, 1 << (8 << 20), "int of 1048577 bytes (at most 1048576 travel)", id="int of 1 MiB"),
        (float, "1", "str"),
        (float, 10**400, "an int that is too large for a float"),
        (float, decimal.Decimal(1), "decimal.Decimal"),
        (str, b"x", "bytes"),
        (str, "a\ud800", "str that UTF-8 cannot encode (a lone surrogate at 1)"),
        (bytes, "x", "str"),
        (bytes, np.zeros(1, "i2"), "numpy.ndarray[int16]"),
        (list[int], (1,), "tuple (which is not accepted for a list: convert it)"),
        (tuple[int, ...], [1], "list (which is not accepted for a tuple: convert it)"),
        (tuple[int, str], (1,), "tuple of length 1"),
        (list[float], [1, 2, 3, "x"], "list whose item 3 is str"),
        (dict[str, list[int]], {"k": [1, "x"]}, "dict whose value at 'k' is list whose item 1 is str"),
        (dict[str, int], {1: 1}, "dict with a key that is int"),
        (Point, Point("x"), "Point whose field 'x' is str"),  # type: ignore[arg-type]
        (Point, object(), "object"),
        (Colour, 1, "int"),
        (Perm, 4, "int"),
        (dt.datetime, dt.date(2024, 1, 1), "datetime.date"),
        (dt.date, dt.datetime(2024, 1, 1), "datetime.datetime (pass its .date())"),
        (uuid.UUID, "x", "str"),
        (decimal.Decimal, 1.0, "float"),
        (None, 0, "int"),
        (int | None, "x", "str"),
    ],
)
def test_refused(annotation: Any, value: Any, got: str) -> None:
    parameter = SimpleNamespace(name="x", node=node_of(annotation), default=MISSING, keyword_only=False)
    declared: Any = SimpleNamespace(name="total", index=0, parameters=(parameter,), returns=node_of(None))
    with pytest.raises(ArgumentError) as caught:
        MethodCodec("acme.dsp/1", declared).pack_arguments((value,))
    assert caught.value.got.replace("numpy.bool_", "numpy.bool") == got
    expected = compile_node(node_of(annotation)).canonical
    assert str(caught.value) == f"acme.dsp/1.total(): argument 'x' must be {expected}, got {caught.value.got}"
    assert (caught.value.method, caught.value.parameter, caught.value.expected) == ("acme.dsp/1.total", "x", expected)


def test_numpy_is_not_needed_to_refuse() -> None:
    hidden = sys.modules.pop("numpy")
    try:
        with pytest.raises(ArgumentError):
            encode(int, np.float32(1))
    finally:
        sys.modules["numpy"] = hidden


class OddZone(dt.tzinfo):
    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def utcoffset(self, when: dt.datetime | None) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_zones_of_ones_own() -> None:
    assert carried(dt.datetime, dt.datetime(2024, 1, 1, tzinfo=OddZone(None))) == dt.datetime(2024, 1, 1)
    aware = carried(dt.datetime, dt.datetime(2024, 1, 1, tzinfo=OddZone(dt.timedelta(0))))
    assert aware.tzinfo is dt.UTC
    with pytest.raises(ArgumentError, match="whose own code raised ZeroDivisionError: no zone") as caught:
        encode(list[dt.datetime], [dt.datetime(2024, 1, 1, tzinfo=OddZone(ZeroDivisionError("no zone")))])
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(ArgumentError, match="raised TypeError"):
        encode(dt.datetime, dt.datetime(2024, 1, 1, tzinfo=OddZone(5)))


def test_a_list_that_changes_under_the_encoder() -> None:
    for change in (list.clear, lambda items: items.append(items[0])):
        values: list[Any] = []

        class Zone(OddZone):
            def utcoffset(self, when: dt.datetime | None, change: Any = change, values: Any = values) -> Any:
                change(values)

        values.extend([dt.datetime(2024, 1, 1, tzinfo=Zone(None)), dt.datetime(2024, 1, 1)])
        with pytest.raises(ArgumentError, match="changed in length"):
            encode(list[dt.datetime], values)


def test_a_dict_that_changes_under_the_encoder() -> None:
    values: dict[int, Any] = {}

    class Zone(OddZone):
        def utcoffset(self, when: dt.datetime | None) -> Any:
            values[len(values)] = dt.datetime(2024, 1, 1)

    values[0] = dt.datetime(2024, 1, 1, tzinfo=Zone(None))
    with pytest.raises(ArgumentError, match="changed in length"):
        encode(dict[int, dt.datetime], values)


# --- limits -----------------------------------------------------------------------------------------------------------------


def nested(depth: int) -> tuple[TypeNode, list[Any]]:
    node, value = TypeNode(Kind.LIST, (TypeNode(Kind.INT),)), list[Any]()
    for _ in range(depth - 1):
        node, value = TypeNode(Kind.LIST, (node,)), [value]
    return node, value


def test_depth() -> None:
    node, value = nested(64)
    assert Decoder().decode(compile_node(node), Encoder().encode(compile_node(node), value)) == value
    node, value = nested(65)
    with pytest.raises(ArgumentError, match="nested deeper than 64"):
        Encoder().encode(compile_node(node), value)
    with pytest.raises(RemoteProtocolError, match="nested deeper than 64"):
        Decoder().decode(compile_node(node), b"\x09\x01\0\0\0" * 64 + b"\x09\0\0\0\0")


def test_a_value_that_contains_itself() -> None:
    tree = Tree(b"x")
    tree.left = tree
    with pytest.raises(ArgumentError, match="does it contain itself"):
        encode(Tree, tree)


def test_message_limit() -> None:
    encoder = Encoder(limit=100)
    assert len(encoder.encode(codec_of(bytes), b"x" * 95)) == 100
    for annotation, value in ((bytes, b"x" * 96), (bytes, bytearray(96)), (list[int], [1] * 12), (str, "x" * 96)):
        with pytest.raises(ArgumentError, match="larger than 100 bytes"):
            encoder.encode(codec_of(annotation), value)
    assert len(encoder.encode(codec_of(bytes), b"x" * 95)) == 100
    with pytest.raises(LocalProtocolError):
        Encoder(limit=0)


def test_large_messages_and_small_ones_after_them() -> None:
    encoder, decoder, codec = Encoder(), Decoder(), codec_of(bytes)
    for size in (10, 5 << 20, 10, 10, 2 << 20, 3 << 20, 0):
        assert decoder.decode(codec, encoder.encode(codec, b"x" * size)) == b"x" * size


def test_a_long_list_of_a_hostile_length_takes_no_memory() -> None:
    """A count can be no more than the bytes that are left, and no list is made longer than what really comes."""
    with pytest.raises(RemoteProtocolError, match="a length of 4294967295"):
        decode(list[None], "09 ffffffff")
    data = b"\x09" + struct.pack("<I", 200_000) + b"\0" * 200_000
    assert Decoder().decode(codec_of(list[None]), data) == [None] * 200_000
    with pytest.raises(RemoteProtocolError):
        Decoder().decode(codec_of(list[None]), data[:-1] + b"\x01")


@pytest.mark.parametrize(
    ("annotation", "data"),
    [
        (int, ""),
        (int, "03 00"),
        (int, "ff"),
        (int, "04 08000000 0000000000000080"),  # 64 bits fit in tag 3
        (int, "04 09000000 000000000000000000"),  # not the shortest form
        (int, "04 00000000"),
        (int, "05 0000000000000000"),  # a float is no int
        (float, "04 ff000000" + "00" * 254 + "7f"),  # too large
        (bool, "03 0100000000000000"),
        (str, "07 01000000 ff"),
        (bytes, "08 05000000 00"),
        (dt.datetime, "0c" + "ff" * 7 + "7f" + "00" * 9),
        (dt.datetime, "0c" + "00" * 8 + "0100000000000000" + "00"),  # an offset, and naive
        (dt.datetime, "0c" + "00" * 16 + "04"),
        (dt.datetime, "0c" + "00" * 8 + "0060de1d14000000" + "01"),  # 24 h
        (dt.date, "0d 00000000"),
        (dt.date, "0d ffffff7f"),
        (dt.timedelta, "0e 00000000 80510100 00000000"),
        (dt.timedelta, "0e ffffff7f 00000000 00000000"),
        (decimal.Decimal, "0f 01000000 78"),
        (decimal.Decimal, "0f 03000000 315f30"),
        (decimal.Decimal, "0f 00000000"),
        (Colour, "11 04000000 4e4f4e45"),
        (Colour, "11 02000000 3d31"),
        (Perm, "11 02000000 3d38"),
        (Perm, "11 02000000 3d78"),
        (Perm, "11 03000000 3d3037"),
        (tuple[int, int], "0a 01000000 030000000000000000"),
        (Point, "12 00000000"),
        (Point, "12 01000000 0700000000"),
        (int, "00"),
        (int, "0300000000000000 00 00"),
    ],
)
def test_hostile_values(annotation: Any, data: str) -> None:
    with pytest.raises(RemoteProtocolError):
        decode(annotation, data)


def test_an_int_is_accepted_for_a_float() -> None:
    assert decode(float, "03 0300000000000000") == 3.0
    assert decode(float, "04 09000000 000000000000000001") == 2.0**64


def test_fields_that_one_side_does_not_know() -> None:
    one = "030100000000000000"
    assert decode(Point, "12 01000000" + one) == Point(1)
    point = decode(Point, "12 01000000" + one)
    assert point.labels is not decode(Point, "12 01000000" + one).labels
    known = encode(Point, Point(1, 2.0, ["a"]))[5:].hex()
    inline_array = "13 00 66 08 01 00 0000 0200000000000000 1000000000000000" + "00" * 16
    for later in (one, "09 02000000 07 00000000 00", "0b 01000000 00 01", "12 00000000", "0f 00000000", inline_array, "0c" + "00" * 17):
        assert decode(Point, "12 04000000" + known + later) == Point(1, 2.0, ["a"])
    for later in ("14", "09 01000000", "13 01 66 08 00 00 0000" + "00" * 16, "13 00 66 08 00 00 0000 ffffffffffffffff"):
        with pytest.raises(RemoteProtocolError):
            decode(Point, "12 04000000" + known + later)


def test_constructors_that_refuse() -> None:
    @dataclasses.dataclass
    class Picky:
        x: int

        def __post_init__(self) -> None:
            if self.x == 0:
                raise ValueError("zero")

    node = TypeNode(Kind.STRUCT, cls=Picky)
    node.fields = (FieldNode("x", TypeNode(Kind.INT)),)
    codec = compile_node(node)
    assert Decoder().decode(codec, Encoder().encode(codec, Picky(1))) == Picky(1)
    with pytest.raises(RemoteProtocolError, match=r"constructor here refuses \(ValueError: zero\)"):
        Decoder().decode(codec, bytes.fromhex("12 01000000 03 0000000000000000"))


def test_msgspec_structs() -> None:
    msgspec = pytest.importorskip("msgspec")

    class Box(msgspec.Struct):  # type: ignore[name-defined, misc]
        name: str
        size: int = 3

    class Named(msgspec.Struct, kw_only=True):  # type: ignore[name-defined, misc, call-arg]
        name: str
        size: int = 3

    for cls in (Box, Named):
        value = cls(name="a", size=5)
        assert carried(cls, value) == value
        assert decode(cls, "12 01000000 07 01000000 61") == cls(name="a")


# --- arrays -----------------------------------------------------------------------------------------------------------------


def test_arrays_need_a_port() -> None:
    array = np.zeros(2)
    with pytest.raises(LocalProtocolError, match="carries no arrays"):
        encode(np.ndarray, array)
    with pytest.raises(LocalProtocolError, match="carries no arrays"):
        Encoder(_wire.ArrayPort()).encode(codec_of(np.ndarray), array)
    with pytest.raises(LocalProtocolError, match="carries no arrays"):
        decode(np.ndarray, "13")
    with pytest.raises(RemoteProtocolError):
        decode(np.ndarray, "09 00000000")
    assert carried(np.ndarray | None, None) is None


def test_has_arrays() -> None:
    for annotation in (np.ndarray, list[np.ndarray], dict[str, np.ndarray | None]):
        assert _wire.has_arrays(codec_of(annotation))
    for annotation in (int, Tree, dict[str, Point]):
        assert not _wire.has_arrays(codec_of(annotation))
