from typing import Final

from typing_extensions import disjoint_base

from fastplug._wire import ArrayPort

STRICT_BYTES: Final[int]

@disjoint_base
class DeferredPort(ArrayPort):
    def __init__(self, strict: bool = False) -> None: ...
