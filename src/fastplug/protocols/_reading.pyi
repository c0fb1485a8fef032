from collections.abc import Callable
from typing import Final

from typing_extensions import disjoint_base

from fastplug._wire import ArrayPort, Link
from fastplug.protocols._callbacks import Registry
from fastplug.protocols._turn import Turn

IN_FLIGHT_MAX: Final[int]
YIELD_S: Final[float]

@disjoint_base
class Reading(Turn):
    in_flight_max: int
    @property
    def late(self) -> int: ...
    @property
    def registry(self) -> Registry: ...
    def __init__(
        self, link: Link, port: ArrayPort, lost: Callable[[str | None], BaseException], registry: Registry | None = None
    ) -> None: ...
