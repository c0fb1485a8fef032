# ruff: noqa: UP006, UP007, UP035, UP045  -- every spelling of a type is the subject here
from __future__ import annotations

import array
import collections.abc as abc
import dataclasses
import datetime as dt
import decimal
import enum
import pathlib
import subprocess
import sys
import typing
import uuid
from typing import Annotated, Any, Dict, List, NamedTuple, NewType, Optional, Tuple, TypeVar, Union

import numpy as np
import numpy.typing as npt
import pytest
import typing_extensions

from fastplug.annotation import DEPTH_LIMIT, MISSING, Kind, TypeNode, resolve
from fastplug.errors import ConfigError
from fastplug.signature import canonical

msgspec = pytest.importorskip("msgspec")


class Color(enum.Enum):
    RED = 1
    BLUE = "blue"


class Access(enum.IntFlag):
    READ = 1
    WRITE = 2


class NoMembers(enum.Enum):
    pass


@dataclasses.dataclass
class Point:
    x: float
    y: float = 0.5
    tags: list[str] = dataclasses.field(default_factory=lambda: ["new"])
    unit: typing.ClassVar[str] = "m"


@dataclasses.dataclass
class Tree:
    value: int
    children: list[Tree] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Ping:
    pong: Pong | None = None


@dataclasses.dataclass
class Pong:
    ping: Ping


@dataclasses.dataclass(kw_only=True)
class Labelled(Point):
    label: str


class Record(msgspec.Struct):  # type: ignore[misc,name-defined]  # msgspec is looked up at run time
    a: int
    b: List[int] = msgspec.field(default_factory=list)
    c: float = 1.5
    d: Optional[Record] = None


class Keyworded(msgspec.Struct, kw_only=True):  # type: ignore[misc,name-defined,call-arg]
    a: int = 1
    b: str


T = TypeVar("T")
UserId = NewType("UserId", int)


def of(annotation: Any) -> TypeNode:
    return resolve(annotation, where="acme.dsp/1.f, parameter x", globalns=globals())


POINT = np.dtype([("x", "f8"), ("t", "M8[D]", (2,))])
Points = Annotated[npt.NDArray[np.void], POINT]


