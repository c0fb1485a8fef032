from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, final

from fastplug._wire import ArrayPort, Link, MethodCodec
from fastplug.protocols._running import Running
from fastplug.protocols._tasks import Tasks

QUEUED_MAX: Final[int]

@final
class Server(Running):
    @property
    def calls(self) -> int: ...
    def __init__(
        self,
        link: Link,
        port: ArrayPort,
        interfaces: Iterable[Sequence[tuple[MethodCodec, Callable[..., Any] | None]]],
        first: Server | None = None,
    ) -> None: ...
    @property
    def tasks(self) -> Tasks | None: ...
    def run(self) -> None: ...
