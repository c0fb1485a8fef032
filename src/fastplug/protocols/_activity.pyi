from collections.abc import Iterator
from typing import Any, Self

from typing_extensions import disjoint_base

from fastplug._wire import ArrayPort, Link
from fastplug.protocols._callbacks import Asking, CallbackLine

@disjoint_base
class Activation:
    def way_back(self) -> Activity | None: ...

@disjoint_base
class Asked: ...

@disjoint_base
class Input(Iterator[Any]):
    def __iter__(self) -> Self: ...
    def __next__(self) -> Any: ...
    def close(self) -> None: ...

@disjoint_base
class Activity(Asking):
    group: Any
    stopping: bool
    @property
    def line(self) -> CallbackLine: ...
    def __init__(self, link: Link, port: ArrayPort, line: CallbackLine | None = None) -> None: ...
    def close_streams(self) -> None: ...
