"""A row per kind of annotation: values go through an argument and come back as a result, the same in type and value."""

from __future__ import annotations

import array
import datetime as dt
import decimal
import math
import struct
import uuid
from collections.abc import Callable, Iterator
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from tests.conformance.conftest import started
from tests.plugins.kinds_api import POINT, Access, Box, Colour, Kinds, Leaf, Level, Packed, Tree
from tests.plugins.same import difference

import fastplug

INF, NAN = math.inf, math.nan
UTC, BERLIN = dt.timezone.utc, ZoneInfo("Europe/Berlin")  # noqa: UP017  the alias is 3.11's; both are the same object
ODD = dt.timezone(dt.timedelta(hours=-3, minutes=-7, seconds=-1))
FLOATS = np.linspace(-1, 1, 5)
BIG = np.arange(4096.0)

# method -> values that come back as they went
SAME: dict[str, list[Any]] = {
    "a_none": [None],
    "a_bool": [True, False],
    "a_int": [0, 1, -1, 127, 128, 2**31, -(2**31) - 1, 2**63 - 1, -(2**63)],
    "a_float": [0.0, -0.0, 1.5, INF, -INF, NAN, 5e-324, 1.7976931348623157e308],
    "a_complex": [0j, complex(-0.0, 0.0), 1 - 2j, complex(INF, NAN)],
    "a_str": ["", "a", "nul \0 in it", "é 漢 \U0001f40d", "x" * 5000],
    "a_bytes": [b"", b"\0\xff", bytes(range(256)) * 20],
    "a_buffer": [memoryview(b""), memoryview(b"\0\xff"), memoryview(b"x" * 1023), memoryview(bytes(range(256)) * 400)],
    "buffers": [[], [memoryview(b"a"), memoryview(b"b" * 5000), memoryview(b"")]],
    "a_datetime": [
        dt.datetime(1, 1, 1), dt.datetime(9999, 12, 31, 23, 59, 59, 999999), dt.datetime(1969, 12, 31, 23, 59, 59, 1),
        dt.datetime(2024, 2, 29, 12), dt.datetime(2024, 1, 1, tzinfo=UTC), dt.datetime(2024, 10, 27, 2, 30, tzinfo=ODD),
        dt.datetime(1900, 2, 28, 0, 0, 0, 7, tzinfo=UTC),
    ],
    "a_date": [dt.date(1, 1, 1), dt.date(1970, 1, 1), dt.date(2000, 2, 29), dt.date(9999, 12, 31)],
    "a_timedelta": [
        dt.timedelta(0), dt.timedelta(microseconds=-1), dt.timedelta(days=3, seconds=5, microseconds=7), dt.timedelta(days=-1000, hours=3),
    ],
    "a_decimal": [
        decimal.Decimal(text)
        for text in ("0", "-0.00", "1E+1000", "1.10", "Infinity", "-Infinity", "NaN", "sNaN", "123456789012345678901234567890.5")
    ],
    "a_uuid": [uuid.UUID(int=0), uuid.UUID("12345678-1234-5678-1234-567812345678"), uuid.UUID(int=2**128 - 1)],
    "a_enum": [Colour.RED, Colour.GREEN, Colour.CRIMSON],
    "a_int_enum": [Level.LOW, Level.HIGH],
    "a_flag": [Access.READ, Access.READ | Access.EXECUTE, Access(0), ~Access.READ],
    "a_array": [FLOATS, BIG, np.empty(0), np.array(2.5), np.full((2, 3), NAN)],
    "any_array": [FLOATS, np.arange(6, dtype=np.uint8).reshape(2, 3), np.array([True, False]), np.array(1 + 2j)],
    "times": [np.array(["NaT", "1969-12-31T23"], "M8[h]"), np.arange(500).astype("M8[as]"), np.empty(0, "M8"), np.zeros(2, ">M8[25s]")],
    "spans": [np.arange(-3, 3).astype("m8[ns]"), np.zeros((2, 300), "m8")],
    "milliseconds": [np.arange(300).astype("M8[ms]")],
    "texts": [np.array(["", "é", "\U0001f40d"]), np.array(["a" * 500] * 3), np.zeros(0, "U9")],
    "ascii": [np.array([b"", b"\xff"]), np.zeros((300, 3), "S20")],
    "voids": [np.zeros(400, POINT), np.array([b"\0\1"], "V2"), np.zeros(3, [("a", ">i2")])],
    "points": [np.array([(1.5, "2024-01-01", ("a", ""))] * 50, POINT), np.zeros((), POINT), np.zeros((0, 2), POINT)],
    "list_int": [[], [1], [3, 2, 1], list(range(2000))],
    "list_list": [[], [[]], [[], ["a"], ["b", ""]]],
    "list_optional": [[], [None], [1, None, 0]],
    "pair": [(0, ""), (-5, "x")],
    "unit": [()],
    "sequence": [(), (1.0,), (1.0, -0.0, NAN)],
    "optional_int": [None, 0, 7],
    "optional_list": [None, [], [1, 2]],
    "optional_struct": [None, Box(0.0), Box(1.0, 2.0, "b")],
    "optional_array": [None, np.empty(0), BIG],
    "tuple_arrays": [(np.arange(3, dtype=np.float32), np.arange(500))],
    "dict_str": [{}, {"": 0, "b": 1, "a": 2}],
    "dict_int": [{}, {-1: [], 2: ["x", "y"]}],
    "dict_bool": [{}, {True: "t", False: "f"}],
    "dict_float": [{}, {1.5: 1, INF: 2}],
    "dict_date": [{}, {dt.date(2020, 1, 1): {}, dt.date(1, 1, 1): {"x": True}}],
    "dict_enum": [{}, {Colour.GREEN: 1.0, Colour.RED: 2.0}],
    "dict_tuple": [{}, {(1, "a"): b"x", (2, ""): b""}],
    "dict_optional": [{}, {"a": None, "b": 0}],
    "dict_optional_key": [{}, {None: 1, "": 2}],
    "struct": [Box(1.5), Box(-0.0, INF, ""), Box(1.0, 2.0, None)],
    "leaf": [Leaf("a", FLOATS), Leaf("b", BIG, np.array([True]), ["t"])],
    "tree": [Tree(1), Tree(1, [Tree(2, [Tree(3)]), Tree(4)], Tree(5))],
    "packed": [Packed(1), Packed(2, [(1.0, 2.0)], np.arange(5, dtype=np.int32))],
    "deep": [[], [{}], [{"a": Leaf("x", BIG), "b": Leaf("y", FLOATS, np.zeros(3, bool))}, {"": Leaf("", np.empty((0, 4)))}]],
    "deeper": [{}, {"k": ([], Access(0)), "l": ([None, Leaf("x", FLOATS)], Access.WRITE)}],
}  # fmt: skip
# method, value, what arrives instead
CONVERTED: list[tuple[str, Any, Any]] = [
    ("a_float", 3, 3.0),
    ("a_float", True, 1.0),
    ("a_float", np.float32(0.5), 0.5),
    ("a_float", np.int64(-4), -4.0),
    ("a_complex", 2, 2 + 0j),
    ("a_complex", 2.5, 2.5 + 0j),
    ("a_complex", np.complex64(1 + 2j), 1 + 2j),
    ("a_int", True, 1),
    ("a_int", np.uint8(200), 200),
    ("a_int", np.int64(-(2**63)), -(2**63)),
    ("a_int", Level.HIGH, 7),
    ("a_bool", np.bool_(True), True),
    ("a_bytes", bytearray(b"ab"), b"ab"),
    ("a_bytes", memoryview(b"abcd")[::2], b"ac"),
    ("a_buffer", b"bytes", memoryview(b"bytes")),
    ("a_buffer", bytearray(b"ab" * 5000), memoryview(b"ab" * 5000)),
    ("a_buffer", array.array("d", range(500)), memoryview(struct.pack("500d", *range(500)))),
    ("a_buffer", np.arange(12, dtype="i2").reshape(3, 4).T, memoryview(np.arange(12, dtype="i2").reshape(3, 4).T.tobytes())),
    ("a_buffer", memoryview(b"abcd" * 2000)[::-2], memoryview((b"abcd" * 2000)[::-2])),
    ("a_buffer", np.zeros(300, [("O", "f8"), ("b", "i2")]), memoryview(bytes(3000))),
    ("a_datetime", dt.datetime(2024, 7, 1, tzinfo=BERLIN), dt.datetime(2024, 7, 1, tzinfo=dt.timezone(dt.timedelta(hours=2)))),
    ("list_int", [np.int32(1), True], [1, 1]),
    ("sequence", (1, np.float64(2)), (1.0, 2.0)),
    ("dict_float", {1: 2}, {1.0: 2}),
    ("struct", Box(1, np.float32(2)), Box(1.0, 2.0)),
    ("packed", Packed(np.int8(3), [(1, 2)]), Packed(3, [(1.0, 2.0)])),  # type: ignore[arg-type]
]
# A fold says which of two equal wall clock times is meant; ISO 8601, the form over gRPC, says it by the offset, and cannot for naive ones.
FOLDS = [dt.datetime(2024, 10, 27, 2, 30, fold=1), dt.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=UTC)]
# method, value that is refused, and what the error says of it
REFUSED: list[tuple[str, Any, str]] = [
    ("a_none", 0, "int"),
    ("a_bool", 1, "int"),
    ("a_int", 1.0, "float"),
    ("a_int", "1", "str"),
    ("a_int", None, "None"),
    ("a_float", "1", "str"),
    ("a_float", 10**400, "too large for a float"),
    ("a_float", 1j, "complex"),
    ("a_str", b"x", "bytes"),
    ("a_str", "\ud800", "lone surrogate"),
    ("a_bytes", "x", "str"),
    ("a_buffer", "text", "str"),
    ("a_buffer", np.array([object()] * 500), "Python objects"),
    ("a_buffer", np.zeros(3, "M8[s]"), "cannot be had"),
    ("buffers", [b"", 5], "int"),
    ("a_datetime", dt.date(2020, 1, 1), "date"),
    ("a_date", dt.datetime(2020, 1, 1), "datetime"),
    ("a_timedelta", 5, "int"),
    ("a_decimal", 1.5, "float"),
    ("a_uuid", "12345678123456781234567812345678", "str"),
    ("a_enum", "red", "str"),
    ("a_enum", Level.LOW, "Level"),
    ("a_flag", 1, "int"),
    ("a_array", [1.0], "list"),
    ("times", np.zeros(2, "m8[s]"), "timedelta64[s]"),
    ("milliseconds", np.zeros(2, "M8[s]"), "datetime64[s]"),
    ("texts", np.zeros(2, "S3"), "|S3"),
    ("voids", np.zeros(2), "float64"),
    ("points", np.zeros(2, POINT.descr[:2]), "{x: float64 @0, at: datetime64[ms] @8; 16 bytes}"),
    ("list_int", (1,), "tuple"),
    ("list_int", [1, "x"], "item 1"),
    ("pair", (1,), ""),
    ("pair", [1, "x"], "list"),
    ("sequence", [1.0], "list"),
    ("dict_str", {1: 1}, ""),
    ("dict_str", {"a": "b"}, "'a'"),
    ("dict_str", [("a", 1)], "list"),
    ("struct", (1.0, 2.0), "tuple"),
    ("struct", Box("x"), "width"),  # type: ignore[arg-type]
    ("deep", [{"k": Leaf("x", np.arange(3))}], "weights"),
]


