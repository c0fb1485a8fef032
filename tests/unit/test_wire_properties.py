"""The compiled codec against its slow twin, on drawn types, values and bytes."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tests.twin import wire_twin as twin
from tests.twin.wire_types import NODES, nodes, values

from fastplug._wire import Decoder, Encoder, compile_node
from fastplug.annotation import TypeNode
from fastplug.errors import RemoteProtocolError

NOTHING = object()
CODECS = [(node, compile_node(node)) for node in NODES]


@st.composite
def typed_values(draw: st.DrawFn) -> tuple[TypeNode, Any]:
    node = draw(nodes())
    return node, draw(values(node))


def compiled(codec: Any, data: bytes) -> Any:
    try:
        return Decoder().decode(codec, data)
    except RemoteProtocolError:
        return NOTHING


def slow(node: TypeNode, data: bytes) -> Any:
    try:
        return twin.decode(node, data)
    except twin.MalformedError:
        return NOTHING


@given(typed_values())
def test_round_trip_and_the_twins_bytes(drawn: tuple[TypeNode, Any]) -> None:
    node, value = drawn
    codec = compile_node(node)
    data = Encoder().encode(codec, value)
    assert data == twin.encode(node, value)
    assert twin.same(Decoder().decode(codec, data), value)


@given(typed_values())
def test_every_truncation_and_every_extension_is_refused(drawn: tuple[TypeNode, Any]) -> None:
    node, value = drawn
    codec = compile_node(node)
    data = Encoder().encode(codec, value)
    for end in range(max(0, len(data) - 300), len(data)):
        assert compiled(codec, data[:end]) is NOTHING
    assert compiled(codec, data + b"\0") is NOTHING


@given(typed_values(), st.data())
def test_mutations_give_what_the_twin_gives(drawn: tuple[TypeNode, Any], more: st.DataObject) -> None:
    node, value = drawn
    codec = compile_node(node)
    data = bytearray(Encoder().encode(codec, value))
    for _ in range(more.draw(st.integers(1, 4))):
        at = more.draw(st.integers(0, len(data) - 1))
        data[at] = more.draw(st.sampled_from([0, 1, 2, 9, 0x12, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
    assert twin.same(compiled(codec, bytes(data)), slow(node, bytes(data)))


@given(st.sampled_from(CODECS), st.binary(max_size=64) | st.lists(st.integers(0, 0x14), max_size=40).map(bytes))
def test_any_bytes_give_what_the_twin_gives(node_and_codec: tuple[TypeNode, Any], data: bytes) -> None:
    node, codec = node_and_codec
    assert twin.same(compiled(codec, data), slow(node, data))