ACCEPTED: list[tuple[Any, str]] = [
    (None, "None"),
    (type(None), "None"),
    (bool, "bool"),
    (int, "int"),
    (float, "float"),
    (complex, "complex"),
    (str, "str"),
    (bytes, "bytes"),
    (dt.datetime, "datetime"),
    (dt.date, "date"),
    (dt.timedelta, "timedelta"),
    (decimal.Decimal, "Decimal"),
    (uuid.UUID, "UUID"),
    (list[int], "list[int]"),
    (List[int], "list[int]"),
    (List["int"], "list[int]"),
    (list["int"], "list[int]"),
    (tuple[int, str], "tuple[int, str]"),
    (Tuple[int, str], "tuple[int, str]"),
    (tuple[int, ...], "tuple[int, ...]"),
    (Tuple[int, ...], "tuple[int, ...]"),
    (tuple[()], "tuple[()]"),
    (Tuple[()], "tuple[()]"),
    (dict[str, list[int]], "dict[str, list[int]]"),
    (Dict[str, List[int]], "dict[str, list[int]]"),
    (dict[tuple[int, Color | None], float], "dict[tuple[int, Color?], float]"),
    (Optional[int], "int?"),
    (Union[int, None], "int?"),
    (int | None, "int?"),
    (None | int, "int?"),
    ("int | None", "int?"),
    (Optional["Tree"], "Tree?"),
    (Optional[NewType("Maybe", Optional[int])], "int?"),
    (Annotated[int, ["unhashable"]], "int"),
    (list[Annotated[Optional[int], "..."]], "list[int?]"),
    (UserId, "int"),
    (Color, "Color"),
    (Access, "Access"),
    (Point, "Point"),
    (Record, "Record"),
    (memoryview, "buffer"),
    (bytes | memoryview, "buffer"),
    (bytes | bytearray | memoryview, "buffer"),
    (Optional[Union[bytes, memoryview]], "buffer?"),
    (bytes | memoryview | None, "buffer?"),
    (typing_extensions.Buffer, "buffer"),
    (typing_extensions.Buffer | bytes, "buffer"),
    (list[memoryview], "list[buffer]"),
    (np.ndarray, "ndarray"),
    (npt.NDArray, "ndarray"),
    (npt.NDArray[Any], "ndarray"),
    (npt.NDArray[np.generic], "ndarray"),
    (np.ndarray[Any, Any], "ndarray"),
    (np.ndarray[Any, np.dtype[Any]], "ndarray"),
    (np.ndarray[Any, np.dtype[np.float64]], "ndarray[float64]"),
    (np.ndarray[tuple[int, int], np.dtype[np.int8]], "ndarray[int8]"),
    (npt.NDArray[np.bool_], "ndarray[bool]"),
    (npt.NDArray[np.longlong], "ndarray[int64]"),
    (npt.NDArray[np.complex64], "ndarray[complex64]"),
    (list[npt.NDArray[np.uint16]], "list[ndarray[uint16]]"),
    (npt.NDArray[np.datetime64], "ndarray[datetime64]"),
    (npt.NDArray[np.timedelta64], "ndarray[timedelta64]"),
    (npt.NDArray[np.str_], "ndarray[str]"),
    (npt.NDArray[np.bytes_], "ndarray[bytes]"),
    (npt.NDArray[np.void], "ndarray[void]"),
    (Annotated[npt.NDArray[np.datetime64], np.dtype("M8[ns]")], "ndarray[datetime64[ns]]"),
    (Annotated[np.ndarray, np.dtype("U5")], "ndarray[<U5]"),
    (Annotated[npt.NDArray[Any], "what it means", np.dtype(">f8")], "ndarray[>f8]"),
    (Annotated[Annotated[npt.NDArray[np.float64], 5], np.dtype(np.float64)], "ndarray[float64]"),
    (Annotated[npt.NDArray[np.void], POINT], "ndarray[{x: float64 @0, t: datetime64[D](2,) @8; 24 bytes}]"),
    (Annotated[npt.NDArray[np.generic], POINT], "ndarray[{x: float64 @0, t: datetime64[D](2,) @8; 24 bytes}]"),
    (Points, "ndarray[{x: float64 @0, t: datetime64[D](2,) @8; 24 bytes}]"),
    ("Points | None", "ndarray[{x: float64 @0, t: datetime64[D](2,) @8; 24 bytes}]?"),
    (list[Points], "list[ndarray[{x: float64 @0, t: datetime64[D](2,) @8; 24 bytes}]]"),
    (Annotated[int, np.dtype("U5")], "int"),
]
if hasattr(np, "dtypes") and hasattr(np.dtypes, "StringDType"):
    ACCEPTED += [
        (np.ndarray[Any, np.dtypes.StringDType], "ndarray[StringDType]"),
        (Annotated[npt.NDArray[Any], np.dtypes.StringDType(na_object=None)], "ndarray[StringDType[None]]"),
    ]


@pytest.mark.parametrize(("annotation", "text"), ACCEPTED, ids=lambda value: value if isinstance(value, str) else "")
def test_every_spelling_has_one_meaning(annotation: Any, text: str) -> None:
    assert canonical(of(annotation)) == text


class Text(str):
    __slots__ = ()


class Pair(NamedTuple):
    a: int


class Options(typing.TypedDict):
    a: int


@dataclasses.dataclass
class Box(typing.Generic[T]):
    content: T


