from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, final

from fastplug._wire import ArrayPort, Link, MethodCodec
from fastplug.contexts import Context
from fastplug.protocols._activity import Activation, Activity
from fastplug.protocols._tasks import Tasks
from fastplug.shm._port import ArenaPort

NESTED_MAX: Final[int]
QUEUED_MAX: Final[int]
CANCELLED_MAX: Final[int]

@final
class Server(Activity):
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
    def attend_to(self, call: Activation) -> bool: ...

def serving_port() -> ArenaPort | None: ...
