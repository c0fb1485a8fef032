"""Files of descriptors from somewhere else: in order, with their imports, refused where they cannot be; what a peer says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, duration_pb2, timestamp_pb2

from fastplug.errors import ConfigError, RemoteProtocolError
from fastplug.protocols.grpc.descriptors import Files, files_of, with_imports
from fastplug.protocols.grpc.reflection import VERSIONS, Reflection


def file(name: str, *imports: str, **more: Any) -> descriptor_pb2.FileDescriptorProto:
    return descriptor_pb2.FileDescriptorProto(name=name, package="t", syntax="proto3", dependency=imports, **more)


def serialized(*files: descriptor_pb2.FileDescriptorProto) -> dict[str, bytes]:
    return {one.name: one.SerializeToString() for one in files}


@pytest.mark.parametrize(
    ("files", "text"),
    [
        (serialized(file("a", "b"), file("b", "a")), "imports it"),
        (serialized(file("a", "a")), "a imports a, which imports it"),
        (serialized(file("a", "b")), "not there"),
        ({"a": b"\xff\xff"}, "malformed"),
        (
            serialized(file("a", message_type=[descriptor_pb2.DescriptorProto(name="M"), descriptor_pb2.DescriptorProto(name="M")])),
            "malformed",
        ),
        (serialized(file("a", message_type=[descriptor_pb2.DescriptorProto(name="not a name")])), "malformed"),
    ],
)
def test_files_that_cannot_be_are_refused(files: dict[str, bytes], text: str) -> None:
    with pytest.raises(RemoteProtocolError, match=text):
        Files(files)


def test_imports_are_fetched_and_protobufs_own_are_at_hand() -> None:
    files = {one.name: one.SerializeToString() for one in (file("b", "c"), file("c", "google/protobuf/timestamp.proto"))}
    asked: list[str] = []

    def fetch(name: str) -> Sequence[bytes]:
        asked.append(name)
        return [files[name]] if name in files else []

    found = with_imports([file("a", "b").SerializeToString()], fetch)
    assert set(found) == {"a", "b", "c", "google/protobuf/timestamp.proto"}
    assert asked == ["b", "c", "google/protobuf/timestamp.proto"]
    Files(found)
    with pytest.raises(RemoteProtocolError, match="files import z"):
        with_imports([file("a", "z").SerializeToString()], lambda name: ())


def test_a_plugin_cannot_describe_itself_without_end() -> None:
    def fetch(name: str) -> Sequence[bytes]:
        return [file(name, f"{name}x").SerializeToString()]

    with pytest.raises(RemoteProtocolError, match="more than"):
        with_imports([file("a", "b").SerializeToString()], fetch)


def test_two_plugins_may_define_one_file_differently() -> None:
    def one(field: str) -> Files:
        message = descriptor_pb2.DescriptorProto(name="M")
        message.field.add(name=field, number=1, type=9, label=1)
        service = descriptor_pb2.ServiceDescriptorProto(name="S")
        service.method.add(name="Do", input_type=".t.M", output_type=".t.M")
        return Files(serialized(file("same.proto", message_type=[message], service=[service])))

    first, second = one("a").service("t.S"), one("b").service("t.S")
    assert first is not None
    assert second is not None
    assert first["Do"].request(a="x").SerializeToString() == second["Do"].request(b="x").SerializeToString()


def test_descriptors_are_modules_sets_or_bytes() -> None:
    assert files_of(timestamp_pb2).file_set().file[0].name == "google/protobuf/timestamp.proto"
    assert len(files_of([timestamp_pb2, duration_pb2]).file_set().file) == 2
    for wrong in (b"\xff\xff", [1], descriptor_pb2.FileDescriptorSet(file=[file("a", "z")])):
        with pytest.raises(ConfigError, match="descriptors="):
            files_of(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"\xff\xff", RemoteProtocolError),
        (b"", RemoteProtocolError),
        (VERSIONS[0].response(error_response={"error_code": 13, "error_message": "m"}).SerializeToString(), RemoteProtocolError),
        (VERSIONS[0].response(file_descriptor_response={"file_descriptor_proto": [b"\xff"]}).SerializeToString(), RemoteProtocolError),
    ],
)
def test_answers_of_reflection_are_not_trusted(answer: bytes, error: type[Exception]) -> None:
    for ask in (lambda one: one.services(), lambda one: one.files("a.B")):
        with pytest.raises(error):
            ask(Reflection(lambda path, request: answer))