REFUSED: list[tuple[Any, str]] = [
    (list, "list[int]"),
    (typing.List, "list[int]"),
    (tuple, "tuple[int, ...]"),
    (typing.Tuple, "tuple[int, ...]"),
    (dict, "dict[str, int]"),
    (typing.Dict, "dict[str, int]"),
    (Any, "name one type"),
    (object, "name one type"),
    (int | str, "several types"),
    (Union[int, str, None], "several types"),
    (abc.Callable[[int], None], "a callback is a whole parameter"),
    (typing.Callable, "a callback is a whole parameter"),
    (abc.Iterator[int], "a stream is a whole result"),
    (typing.Iterator, "a stream is a whole result"),
    (typing.Generator[int, None, None], "a stream is a whole result"),
    (abc.AsyncIterator[int], "a stream is a whole result"),
    (abc.Awaitable[int], "`async def`"),
    (abc.Sequence[int], "write list"),
    (typing.Sequence[int], "write list"),
    (abc.Iterable[int], "write list"),
    (set[int], "write list"),
    (frozenset, "write list"),
    (abc.Mapping[str, int], "write dict"),
    (bytearray, "write bytes"),
    (array.array, "write memoryview"),
    (bytes | bytearray, "several types"),
    (memoryview | str, "several types"),
    (typing.Literal["a"], "Enum"),
    (T, "no type parameters"),
    (list[T], "no type parameters"),  # type: ignore[valid-type]
    (Text, "write str instead"),
    (Pair, "dataclass"),
    (Options, "dataclass"),
    (Box, "is generic"),
    (Box[int], "is generic"),
    (NoMembers, "no members"),
    (dt.time, "docs/wire.md"),
    (pathlib.Path, "docs/wire.md"),
    (type[int], "docs/wire.md"),
    (3, "docs/wire.md"),
    (np.float64, "write bool, int, float or complex"),
    (np.ma.MaskedArray, "data and the mask"),
    (np.matrix, "NDArray"),
    (npt.NDArray[np.floating[Any]], "np.float64"),
    (npt.NDArray[np.object_], "np.float64"),
    (npt.NDArray[np.flexible], "np.float64"),
    (Annotated[npt.NDArray[np.float64], np.dtype("f4")], "at the same time"),
    (Annotated[npt.NDArray[np.void], np.dtype("O")], "at the same time"),
    (Annotated[npt.NDArray[Any], np.dtype("O")], "objects do not travel"),
    (Annotated[npt.NDArray[Any], np.dtype([("a", "O")])], "objects do not travel"),
    (Annotated[npt.NDArray[Any], np.dtype([(("title", "a"), "f8")])], "titles"),
    (Annotated[npt.NDArray[Any], np.dtype(("f8", (3,)))], "dtype of its items"),
    (Annotated[npt.NDArray[Any], np.dtype("U")], "say their length"),
    (npt.NDArray[T], "np.float64"),  # type: ignore[valid-type]
    (dict[list[int], int], "keys"),
    (dict[tuple[list[int], int], int], "keys"),
    (dict[Point, int], "keys"),
    (dict[npt.NDArray[np.int8], int], "keys"),
    ("Unknown", "TYPE_CHECKING"),
    ("1 +", "is no type"),
    ("1 / 0", "is no type"),
]


@pytest.mark.parametrize(("annotation", "advice"), REFUSED, ids=str)
def test_anything_else_is_refused_with_its_place_and_advice(annotation: Any, advice: str) -> None:
    with pytest.raises(ConfigError) as caught:
        of(annotation)
    assert str(caught.value).startswith("acme.dsp/1.f, parameter x: ")
    assert advice in str(caught.value)


def test_a_dataclass_keeps_order_and_defaults() -> None:
    x, y, tags = of(Point).fields
    assert [x.name, y.name, tags.name] == ["x", "y", "tags"]
    assert x.default is MISSING
    assert callable(y.default)
    assert y.default() == 0.5
    assert callable(tags.default)
    assert tags.default() == ["new"]
    assert tags.default() is not tags.default()


def test_an_inherited_field_is_resolved_where_it_was_written() -> None:
    assert [(field.name, field.node.kind) for field in of(Labelled).fields] == [
        ("x", Kind.FLOAT),
        ("y", Kind.FLOAT),
        ("tags", Kind.LIST),
        ("label", Kind.STR),
    ]


