from collections.abc import Callable, Iterable, Sequence
from typing import Any

from typing_extensions import disjoint_base

from fastplug._wire import ArrayPort, Link, MethodCodec
from fastplug.shm._port import ArenaPort

@disjoint_base
class Server:
    @property
    def link(self) -> Link: ...
    @property
    def port(self) -> ArrayPort: ...
    @property
    def calls(self) -> int: ...
    def __init__(
        self, link: Link, port: ArrayPort, interfaces: Iterable[Sequence[tuple[MethodCodec, Callable[..., Any] | None]]]
    ) -> None: ...
    def run(self) -> None: ...

def serving_port() -> ArenaPort | None: ...
