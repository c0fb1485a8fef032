# Invariant: whatever a peer answers about its services and files, asking ends in names and files or in an error of the tree, after a
# bounded number of questions; and files that were accepted give services whose methods have a signature and a docstring.
from __future__ import annotations

import random
from typing import Any

from google.protobuf import descriptor_pb2

from fastplug.errors import PluginError, RpcError
from fastplug.protocols.grpc.channel import Code
from fastplug.protocols.grpc.descriptors import FILES_MAX, Files
from fastplug.protocols.grpc.reflection import VERSIONS, Reflection
from fastplug.protocols.grpc.service import make_service

# What protobuf takes, though not all of it is a name in Python; and what it does not.
SOUND = ("a", "b", "timeout_s", "self", "message", "class", "class_", "__init__", "__class__", "_fastplug_name", "None", "x" * 200)
NAMES = (*SOUND, "é", "", "a b", "google/protobuf/any.proto", "google.protobuf.Any")
_FIELD = descriptor_pb2.FieldDescriptorProto


def some_file(rng: random.Random, name: str, *, sound: bool) -> Any:
    """A file; a sound one is what some compiler could have made."""
    made = descriptor_pb2.FileDescriptorProto(name=name, package="t", syntax="proto3")
    if not sound:
        made.package = rng.choice(("t", "", "google.protobuf"))
        made.dependency.extend(rng.choice(NAMES) for _ in range(rng.randrange(3)))
    prefix = f".{made.package}." if made.package else "."
    kinds = ["M", "N"] if sound else ["M", "N", rng.choice(NAMES)]
    made.enum_type.add(name="E").value.add(name="E_ZERO", number=0)
    for kind in kinds:
        message = made.message_type.add(name=kind)
        names = rng.sample(SOUND, rng.randrange(5)) if sound else [rng.choice(NAMES) for _ in range(rng.randrange(4))]
        for number, field_name in enumerate(names, 1):
            field = message.field.add(name=field_name, number=number, label=rng.choice((1, 3)), json_name=f"j{number}")
            field.type = rng.choice([one for one in _FIELD.Type.values() if one != _FIELD.TYPE_GROUP or not sound])
            if field.type in (_FIELD.TYPE_MESSAGE, _FIELD.TYPE_GROUP):
                field.type_name = prefix + rng.choice(kinds)
            elif field.type == _FIELD.TYPE_ENUM:
                field.type_name = f"{prefix}E"
    service = made.service.add(name="S")
    for method_name in rng.sample(SOUND if sound else NAMES, rng.randrange(4)):
        method = service.method.add(name=method_name, client_streaming=rng.random() < 0.5, server_streaming=rng.random() < 0.5)
        method.input_type, method.output_type = (prefix + rng.choice(kinds) for _ in range(2))
    return made


def damaged(rng: random.Random, data: bytes) -> bytes:
    if not data or rng.random() < 0.7:
        return data
    made = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        made[rng.randrange(len(made))] = rng.randrange(256)
    return bytes(made[: rng.randrange(len(made) + 1)]) if rng.random() < 0.2 else bytes(made)


class Liar:
    """A peer that answers at random."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.questions = 0

    def __call__(self, path: str, request: bytes) -> bytes:
        self.questions += 1
        rng = self.rng
        dialect = next(version for version in VERSIONS if version.path == path)
        if rng.random() < 0.1:
            raise RpcError(Code.UNIMPLEMENTED if rng.random() < 0.5 else Code.INTERNAL, "no")
        question = dialect.request.FromString(request)
        wanted = question.file_by_filename or "a.proto"
        sound = rng.random() < 0.5
        files = [some_file(rng, wanted, sound=sound)]
        if not sound and rng.random() < 0.5:
            files.append(some_file(rng, rng.choice(NAMES), sound=False))
        answer: Any = dialect.response()
        kind = rng.randrange(10)
        if kind < 7 and not question.list_services:
            answer.file_descriptor_response.file_descriptor_proto.extend(damaged(rng, one.SerializeToString()) for one in files)
        elif kind < 8:
            for name in rng.sample(NAMES, 3):
                answer.list_services_response.service.add(name=name)
        elif kind < 9:
            answer.error_response.error_code = rng.choice((5, 12, 0, -1))
        return damaged(rng, answer.SerializeToString())


def check_liar(rng: random.Random) -> None:
    """A peer that answers at random, most of it sound."""
    liar = Liar(rng)
    reflection = Reflection(liar)
    try:
        if rng.random() < 0.3:
            reflection.services()
        files = reflection.files("t.S")
        if files is not None:
            look(files)
    except PluginError as error:
        assert len(str(error)) < 2000, error  # noqa: PT017
    assert liar.questions <= FILES_MAX + 10


def check_sound(rng: random.Random) -> None:
    """What a compiler could have made is never refused."""
    files = Files({"s.proto": some_file(rng, "s.proto", sound=True).SerializeToString()})
    assert files.services() == ["t.S"]
    look(files)


def look(files: Files) -> None:
    """At all that a user could see of them."""
    caller: Any = None  # no call is made
    for name in files.services():
        if files.service(name) is None:
            continue
        service = make_service(name, files, caller, "a liar", lambda: ())
        for method in vars(type(service)).values():
            if hasattr(method, "request"):
                assert str(method.__signature__)
                assert method.__doc__
        assert repr(service).startswith("<fastplug service")
    files.file_set()


CHECKS = (check_liar, check_sound)
