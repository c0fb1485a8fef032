from typing import Any, Final, NamedTuple, TypeAlias, final

from typing_extensions import disjoint_base

from fastplug._wire_buffer import ArrayPort as ArrayPort
from fastplug._wire_buffer import Codec as Codec
from fastplug._wire_buffer import Decoder as Decoder
from fastplug._wire_buffer import Encoder as Encoder
from fastplug._wire_buffer import Memory as Memory
from fastplug._wire_buffer import References as References
from fastplug._wire_buffer import live as live
from fastplug._wire_containers import compile_node as compile_node
from fastplug._wire_containers import has_arrays as has_arrays
from fastplug._wire_errors import pack_error as pack_error
from fastplug._wire_errors import unpack_error as unpack_error
from fastplug._wire_words import Unfit as Unfit
from fastplug.interfaces import Method

__all__ = [
    "MESSAGE_BYTES_MAX",
    "ArrayPort",
    "Codec",
    "Decoder",
    "Encoder",
    "HandoverLink",
    "Header",
    "Link",
    "Memory",
    "MethodCodec",
    "PyLink",
    "References",
    "Unfit",
    "compile_node",
    "has_arrays",
    "live",
    "pack_error",
    "pack_header",
    "unpack_error",
    "unpack_header",
]

_Data: TypeAlias = bytes | bytearray | memoryview

MESSAGE_BYTES_MAX: Final[int]

class Header(NamedTuple):
    size: int
    kind: int
    flags: int
    call: int
    interface: int
    method: int
    blocks: int
    remaining_ns: int

@final
class MethodCodec:
    @property
    def interface(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def qualified(self) -> str: ...
    @property
    def parameters(self) -> tuple[str, ...]: ...
    @property
    def item(self) -> Codec | None: ...
    @property
    def fed(self) -> Codec | None: ...
    @property
    def callback(self) -> bool: ...
    @property
    def has_references(self) -> bool: ...
    @property
    def packs(self) -> bool: ...
    def __init__(self, interface: str, method: Method, *, callback: bool = False) -> None: ...
    def pack_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None, *, encoder: Encoder | None = None) -> bytes: ...
    def unpack_arguments(self, data: _Data, *, decoder: Decoder | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]: ...
    def pack_result(self, value: object, *, encoder: Encoder | None = None) -> bytes: ...
    def unpack_result(self, data: _Data, *, decoder: Decoder | None = None) -> Any: ...

@disjoint_base
@disjoint_base
class Link:
    inline_limit: int
    asks: bool
    duplex: bool
    lazy: bool
    @property
    def gathers(self) -> bool: ...
    def await_stirs(self) -> None: ...
    def stir(self) -> bool: ...
    def wake(self) -> bool: ...
    def descriptor(self) -> int: ...
    def heard(self) -> bool: ...

_Frame: TypeAlias = tuple[bytes, Memory, int]

class HandoverLink(Link):
    def ready(self) -> bool: ...
    def send_frame(self, frame: _Frame, until_s: float | None) -> bool | None: ...
    def receive_frame(self, until_s: float | None) -> _Frame | None: ...

class PyLink(Link):
    def send_frame(self, frame: bytes, until_s: float | None) -> None: ...
    def receive_frame(self, until_s: float | None) -> bytes | None: ...

def pack_header(
    size: int,
    kind: int,
    flags: int = 0,
    call: int = 0,
    interface: int = 0,
    method: int = 0,
    blocks: int = 0,
    remaining_ns: int = 0,
) -> bytes: ...
def unpack_header(data: _Data) -> Header: ...
