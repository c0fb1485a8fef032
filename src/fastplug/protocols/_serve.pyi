from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, final

from fastplug._wire import ArrayPort, Link, MethodCodec
from fastplug.contexts import Context
from fastplug.protocols._answering import Answering
from fastplug.protocols._tasks import Tasks
from fastplug.shm._port import ArenaPort

QUEUED_MAX: Final[int]
CANCELLED_MAX: Final[int]

@final
class Server(Answering):
    @property
    def calls(self) -> int: ...
    @property
    def running(self) -> int: ...
    @property
    def thread(self) -> int: ...
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
    def current_context(self) -> Context | None: ...
    def cancel(self, call: int) -> bool: ...
    def task_stack(self, call: int) -> str: ...

def serving_port() -> ArenaPort | None: ...
