from collections.abc import Callable, Iterable, Sequence
from typing import Any

from typing_extensions import disjoint_base

from fastplug._wire import ArrayPort, Link, MethodCodec
from fastplug.protocols._activity import Activation, Activity
from fastplug.protocols._callbacks import CallbackLine

@disjoint_base
class Answering(Activity):
    def __init__(
        self,
        link: Link,
        port: ArrayPort,
        line: CallbackLine | None,
        interfaces: Iterable[Sequence[tuple[MethodCodec, Callable[..., Any] | None]]],
    ) -> None: ...
    def attend_to(self, call: Activation) -> bool: ...
