"""The .proto of an interface: what it says, and that protoc reads the same descriptors out of it."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pytest
from google.protobuf import descriptor_pb2

from fastplug.interfaces import interface, interface_of
from fastplug.protocols.grpc.names import camel, package_of, upper_snake
from fastplug.protocols.grpc.prototext import proto_text
from fastplug.protocols.grpc.schema import schema_of


class Level(enum.Enum):
    LOW = "low"
    HIGH = "high"
    TOP = "high"  # noqa: PIE796  an alias: no number of its own
    low = "other"  # protoc compares members without case
    UNSPECIFIED = "unspecified"


class Mode(enum.Flag):
    READ = 1
    WRITE = 2


@dataclasses.dataclass
class Tree:
    value: int
    kids: list[Tree]
    parent: Tree | None = None
    Tree: str = "a field called like a message"


@dataclasses.dataclass
class TotalRequest:
    """Called like a message that the interface needs itself."""

    a_b: int
    aB: int  # noqa: N815  one JSON name for both
    _a_b: int
    message: str = ""
    größe: float = 1.5  # noqa: PLC2401
    Clear: int = 1  # every message has a method of this name


@interface("acme.every_kind/12")
class EveryKind(Protocol):
    def total(self, x: npt.NDArray[np.float64], request: TotalRequest) -> float: ...
    def scalars(self, a: bool, b: int, c: float, d: complex, e: str, f: bytes) -> None: ...
    def texts(self, a: dt.datetime, b: dt.date, c: dt.timedelta, d: decimal.Decimal, e: uuid.UUID) -> str: ...
    def containers(self, a: list[int], b: tuple[int, str], c: tuple[float, ...], d: dict[str, int], e: dict[float, str]) -> tuple[()]: ...
    def nested(self, a: list[list[int]], b: dict[str, list[int]], c: list[int | None], d: dict[Level, dict[int, bool]]) -> list[Tree]: ...
    def optionals(self, a: int | None, b: Tree | None, c: list[str] | None, d: dict[bool, str] | None) -> Tree: ...
    def keywords(self, *, a: Level | None = None, b: list[int] | None = None) -> None: ...
    def defaults(self, a: int = 1, b: list[int] = [], c: Tree = Tree(1, [])) -> Mode: ...  # noqa: B006, B008
    def with_none(self, a: None, b: list[None], c: tuple[None, int]) -> Level | None: ...
    def tree(self) -> npt.NDArray[Any]: ...


@interface("acme.empty/1")
class Nothing(Protocol): ...


@interface("acme.ear/1")
class Ear(Protocol):
    def heard(self, what: str) -> int: ...


@interface("acme.flow/1")
class Flow(Protocol):
    def count(self, to: int) -> Iterator[int]: ...
    def lists(self, of: Iterator[list[int]]) -> Iterator[list[str]]: ...
    def fed(self, first: int, failed: Iterator[Tree | None], *, cleared: list[int] | None = None) -> None: ...
    def each(self, n: int, tell: Callable[[int, list[str]], Tree]) -> int: ...
    def maybe(self, tell: Callable[[], None] | None = None, ear: Ear | None = None) -> None: ...
    def each_tell(self, ear: Ear) -> None: ...


def compiled_by_protoc(text: str, directory: Path) -> descriptor_pb2.FileDescriptorProto:
    protoc = pytest.importorskip("grpc_tools.protoc", reason="grpcio-tools is not installed")
    source, out = directory / "it.proto", directory / "it.bin"
    source.write_text(text)
    assert protoc.main(["protoc", f"-I{directory}", f"--descriptor_set_out={out}", str(source)]) == 0, text
    return descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file[0]


def comparable(file: descriptor_pb2.FileDescriptorProto) -> descriptor_pb2.FileDescriptorProto:
    """Without what protoc only fills in, and what depends on the name of the source file."""
    plain = descriptor_pb2.FileDescriptorProto()
    plain.CopyFrom(file)
    plain.ClearField("name")
    for message in [m for top in plain.message_type for m in (top, *top.nested_type)]:
        for field in message.field:
            field.ClearField("json_name")
    return plain


@pytest.mark.parametrize("cls", [EveryKind, Nothing, Flow])
def test_protoc_reads_the_same_descriptors(cls: type, tmp_path: Path) -> None:
    declared = interface_of(cls)
    assert comparable(compiled_by_protoc(proto_text(declared), tmp_path)) == comparable(schema_of(declared).file)


def test_streams_and_callbacks_in_the_text() -> None:
    text = proto_text(interface_of(Flow))
    for line in (
        "rpc Count(CountRequest) returns (stream CountResponse);",
        "rpc Lists(stream ListsRequest) returns (stream ListsResponse);",
        "rpc Fed(stream FedRequest) returns (FedResponse);",
        "rpc Each(EachRequest) returns (EachResponse);",
        "service EachTell {\n  rpc Call(EachTellRequest2) returns (EachTellResponse2);\n}",
        "message ListsRequest {\n  IntList of = 1;\n  optional bytes failed = 18998;\n}",
        "message ListsResponse {\n  repeated string result = 1;\n}",
        "optional bytes failed_2 = 18998;",
        "message EachRequest {\n  int64 n = 1;\n  uint32 tell = 2;\n}",
        "message EachTellRequest2 {\n  int64 argument0 = 1;\n  repeated string argument1 = 2;\n}",
        "message MaybeRequest {\n  optional uint32 tell = 1;\n  optional uint32 ear = 2;\n}",
    ):
        assert line in text, text
    each, maybe = (rpc for rpc in schema_of(interface_of(Flow)).rpcs if rpc.method.name in ("each", "maybe"))
    assert [rpc.path for rpc in each.callbacks["tell"]] == ["/acme.flow.v1.EachTell/Call"]
    assert [rpc.path for rpc in maybe.callbacks["ear"]] == ["/acme.ear.v1.Ear/Heard"]


def test_the_text_of_a_small_interface() -> None:
    @interface("acme.dsp/1")
    class Dsp(Protocol):
        def total(self, x: npt.NDArray[np.float64]) -> float: ...
        def count_of(self, words: dict[str, int], limit: int | None = None) -> list[str]: ...

    assert proto_text(interface_of(Dsp)) == (
        """syntax = "proto3";

