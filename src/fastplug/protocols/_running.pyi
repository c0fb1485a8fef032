from typing import Final

from typing_extensions import disjoint_base

from fastplug.contexts import Context
from fastplug.protocols._answering import Answering

CANCELLED_MAX: Final[int]

@disjoint_base
class Running(Answering):
    @property
    def running(self) -> int: ...
    @property
    def thread(self) -> int: ...
    def current_context(self) -> Context | None: ...
    def cancel(self, call: int) -> bool: ...
    def task_stack(self, call: int) -> str: ...
