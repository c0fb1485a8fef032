"""The messages of go/peer/peer.proto, by protoc, in a pool that is nobody else's; and what an answer of a peer must be."""

from __future__ import annotations

import functools
import hashlib
import tempfile
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2

from fastplug.protocols.grpc.descriptors import Files, files_of

__all__ = ["PROTO", "SERVICE", "descriptors", "digest", "kinds", "method", "stubs"]

ROOT = Path(__file__).parents[2]
PROTO = Path(__file__).parent / "go" / "peer" / "peer.proto"
SERVICE = "fastplug.interop.v1.Peer"


@functools.cache
def descriptors() -> descriptor_pb2.FileDescriptorSet:
    """What protoc makes of the file, imports included."""
    import grpc_tools
    from grpc_tools import protoc

    standard = Path(grpc_tools.__file__).parent / "_proto"
    with tempfile.NamedTemporaryFile() as out:
        arguments = [f"-I{PROTO.parent}", f"-I{standard}", f"--descriptor_set_out={out.name}", "--include_imports", PROTO.name]
        assert protoc.main(["protoc", *arguments]) == 0
        return descriptor_pb2.FileDescriptorSet.FromString(Path(out.name).read_bytes())


@functools.cache
def stubs() -> Path:
    """A folder with peer_pb2.py and peer_pb2_grpc.py, as protoc makes them."""
    import grpc_tools
    from grpc_tools import protoc

    folder = ROOT / "build" / "interop" / "stubs"
    folder.mkdir(parents=True, exist_ok=True)
    standard = Path(grpc_tools.__file__).parent / "_proto"
    arguments = [f"-I{PROTO.parent}", f"-I{standard}", f"--python_out={folder}", f"--grpc_python_out={folder}", PROTO.name]
    assert protoc.main(["protoc", *arguments]) == 0
    return folder


@functools.cache
def _files() -> Files:
    return files_of(descriptors())


def method(name: str) -> Any:
    """The shape of one of the service's methods."""
    found = _files().service(SERVICE)
    assert found is not None
    return found[name]


def kinds() -> Any:
    """The class of the message with every kind of field."""
    return method("Echo").request


def digest(name: str, pid: int, nonce: str, index: int = 0) -> str:
    """What the process with that pid answers to a question with that nonce: the other side cannot have made it up."""
    return hashlib.sha256(f"{name}|{pid}|{nonce}|{index}".encode()).hexdigest()
