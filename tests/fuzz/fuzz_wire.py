"""Invariant: whatever bytes arrive, decoding gives a value or RemoteProtocolError, and nothing else; and exactly when the slow twin does.

Mutates encoded values of every kind; a failure prints the type and the bytes that show it.
"""

from __future__ import annotations

import datetime as dt
import decimal
import functools
import random
import uuid
from typing import Any

from tests.twin import wire_twin as twin
from tests.twin.wire_nodes import Colour, Perm, Point, Tree, node_of

from fastplug._wire import Decoder, Encoder, compile_node, unpack_error, unpack_header
from fastplug.annotation import TypeNode
from fastplug.errors import RemoteProtocolError

# One is much quicker than a round of the other targets.
PAYLOADS_A_ROUND = 80

SEEDS: list[tuple[Any, Any]] = [
    (None, None),
    (list[bool], [True, False]),
    (list[int], [1, -1, 2**63, -(2**200)]),
    (list[float], [0.0, float("nan"), 1e300]),
    (complex, 1 - 2j),
    (list[str], ["", "a", "é𝄞"]),
    (dict[str, bytes], {"a": b"x", "b": b""}),
    (tuple[int, str], (5, "x")),
    (tuple[tuple[int, ...], ...], ((1, 2), ())),
    (list[dt.datetime], [dt.datetime(2024, 2, 29), dt.datetime.max.replace(tzinfo=dt.timezone(dt.timedelta(hours=-3)), fold=1)]),
    (list[dt.date], [dt.date.min, dt.date.max]),
    (list[dt.timedelta], [dt.timedelta.min, dt.timedelta.max]),
    (list[decimal.Decimal], [decimal.Decimal("-1.50"), decimal.Decimal("1E+999"), decimal.Decimal("NaN12"), decimal.Decimal("-Infinity")]),
    (uuid.UUID, uuid.UUID(int=2**127 + 1)),
    (list[Colour], list(Colour)),
    (list[Perm], [Perm.R, Perm.R | Perm.X, Perm(0)]),
    (dict[tuple[int, str], Point | None], {(1, "a"): Point(1, 2.0, ["x"]), (2, "b"): None}),
    (Tree, Tree(b"a", Tree(b"b"), right=Tree(b"c", Tree(b"d")))),
]
# What turns one valid payload into another, or nearly: tags, lengths at their edges, signs.
TELLING = (0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 15, 0x11, 0x12, 0x13, 0x14, 0x7F, 0x80, 0xFE, 0xFF)


def mutated(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(5):
            case 0:
                changed[at : at + 1] = bytes([rng.choice(TELLING)])
            case 1:
                changed[at : at + 1] = bytes([rng.randrange(256)])
            case 2:
                del changed[at : at + rng.randint(1, 8)]
            case 3:
                start = rng.randrange(len(changed) + 1)
                changed[at:at] = changed[start : start + rng.randint(1, 24)]
            case _:
                changed[at : at + 4] = rng.choice((2**32 - 1, 2**31, 0, len(changed), rng.randrange(64))).to_bytes(4, "little")
    return bytes(changed)


def outcome(decode: Any, error: type[Exception]) -> Any:
    """The value, or the class of the one error that is allowed."""
    try:
        return decode()
    except error:
        return error


def check(node: TypeNode, codec: Any, data: bytes) -> None:
    ours = outcome(lambda: Decoder().decode(codec, data), RemoteProtocolError)
    slow = outcome(lambda: twin.decode(node, data), twin.MalformedError)
    if slow is twin.MalformedError:
        assert ours is RemoteProtocolError, f"{node}: {data.hex()}: ours {ours!r}, the twin refuses"
    else:
        assert twin.same(ours, slow), f"{node}: {data.hex()}: ours {ours!r}, the twin's {slow!r}"
    outcome(lambda: unpack_error(data), RemoteProtocolError)
    outcome(lambda: unpack_header(data), RemoteProtocolError)


@functools.cache
def corpus() -> list[tuple[TypeNode, Any, bytes]]:
    nodes = [(node_of(annotation), value) for annotation, value in SEEDS]
    return [(node, compile_node(node), Encoder().encode(compile_node(node), value)) for node, value in nodes]


def check_payloads(rng: random.Random) -> None:
    for _ in range(PAYLOADS_A_ROUND):
        node, codec, data = rng.choice(corpus())
        if rng.randrange(8) == 0:  # the bytes of another type
            data = rng.choice(corpus())[2]
        check(node, codec, mutated(data, rng))


CHECKS = (check_payloads,)
