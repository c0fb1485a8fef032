from collections.abc import Iterator
from typing import Any

from typing_extensions import disjoint_base

@disjoint_base
class Outgoing:
    def __init__(self, iterator: Iterator[Any], limit: int) -> None: ...
    def stop(self) -> None: ...

@disjoint_base
class Incoming:
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
