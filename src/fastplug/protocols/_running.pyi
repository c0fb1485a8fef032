from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from typing_extensions import disjoint_base

from fastplug._wire import ArrayPort, Link, MethodCodec
from fastplug.contexts import Context
from fastplug.protocols._answering import Answering
from fastplug.protocols._callbacks import CallbackLine

CANCELLED_MAX: Final[int]

@disjoint_base
class Running(Answering):
    @property
    def running(self) -> int: ...
    @property
    def thread(self) -> int: ...
    def __init__(
        self,
        link: Link,
        port: ArrayPort,
        line: CallbackLine | None,
        interfaces: Iterable[Sequence[tuple[MethodCodec, Callable[..., Any] | None]]],
    ) -> None: ...
    def current_context(self) -> Context | None: ...
    def cancel(self, call: int) -> bool: ...
    def task_stack(self, call: int) -> str: ...