@pytest.fixture(scope="module")
def kinds(transport: str) -> Iterator[Kinds]:
    with started(transport, "tests.plugins.kinds_plugin:Echo") as client:
        yield client.dispense(Kinds)


def test_every_method_has_a_row() -> None:
    assert set(SAME) == {name for name in vars(Kinds) if not name.startswith("_")}


@pytest.mark.parametrize("method", SAME)
def test_a_value_comes_back_as_it_went(kinds: Kinds, method: str) -> None:
    for value in SAME[method]:
        assert difference(value, getattr(kinds, method)(value)) is None


@pytest.mark.parametrize("row", CONVERTED, ids=lambda row: f"{row[0]}-{row[1]!r:.60}")
def test_what_stands_for_a_type_arrives_as_that_type(kinds: Kinds, row: tuple[str, Any, Any]) -> None:
    method, value, expected = row
    assert difference(expected, getattr(kinds, method)(value)) is None


@pytest.mark.parametrize("value", FOLDS, ids=str)
def test_a_fold_travels_where_the_form_can_say_it(kinds: Kinds, transport: str, value: dt.datetime) -> None:
    expected = value.replace(fold=0) if transport == "grpc" else value
    assert difference(expected, kinds.a_datetime(value)) is None


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 2**64, 10**400, -(10**5000)], ids=lambda value: f"{value.bit_length()} bits")
def test_an_int_of_any_size_travels_on_the_fast_protocol(kinds: Kinds, transport: str, value: int) -> None:
    if transport != "grpc":
        assert kinds.a_int(value) == value
        return
    with pytest.raises(fastplug.ArgumentError, match="beyond 64 bits, which gRPC cannot carry") as caught:
        kinds.a_int(value)
    assert caught.value.parameter == "x"


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: f"{row[0]}-{type(row[1]).__name__}-{row[2]}")
def test_what_does_not_fit_is_refused_by_name(kinds: Kinds, row: tuple[str, Any, str]) -> None:
    method, value, said = row
    with pytest.raises(fastplug.ArgumentError) as caught:
        getattr(kinds, method)(value)
    error = caught.value
    assert isinstance(error, TypeError)
    assert error.method == f"test.kinds/1.{method}"
    assert error.parameter == "x"
    assert said in error.got
    assert "'x'" in str(error) or " x" in str(error)
    assert kinds.a_int(5) == 5