def test_a_struct_of_msgspec_is_read_like_a_dataclass() -> None:
    node = of(Record)
    assert node.kind is Kind.STRUCT
    assert node.cls is Record
    assert [(f.name, canonical(f.node), f.default if f.default is MISSING else f.default()) for f in node.fields] == [
        ("a", "int", MISSING),
        ("b", "list[int]", []),
        ("c", "float", 1.5),
        ("d", "Record?", None),
    ]
    assert {f.name: f.default is MISSING for f in of(Keyworded).fields} == {"a": False, "b": True}


def test_recursion_is_a_cycle_of_nodes() -> None:
    tree = of(Tree)
    assert tree.fields[1].node.args[0] is tree
    ping = of(Ping)
    assert ping.fields[0].node.args[0].fields[0].node is ping


def test_memo_gives_one_node_per_class() -> None:
    memo: dict[type, TypeNode] = {}
    first = resolve(list[Point], where="a", memo=memo)
    second = resolve(Point, where="b", memo=memo)
    assert first.args[0] is second


def test_classes_local_to_a_function_find_each_other() -> None:
    @dataclasses.dataclass
    class Leaf:
        n: int

    @dataclasses.dataclass
    class Branch:
        leaves: list[Leaf]
        parent: Branch | None = None

    node = resolve("Branch", where="here", globalns=globals(), localns=locals())
    assert node.fields[0].node.args[0].cls is Leaf
    assert node.fields[1].node.args[0] is node


def test_init_false_is_refused_by_name() -> None:
    @dataclasses.dataclass
    class Sum:
        a: int
        total: int = dataclasses.field(init=False, default=0)

    with pytest.raises(ConfigError, match=r"Sum\.total has init=False"):
        of(Sum)


def test_init_var_is_refused_by_name() -> None:
    @dataclasses.dataclass
    class Opened:
        path: dataclasses.InitVar[str]

    with pytest.raises(ConfigError, match=r"Opened\.path is an InitVar"):
        of(Opened)


def test_the_field_at_fault_is_named() -> None:
    @dataclasses.dataclass
    class Held:
        anything: object

    with pytest.raises(ConfigError, match=r"^acme\.dsp/1\.f, parameter x, field Held\.anything: object"):
        of(list[Held])


def test_depth_is_limited() -> None:
    deep: Any = int
    for _ in range(DEPTH_LIMIT):
        deep = list[deep]
    of(deep)
    with pytest.raises(ConfigError, match="nested more than"):
        of(list[deep])


def test_an_alias_of_itself_ends() -> None:
    aliases = pytest.importorskip("typing_extensions")
    alias = aliases.TypeAliasType("alias", "alias")
    with pytest.raises(ConfigError, match="alias of itself"):
        resolve(alias, where="here", globalns={"alias": alias})


def test_aliases_of_the_type_statement() -> None:
    aliases = pytest.importorskip("typing_extensions")
    vector = aliases.TypeAliasType("vector", List[float])
    table = aliases.TypeAliasType("table", Dict[str, List[T]], type_params=(T,))  # type: ignore[valid-type]
    assert canonical(of(vector)) == "list[float]"
    assert canonical(of(table[int])) == "dict[str, list[int]]"
    assert canonical(of(Optional[vector])) == "list[float]?"


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the type statement is of Python 3.12")
def test_the_type_statement_itself() -> None:
    names: dict[str, Any] = {}
    exec("type Vector = list[float]\ntype Both[A, B] = tuple[B, A]\ntype Loop = list[Loop]", names)
    assert canonical(of(names["Vector"])) == "list[float]"
    assert canonical(of(names["Both"][int, str])) == "tuple[str, int]"
    with pytest.raises(ConfigError, match="nested more than"):
        of(names["Loop"])


def test_nothing_heavy_is_imported() -> None:
    source = (
        "import sys; from fastplug.annotation import resolve; resolve('dict[str, int | None]', where='');"
        "print(sorted({'numpy', 'msgspec', 'decimal', 'uuid', 'datetime', 'inspect', 'dataclasses'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
