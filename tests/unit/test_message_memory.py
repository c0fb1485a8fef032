"""The memory of messages is used again: further messages allocate none, unless they are larger or somebody keeps what lies in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt
from tests.twin.wire_nodes import node_of
from tests.unit.two_ends import Called, two_ends

from fastplug._wire import Decoder, Encoder, compile_node
from fastplug._wire_buffer import allocated
from fastplug.interfaces import interface, interface_of
from fastplug.protocols._remote import Mapped
from fastplug.shm._ndarray import InlineArrays

Floats = npt.NDArray[np.float64]
ROUNDS = 200


def test_encoder_and_decoder() -> None:
    codec = compile_node(node_of(list[str]))
    encoder, decoder = Encoder(), Decoder()
    largest = ["x" * 100] * 100
    assert decoder.decode(codec, encoder.encode(codec, largest)) == largest
    before = allocated()
    for n in range(100):
        assert decoder.decode(codec, encoder.encode(codec, largest[:n])) == largest[:n]
    assert allocated() == before


def test_arrays_that_are_kept_keep_theirs() -> None:
    codec = compile_node(node_of(Floats))
    encoder, decoder = Encoder(InlineArrays()), Decoder(InlineArrays())
    messages = [encoder.encode(codec, np.full(5000, float(n))) for n in range(10)]
    decoder.decode(codec, messages[0])
    before = allocated()
    for n in range(ROUNDS):
        assert decoder.decode(codec, messages[n % 10])[0] == n % 10
    assert allocated() == before
    kept = [decoder.decode(codec, message) for message in messages]
    assert allocated() == before + len(kept) - 1
    assert [array[-1] for array in kept] == list(range(10))


@interface("test.memory/1")
class Messages(Protocol):
    def double(self, n: int) -> int: ...
    def same(self, text: str) -> str: ...
    def grown(self, x: Floats) -> Floats: ...
    def count(self, n: int) -> Iterator[int]: ...
    def total(self, values: Iterator[int]) -> int: ...


class Plain:
    def double(self, n: int) -> int:
        return 2 * n

    def same(self, text: str) -> str:
        return text

    def grown(self, x: Floats) -> Floats:
        return x + 1

    def count(self, n: int) -> Iterator[int]:
        yield from range(n)

    def total(self, values: Iterator[int]) -> int:
        return sum(values)


def test_calls() -> None:
    """Of both sides, which are in this process."""
    host, plugin = two_ends()
    called = Called(host, plugin, interface_of(Messages), Plain())

    def calls() -> None:
        assert called.double(4) == 8
        assert called.same("x" * 3000) == "x" * 3000
        assert called.grown(np.ones(2000))[0] == 2.0
        assert list(called.count(3)) == [0, 1, 2]
        assert called.total(iter(range(50))) == 1225
        assert list(Mapped(called.double, (range(20),), 10, True, False))[-1] == 38

    found = []
    for _ in range(2):  # by the end of the first, methods are known to be quick, and answers go several in a message
        for _ in range(ROUNDS):
            calls()
        found.append(allocated())
    called.end()
    host.close()
    plugin.close()
    assert found[1] == found[0]