def test_a_value_is_a_copy(kinds: Kinds) -> None:
    value = [{"a": Leaf("x", BIG)}]
    back = kinds.deep(value)
    assert back is not value
    assert back[0]["a"] is not value[0]["a"]


@pytest.mark.transports("shm", "socket", "inproc")
def test_the_fast_protocol_keeps_the_order_of_a_dict(kinds: Kinds) -> None:
    value = {str(i * 7919 % 100): i for i in range(100)}
    assert list(kinds.dict_str(value)) == list(value)


def test_a_list_that_contains_itself_ends_in_an_error(kinds: Kinds) -> None:
    tree = Tree(1)
    tree.children.append(tree)
    with pytest.raises(fastplug.ArgumentError):
        kinds.tree(tree)
    assert kinds.a_int(1) == 1


@pytest.fixture
def roomy(start: Callable[..., fastplug.Client]) -> Kinds:
    """A connection of its own: what is large makes memory grow, and goes with it."""
    return start("tests.plugins.kinds_plugin:Echo").dispense(Kinds)


def test_large_values_travel(roomy: Kinds) -> None:
    data = bytes(range(256)) * (20 << 12)  # 20 MiB
    assert len(data) == 20 << 20
    assert roomy.a_bytes(data) == data
    table = {f"key {i}": i for i in range(200_000)}
    assert roomy.dict_str(table) == table
    text = "漢" * (1 << 20)
    assert roomy.a_str(text) == text
    assert roomy.list_int(list(range(100_000))) == list(range(100_000))
    assert roomy.a_int(3) == 3


def test_large_arrays_travel_in_any_place(roomy: Kinds) -> None:
    leaves = [{str(i): Leaf(str(i), np.full(300_000, i, np.float64))} for i in range(8)]
    assert difference(leaves, roomy.deep(leaves)) is None
