# Invariant: whatever a peer answers about its services and files, asking ends in names and files or in an error of the tree, after a
# bounded number of questions; and files that were accepted give services whose methods have a signature and a docstring.
from __future__ import annotations

import random
from typing import Any

from google.protobuf import descriptor_pb2

from fastplug.errors import PluginError, RpcError
from fastplug.protocols.grpc.channel import Code
from fastplug.protocols.grpc.descriptors import FILES_MAX
from fastplug.protocols.grpc.reflection import VERSIONS, Reflection
from fastplug.protocols.grpc.service import make_service

NAMES = ("a", "b", "timeout_s", "self", "class", "__init__", "Ask", "é", "", "x" * 200, "google/protobuf/any.proto", "google.protobuf.Any")


def some_file(rng: random.Random, name: str) -> Any:
    """A file that may be sound."""
    made = descriptor_pb2.FileDescriptorProto(name=name, package=rng.choice(("t", "", "google.protobuf")), syntax="proto3")
    made.dependency.extend(rng.choice(NAMES) for _ in range(rng.randrange(3)))
    kinds = ["M", "N", *rng.sample(NAMES, 1)]
    for kind in kinds:
        message = made.message_type.add(name=kind)
        for number in range(rng.randrange(4)):
            field = message.field.add(
                name=rng.choice(NAMES), number=number + rng.randrange(2), type=rng.randrange(1, 19), label=rng.choice((1, 3))
            )
            if field.type in (10, 11, 14):
                field.type_name = f".{made.package}.{rng.choice(kinds)}"
    service = made.service.add(name="S")
    for _ in range(rng.randrange(3)):
        method = service.method.add(name=rng.choice(NAMES), client_streaming=rng.random() < 0.5, server_streaming=rng.random() < 0.5)
        method.input_type, method.output_type = (f".{made.package}.{rng.choice(kinds)}" for _ in range(2))
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
        files = [some_file(rng, wanted if rng.random() < 0.8 else rng.choice(NAMES)) for _ in range(rng.randrange(1, 3))]
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
    """One peer."""
    liar = Liar(rng)
    reflection = Reflection(liar)
    try:
        reflection.services()
        files = reflection.files("t.S")
        if files is None:
            return
        caller: Any = None  # no call is made
        for name in files.services():
            service = make_service(name, files, caller, "a liar", lambda: ())
            for method in vars(type(service)).values():
                if hasattr(method, "request"):
                    assert str(method.__signature__)
                    assert method.__doc__
        files.file_set()
    except PluginError as error:
        assert len(str(error)) < 2000, error  # noqa: PT017
    assert liar.questions <= FILES_MAX + 10


CHECKS = (check_liar,)
