from typing import Any, Final

import numpy as np
import numpy.typing as npt
from typing_extensions import disjoint_base

from fastplug._wire import ArrayPort
from fastplug.shm._arena import Arena
from fastplug.shm._port import ArenaPort

INLINE_BYTES: Final[int]

class InlineArrays(ArrayPort): ...

@disjoint_base
class ArenaArrays(ArrayPort):
    def __init__(self, port: ArenaPort) -> None: ...

def empty(arena: Arena, shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]: ...
def readers_of(array: np.ndarray[Any, Any]) -> int: ...
def borrowers_of(array: np.ndarray[Any, Any]) -> list[str]: ...
