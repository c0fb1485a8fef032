from collections.abc import Callable
from typing import Any, final

from fastplug._wire import MethodCodec

@final
class Served:
    @property
    def asynchronous(self) -> bool: ...
    def __init__(self, codec: MethodCodec, function: Callable[..., Any] | None) -> None: ...
