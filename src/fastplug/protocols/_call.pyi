from collections.abc import Callable
from typing import final

from typing_extensions import disjoint_base

from fastplug._wire import ArrayPort, Link, MethodCodec, References
from fastplug.protocols._callbacks import Registry
from fastplug.protocols._told import Told

@disjoint_base
class Bound:
    @property
    def codec(self) -> MethodCodec: ...

@disjoint_base
class HostReferences(References): ...

@final
class Caller(Told):
    gave_up: Callable[[int, int, bool], tuple[str, str]] | None
    lane: int
    @property
    def calls(self) -> int: ...
    def __init__(
        self, link: Link, port: ArrayPort, lost: Callable[[str | None], BaseException], registry: Registry | None = None
    ) -> None: ...
    def release(self) -> None: ...
