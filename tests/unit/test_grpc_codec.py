"""Values through real protobuf bytes and back, for every kind; what does not fit, and what a peer made up."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import math
import uuid
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastplug.errors import ArgumentError, CopyRequired, RemoteProtocolError, ResultError
from fastplug.interfaces import interface, interface_of
from fastplug.protocols.grpc.arrays import ArrayCopies
from fastplug.protocols.grpc.codec import MethodCodec
from fastplug.protocols.grpc.schema import schema_of


class Level(enum.Enum):
    LOW = "low"
    HIGH = ["unhashable"]  # noqa: RUF012


class Mode(enum.Flag):
    READ = 1
    WRITE = 2


@dataclasses.dataclass
class Tree:
    value: int
    kids: list[Tree] = dataclasses.field(default_factory=list)
    left: Tree | None = None


INT64 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
OFFSETS = st.timedeltas(dt.timedelta(hours=-23), dt.timedelta(hours=23)).map(dt.timezone)
TREES: st.SearchStrategy[Tree] = st.recursive(
    st.builds(Tree, INT64), lambda inner: st.builds(Tree, INT64, st.lists(inner, max_size=3), st.none() | inner), max_leaves=8
)

# Every kind, alone and where proto cannot nest it without a wrapper; with a strategy for its values.
KINDS: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "none": (None, st.none()),
    "bool": (bool, st.booleans()),
    "int": (int, INT64),
    "float": (float, st.floats(allow_nan=False)),
    "complex": (complex, st.complex_numbers(allow_nan=False)),
    "str": (str, TEXT),
    "bytes": (bytes, st.binary()),
    "datetime": (dt.datetime, st.datetimes(timezones=st.none() | OFFSETS | st.just(dt.UTC))),
    "date": (dt.date, st.dates()),
    "timedelta": (dt.timedelta, st.timedeltas(dt.timedelta(days=-100_000_000), dt.timedelta(days=100_000_000))),
    "decimal": (decimal.Decimal, st.decimals(allow_nan=False)),
    "uuid": (uuid.UUID, st.uuids()),
    "enum": (Level, st.sampled_from(Level)),
    "flag": (Mode, st.sampled_from([Mode(0), Mode.READ, Mode.READ | Mode.WRITE])),
    "struct": (Tree, TREES),
    "list": (list[int], st.lists(INT64)),
    "list of lists": (list[list[str]], st.lists(st.lists(TEXT))),
    "list of optionals": (list[float | None], st.lists(st.none() | st.floats(allow_nan=False))),
    "list of nones": (list[None], st.lists(st.none())),
    "tuple": (tuple[int, list[str], bool | None], st.tuples(INT64, st.lists(TEXT), st.none() | st.booleans())),
    "empty tuple": (tuple[()], st.just(())),
    "sequence": (tuple[bytes, ...], st.lists(st.binary()).map(tuple)),
    "dict of ints": (dict[int, str], st.dictionaries(INT64, TEXT)),
    "dict of bools": (dict[bool, Tree], st.dictionaries(st.booleans(), TREES)),
    "dict of dicts": (dict[str, dict[str, float]], st.dictionaries(TEXT, st.dictionaries(TEXT, st.floats(allow_nan=False)))),
    "dict of lists": (dict[str, list[int]], st.dictionaries(TEXT, st.lists(INT64))),
    "dict of floats": (dict[float, int | None], st.dictionaries(st.floats(allow_nan=False), st.none() | INT64)),
    "dict of tuples": (dict[tuple[int, str], Level], st.dictionaries(st.tuples(INT64, TEXT), st.sampled_from(Level))),
    "optional": (int | None, st.none() | INT64),
    "optional str": (str | None, st.none() | TEXT),
    "optional list": (list[int] | None, st.none() | st.lists(INT64)),
    "optional dict": (dict[str, int] | None, st.none() | st.dictionaries(TEXT, INT64)),
    "optional struct": (Tree | None, st.none() | TREES),
}


def codec_of(annotation: Any, copies: ArrayCopies | None = None) -> MethodCodec:
    """The codec of ``echo(x: annotation) -> annotation``."""

    class Echo(Protocol):
        def echo(self, x): ...  # type: ignore[no-untyped-def]

    Echo.echo.__annotations__ = {"x": annotation, "return": annotation}
    declared = interface_of(interface("test.echo/1")(Echo))
    return MethodCodec(schema_of(declared).rpcs[0], declared.name, copies or ArrayCopies())


def through(codec: MethodCodec, value: Any) -> Any:
    """The value as the handler gets it, returned by the handler as the caller gets it."""
    (argument,), _ = codec.decode_arguments(codec.encode_arguments((value,), {}))
    return codec.decode_result(codec.encode_result(argument))


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind: str) -> None:
    annotation, values = KINDS[kind]
    codec = codec_of(annotation)

    @given(values)
    def check(value: Any) -> None:
        found = through(codec, value)
        assert found == value
        assert type(found) is type(value)

    check()


def test_not_a_number_infinity_and_minus_zero() -> None:
    codec = codec_of(list[float])
    nan, infinity, zero = through(codec, [math.nan, -math.inf, -0.0])
    assert math.isnan(nan)
    assert (infinity, math.copysign(1, zero)) == (-math.inf, -1.0)
    assert through(codec_of(decimal.Decimal), decimal.Decimal("sNaN12")).is_snan()


def test_an_aware_datetime_keeps_its_offset() -> None:
    moment = dt.datetime(2013, 1, 1, 5, tzinfo=dt.timezone(-dt.timedelta(hours=5, seconds=7)))
    found = through(codec_of(dt.datetime), moment)
    assert (found, found.utcoffset()) == (moment, moment.utcoffset())


ACCEPTED: dict[str, tuple[Any, Any, Any]] = {
    "int for float": (float, 3, 3.0),
    "bool for int": (int, True, 1),
    "int for complex": (complex, 2, 2 + 0j),
    "numpy int": (int, np.int16(-3), -3),
    "numpy uint": (int, np.uint64(7), 7),
    "numpy float": (float, np.float32(0.5), 0.5),
    "numpy int for float": (float, np.int64(4), 4.0),
    "numpy bool": (bool, np.bool_(True), True),
    "numpy complex": (complex, np.complex64(1 + 2j), 1 + 2j),
    "numpy str": (str, np.str_("a"), "a"),
    "bytearray": (bytes, bytearray(b"ab"), b"ab"),
    "memoryview": (bytes, memoryview(b"abcd")[::2], b"ac"),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted(case: str) -> None:
    annotation, value, expected = ACCEPTED[case]
    found = through(codec_of(annotation), value)
    assert (found, type(found)) == (expected, type(expected))


def deep(levels: int) -> Tree:
    tree = Tree(0)
    for _ in range(levels):
        tree = Tree(0, [], tree)
    return tree


REFUSED: dict[str, tuple[Any, Any, str]] = {
    "int for bool": (bool, 1, "argument 'x' must be bool, got int"),
    "float for int": (int, 1.0, "must be int, got float"),
    "numpy float for int": (int, np.float64(1), "must be int, got numpy.float64"),
    "str for bytes": (bytes, "a", "must be bytes, got str"),
    "int of 64 bits": (int, 2**63, "beyond 64 bits"),
    "an int too large for float": (float, 10**400, "too large for a float"),
    "timedelta beyond int64": (dt.timedelta, dt.timedelta.max, "beyond 64 bits of microseconds"),
    "surrogate": (str, "a\ud800", "lone surrogate at 1"),
    "datetime for date": (dt.date, dt.datetime(2020, 1, 1), "pass its .date()"),
    "tuple for list": (list[int], (1,), "convert it"),
    "list for tuple": (tuple[int, ...], [1], "convert it"),
    "tuple length": (tuple[int, int], (1, 2, 3), "tuple of length 3"),
    "item": (list[float], [1.0, 2.0, 3.0, "x"], "must be list[float], got list whose item 3 is str"),
    "nested item": (list[list[int]], [[1], [2, None]], "list whose item 1 is list whose item 1 is None"),
    "key": (dict[str, int], {1: 2}, "dict with a key that is int"),
    "value": (dict[str, list[int]], {"a": [1.5]}, "dict whose value at 'a' is list whose item 0 is float"),
    "entry": (dict[float, int], {1.5: "x"}, "dict whose value at 1.5 is str"),
    "field": (Tree, Tree(1, [Tree("x")]), "Tree whose field 'kids' is list whose item 0 is Tree whose field 'value' is str"),  # type: ignore[arg-type]
    "another enum": (Level, Mode.READ, "must be Level, got"),
    "too deep": (Tree, deep(64), "nested deeper than 64 levels"),
    "object array": (npt.NDArray[Any], np.array([object()]), "Python objects do not travel"),
    "other dtype": (npt.NDArray[np.float64], np.zeros(2, np.float32), "must be ndarray[float64], got numpy.ndarray[float32]"),
    "masked": (npt.NDArray[Any], np.ma.masked_array([1.0], [True]), "mask"),
    "list for array": (npt.NDArray[Any], [1.0], "got list"),
    "None": (int, None, "got None"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    annotation, value, text = REFUSED[case]
    codec = codec_of(annotation)
    with pytest.raises(ArgumentError) as refused:
        codec.encode_arguments((value,), {})
    assert text in str(refused.value)
    assert str(refused.value).startswith("test.echo/1.echo(): argument 'x' must be ")
    assert (refused.value.method, refused.value.parameter) == ("test.echo/1.echo", "x")
    with pytest.raises(ResultError, match=r"test\.echo/1\.echo\(\)"):
        codec.encode_result(value)


def test_the_deepest_value_that_fits() -> None:
    assert through(codec_of(Tree), deep(62)) == deep(62)  # 63 structs, and the list in the innermost


ARRAYS = {
    "0-d": np.array(1.5),
    "empty": np.zeros((0, 3), np.int8),
    "matrix": np.arange(6, dtype=np.uint16).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "strided": np.arange(10)[::-2],
    "broadcast": np.broadcast_to(np.float32(2), (2, 2)),
    "bool": np.array([True, False]),
    "complex": np.array([1 + 2j], np.complex64),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_arrays(case: str) -> None:
    value = ARRAYS[case]
    found = through(codec_of(npt.NDArray[Any]), value)
    assert (found.dtype, found.shape) == (value.dtype, value.shape)
    assert np.array_equal(found, value)
    assert found.flags.f_contiguous == (value.flags.f_contiguous or value.size == 1 or value.ndim < 2 or value.size == 0)
    assert not found.flags.writeable


def test_strict_zero_copy_refuses_arrays_of_1_kib() -> None:
    codec = codec_of(npt.NDArray[np.uint8], ArrayCopies(strict=True))
    assert codec.encode_arguments((np.zeros(1023, np.uint8),), {})
    with pytest.raises(CopyRequired):
        codec.encode_arguments((np.zeros(1024, np.uint8),), {})


def made_up(annotation: Any, fill: Callable[[Any], object]) -> bytes:
    """A response that no codec of ours would send."""

    class Echo(Protocol):
        def echo(self, x): ...  # type: ignore[no-untyped-def]

    Echo.echo.__annotations__ = {"x": annotation, "return": annotation}
    message = schema_of(interface_of(interface("test.echo/1")(Echo))).rpcs[0].response()
    fill(message)
    data: bytes = message.SerializeToString()
    return data


def array(dtype: str, shape: list[int], data: bytes) -> Callable[[Any], object]:
    def fill(message: Any) -> None:
        message.result.dtype, message.result.data = dtype, data
        message.result.shape.extend(shape)

    return fill


FLOATS = npt.NDArray[np.float64]
MADE_UP: dict[str, tuple[Any, Callable[[Any], object]]] = {
    "no date": (dt.date, lambda m: setattr(m, "result", "yesterday")),
    "nothing for a date": (dt.datetime, lambda m: None),
    "no decimal": (decimal.Decimal, lambda m: setattr(m, "result", "1_0")),
    "no uuid": (uuid.UUID, lambda m: setattr(m, "result", "x")),
    "unspecified enum": (Level, lambda m: None),
    "unknown enum": (Level, lambda m: setattr(m, "result", 7)),
    "unknown flag": (Mode, lambda m: setattr(m, "result", 64)),
    "no struct": (Tree, lambda m: None),
    "no array": (FLOATS, lambda m: None),
    "dtype": (FLOATS, array("float32", [1], bytes(4))),
    "object dtype": (npt.NDArray[Any], array("object", [1], bytes(8))),
    "too few bytes": (FLOATS, array("float64", [2], bytes(8))),
    "negative shape": (FLOATS, array("float64", [-1, -1], bytes(8))),
    "huge shape": (FLOATS, array("float64", [2**62, 2**62, 0], bytes(8))),
    "too many dimensions": (FLOATS, array("float64", [1] * 65, bytes(8))),
}


@pytest.mark.parametrize("case", MADE_UP)
def test_what_a_peer_made_up(case: str) -> None:
    annotation, fill = MADE_UP[case]
    with pytest.raises(RemoteProtocolError, match=r"test\.echo/1\.echo\(\): the plugin's response is malformed"):
        codec_of(annotation).decode_result(made_up(annotation, fill))


@given(st.binary())
def test_any_bytes_are_a_value_or_the_peers_fault(data: bytes) -> None:
    try:
        CODEC.decode_result(data)
    except RemoteProtocolError as error:
        assert "malformed" in str(error)  # noqa: PT017  either is right


@interface("test.defaults/1")
class Defaults(Protocol):
    def take(self, a: int, b: int = 5, c: list[int] = [1], d: int | None = 7, *, e: str = "e") -> int: ...  # noqa: B006


CODEC = codec_of(tuple[Tree, dict[float, Level | None], dt.datetime, decimal.Decimal, npt.NDArray[Any]])


def test_defaults_and_binding() -> None:
    codec = MethodCodec(schema_of(interface_of(Defaults)).rpcs[0], "test.defaults/1", ArrayCopies())

    def bound(*args: Any, **kwargs: Any) -> tuple[list[Any], dict[str, Any]]:
        return codec.decode_arguments(codec.encode_arguments(args, kwargs))

    assert bound(1) == ([1, 5, [1], 7], {"e": "e"})
    assert bound(1, 0, [], None, e="") == ([1, 0, [], None], {"e": ""})
    assert bound(1, d=3) == ([1, 5, [1], 3], {"e": "e"})
    for args, kwargs, text in (
        ((), {}, "missing 1 required positional argument: 'a'"),
        ((1, 2, [], 4, 5), {}, "takes 4 positional arguments but 5 were given"),
        ((1,), {"a": 2}, "multiple values for argument 'a'"),
        ((1,), {"z": 2}, "unexpected keyword argument 'z'"),
    ):
        with pytest.raises(ArgumentError, match=text):
            codec.encode_arguments(args, kwargs)


def test_fields_that_an_older_peer_does_not_know_take_their_defaults() -> None:
    @dataclasses.dataclass
    class Point:
        x: float

    old = codec_of(Point)
    data = old.encode_result(Point(1.5))

    @dataclasses.dataclass
    class Newer:
        x: float
        label: str = "new"
        weight: float = 0.5
        tags: list[str] = dataclasses.field(default_factory=lambda: ["fresh"])
        limit: int | None = 3

    Newer.__name__ = Newer.__qualname__ = "Point"
    assert codec_of(Newer).decode_result(data) == Newer(1.5, "new", 0.5, ["fresh"], 3)
    for value in (Newer(1.0, tags=[], limit=None), Newer(1.0, tags=["a"], limit=0), Newer(1.0)):
        assert through(codec_of(Newer), value) == value
    assert old.decode_result(codec_of(Newer).encode_result(Newer(2.5, "", 0.0))) == Point(2.5)
