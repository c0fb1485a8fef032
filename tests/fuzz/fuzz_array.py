# Invariant: whatever a payload with arrays says, decoding ends in read-only arrays that lie wholly in the memory that was lent, or in
# RemoteProtocolError with a text of at most 1000 characters, and nothing else; reading what was decoded does not crash.
from __future__ import annotations

import random
import struct
import tempfile
from typing import Any

import numpy as np
from tests.unit.two_ends import End, two_ends

from fastplug import dtypes
from fastplug._wire import Decoder, Encoder, compile_node
from fastplug.annotation import Kind, TypeNode
from fastplug.errors import RemoteProtocolError
from fastplug.shm import _ndarray, files

FLOATS = TypeNode(Kind.ARRAY, dtype="float64")
RECORD = np.dtype([("a", "f8"), ("b", "M8[ns]", (2,)), ("c", "U3")])
RECORDS = TypeNode(Kind.ARRAY, dtype=dtypes.text_of(dtypes.describe(RECORD)))
NODES = (
    FLOATS,
    TypeNode(Kind.ARRAY),
    TypeNode(Kind.LIST, (FLOATS,)),
    TypeNode(Kind.OPTIONAL, (FLOATS,)),
    RECORDS,
    TypeNode(Kind.ARRAY, dtype="void"),
)
CODECS = [compile_node(node) for node in NODES]
# What the text of a dtype is made of, to be put into one.
WORDS = (
    b'"itemsize":',
    b'"fields":[',
    b"[[",
    b"{",
    b'"aligned":true',
    b"float64",
    b"object",
    b"|S0",
    b"|V2147483647",
    b"<M8[ns]",
    b">f8",
    b"-1",
    b"9" * 30,
)
TELLING = (
    0,
    1,
    7,
    8,
    9,
    255,
    1023,
    1024,
    4096,
    1 << 20,
    (1 << 20) - 8,
    2**31,
    2**32 - 1,
    2**61,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 8,
    2**64 - 1,
)
# A view may be larger than memory where strides are 0; this much of one is read.
READ_ITEMS = 100_000


def arrays(rng: random.Random, end: End) -> list[Any]:
    size = rng.choice((0, 3, 127, 128, 1000, 5000))
    plain = np.arange(size, dtype=np.float64)
    shared = _ndarray.empty(end.arena, size, np.float64)
    shared[:] = plain
    return [plain, shared, shared[::-1], shared[::2], np.broadcast_to(shared, (3, size)), plain.reshape(1, -1).T]


def records(rng: random.Random, end: End) -> list[Any]:
    size = rng.choice((0, 3, 20, 500))
    plain = np.zeros(size, RECORD)
    shared = _ndarray.empty(end.arena, size, RECORD)
    shared[:] = plain
    return [plain, shared, shared[::-1], shared["b"], shared["c"].astype("U9"), plain.view("V36"), shared["a"].astype(">f4")]


def mutated(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((0, 1, 1, 2, 4))):
        at = rng.randrange(len(changed))
        kind = rng.randrange(6)
        if kind == 0:
            changed[at] = rng.randrange(256)
        elif kind == 1:
            changed[at] = rng.choice((0, 1, 2, 3, 8, 16, 0x13, 0x7F, 0x80, 0xFF, ord("f"), ord("i"), ord("c"), ord("b")))
        elif kind == 2 and len(changed) >= at + 8:
            changed[at : at + 8] = struct.pack("<Q", rng.choice(TELLING))
        elif kind == 3 and len(changed) >= at + 4:
            changed[at : at + 4] = struct.pack("<I", rng.choice(TELLING) % 2**32)
        elif kind == 4:
            word = rng.choice(WORDS)
            changed[at : at + len(word) * rng.randrange(2)] = word
        else:
            del changed[at : at + rng.randrange(1, 9)]
        if not changed:
            break
    return bytes(changed)


def lies_inside(array: Any, ends: tuple[End, End]) -> bool:
    """An array over shared memory lies in a segment of one of the two; others are copies."""
    if array.base is None or array.size == 0:
        return True
    low, high = np.lib.array_utils.byte_bounds(array) if hasattr(np.lib, "array_utils") else np.byte_bounds(array)
    attached = [segment for end in ends for segment in end.mapped]
    return any(segment.address <= low and high <= segment.address + segment.bytes for segment in attached)


def bounded(error: RemoteProtocolError) -> None:
    assert len(str(error)) < 1000


def check_descriptors(rng: random.Random) -> None:
    host, plugin = two_ends()
    codec = rng.choice(CODECS)
    values = records(rng, host) if codec in CODECS[4:] or (codec is CODECS[1] and rng.randrange(2)) else arrays(rng, host)
    if codec is CODECS[4]:
        values = values[:3]
    elif codec is CODECS[5]:
        values = [value for value in values if value.dtype.kind == "V"]
    value = rng.sample(values, rng.randrange(len(values))) if codec is CODECS[2] else rng.choice(values)
    data = Encoder(host.port).encode(codec, value)
    for _ in range(20):
        try:
            got = Decoder(plugin.port).decode(codec, mutated(rng, data))
        except RemoteProtocolError as error:
            bounded(error)
            continue
        for array in got if isinstance(got, list) else [got]:
            if array is not None:
                assert not array.flags.writeable
                assert lies_inside(array, (host, plugin))
                array.reshape(-1)[:READ_ITEMS].tobytes() if array.size <= READ_ITEMS else array[tuple(0 for _ in array.shape)]
        del got
    for end in (host, plugin):
        end.close()


def check_home(rng: random.Random) -> None:
    """What the plugin names as the host's is a block that it has, or refused."""
    host, plugin = two_ends()
    block = _ndarray.empty(host.arena, 1000, np.float64)
    theirs = Decoder(plugin.port).decode(CODECS[0], Encoder(host.port).encode(CODECS[0], block))
    data = Encoder(plugin.port).encode(CODECS[0], rng.choice((theirs, theirs[::-3], theirs[5:500])))
    for _ in range(20):
        try:
            got = Decoder(host.port).decode(CODECS[0], mutated(rng, data))
        except RemoteProtocolError:
            continue
        assert lies_inside(got, (host, plugin))
        got[:READ_ITEMS].tobytes()
        del got
    del theirs, block
    for end in (host, plugin):
        end.close()


def check_files(rng: random.Random) -> None:
    """What names a file ends in that file, wholly inside of it, or is refused."""
    host, plugin = two_ends()
    host.port.naming = files.Naming()
    plugin.port.opens_files = True
    with tempfile.NamedTemporaryFile() as file:
        file.write(bytes(range(256)) * 1024)
        file.flush()
        mapped = np.memmap(file.name, np.float64, "r")
        codec = rng.choice(CODECS[:2])
        data = Encoder(host.port).encode(codec, rng.choice((mapped, mapped[::-1], mapped[100:])))
        for _ in range(20):
            try:
                got = Decoder(plugin.port).decode(codec, mutated(rng, data))
            except RemoteProtocolError as error:
                bounded(error)
                continue
            assert not got.flags.writeable
            got.tobytes() if got.size <= READ_ITEMS else got[tuple(0 for _ in got.shape)]
            del got
        del mapped
    for end in (host, plugin):
        end.close()


CHECKS = (check_descriptors, check_home, check_files)
