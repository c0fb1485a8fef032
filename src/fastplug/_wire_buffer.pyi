from typing import Any, Self, final

from typing_extensions import disjoint_base

__all__ = ["ArrayPort", "Codec", "Decoder", "Encoder", "Memory", "References", "live"]

@disjoint_base
class ArrayPort:
    copies: int
    copied_bytes: int

@disjoint_base
class Codec:
    @property
    def kind(self) -> int: ...
    @property
    def canonical(self) -> str: ...
    @property
    def cls(self) -> Any: ...
    @property
    def dtype(self) -> str | None: ...

@disjoint_base
class References: ...

@final
class Memory:
    def __new__(cls, size_bytes: int) -> Self: ...

@final
class Encoder:
    @property
    def port(self) -> ArrayPort | None: ...
    def __new__(cls, port: ArrayPort | None = None, *, limit: int = ...) -> Self: ...
    def encode(self, codec: Codec, value: object) -> bytes: ...

@final
class Decoder:
    @property
    def port(self) -> ArrayPort | None: ...
    def __new__(cls, port: ArrayPort | None = None) -> Self: ...
    def decode(self, codec: Codec, data: bytes | bytearray | memoryview) -> Any: ...

def live() -> dict[str, int]: ...
