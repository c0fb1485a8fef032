from collections.abc import Callable

from typing_extensions import disjoint_base

from fastplug._wire import ArrayPort, Link
from fastplug.protocols._session import Session

@disjoint_base
class Pending: ...

@disjoint_base
class Turnstile: ...

@disjoint_base
class Turn(Session):
    signals: bool
    def __init__(self, link: Link, port: ArrayPort) -> None: ...
    def close(self, error: Exception | Callable[[], Exception]) -> None: ...
    def check_usable(self) -> None: ...