package acme.dsp.v1;

option go_package = "acme/dsp/v1;dspv1";

service Dsp {
  rpc Total(TotalRequest) returns (TotalResponse);
  rpc CountOf(CountOfRequest) returns (CountOfResponse);
}

message TotalRequest {
  NDArray x = 1;
}

message NDArray {
  string dtype = 1;
  repeated int64 shape = 2;
  bytes data = 3;
  bool fortran = 4;
}

message TotalResponse {
  double result = 1;
}

message CountOfRequest {
  map<string, int64> words = 1;
  optional int64 limit = 2;
  repeated uint32 cleared = 18999;
}

message CountOfResponse {
  repeated string result = 1;
}
"""
    )


def test_paths_and_pools_belong_to_one_interface() -> None:
    first, second = schema_of(interface_of(EveryKind)), schema_of(interface_of(EveryKind))
    assert first.pool is not second.pool
    assert first.rpcs[0].path == "/acme.every_kind.v12.EveryKind/Total"
    assert [rpc.method.name for rpc in first.rpcs] == [method.name for method in first.interface.methods]


@pytest.mark.parametrize(
    ("python", "proto"), [("total", "Total"), ("get_item", "GetItem"), ("fft2", "Fft2"), ("_x", "X"), ("über", "Ufcber"), ("__", "X")]
)
def test_camel(python: str, proto: str) -> None:
    assert camel(python) == proto


@pytest.mark.parametrize(("python", "proto"), [("LogLevel", "LOG_LEVEL"), ("HTTPCode", "HTTP_CODE"), ("A", "A"), ("Int64", "INT64")])
def test_upper_snake(python: str, proto: str) -> None:
    assert upper_snake(python) == proto


def test_package() -> None:
    assert package_of("acme.dsp/1") == "acme.dsp.v1"
