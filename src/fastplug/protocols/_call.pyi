from collections.abc import Callable
from typing import Final

from typing_extensions import disjoint_base

from fastplug._wire import ArrayPort, Link, MethodCodec, References
from fastplug.protocols._callbacks import Registry
from fastplug.protocols._reading import Reading

YIELD_S: Final[float]
READER_IDLE_S: Final[float]

@disjoint_base
class Bound:
    @property
    def codec(self) -> MethodCodec: ...

@disjoint_base
class HostReferences(References): ...

@disjoint_base
class Caller(Reading):
    gave_up: Callable[[int, int, bool], tuple[str, str]] | None
    lane: int
    @property
    def calls(self) -> int: ...
    def __init__(
        self, link: Link, port: ArrayPort, lost: Callable[[str | None], BaseException], registry: Registry | None = None
    ) -> None: ...
    def release(self) -> None: ...
    def drain(self) -> None: ...
    def read(self) -> None: ...
    def read_slice(self) -> None: ...
    def run_finished(self) -> None: ...
    def read_ready(self) -> bool: ...
