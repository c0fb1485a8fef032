"""Two ends, seen as an encoder on one side and a decoder on the other."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy.typing as npt
from tests.unit.two_ends import End

from fastplug._wire import Codec, Decoder, Encoder, compile_node
from fastplug.annotation import Kind, TypeNode

__all__ = ["ANY", "FLOATS", "HOME", "INLINE", "LENT", "Array", "Wires"]

Array = npt.NDArray[Any]
ANY = compile_node(TypeNode(Kind.ARRAY))
FLOATS = compile_node(TypeNode(Kind.ARRAY, dtype="float64"))
INLINE, LENT, HOME = 0, 1, 2


class Wires(NamedTuple):
    """What one side encodes the other decodes."""

    host: End
    plugin: End

    def encoded(self, value: Array, codec: Codec = FLOATS) -> bytes:
        return Encoder(self.host.port).encode(codec, value)

    def decoded(self, data: bytes, codec: Codec = FLOATS) -> Array:
        got: Array = Decoder(self.plugin.port).decode(codec, data)
        return got

    def home(self, array: Array) -> bytes:
        """The plugin names what the host lent to it."""
        return Encoder(self.plugin.port).encode(ANY, array)
