from typing import Any, Final

import numpy as np
import numpy.typing as npt
from typing_extensions import disjoint_base

from fastplug.shm._arena import Arena
from fastplug.shm._ndarray_layout import Described, InlineArrays
from fastplug.shm._port import ArenaPort

__all__ = ["INLINE_BYTES", "ArenaArrays", "InlineArrays", "born", "borrowers_of", "empty", "readers_of"]

INLINE_BYTES: Final[int]

@disjoint_base
class ArenaArrays(Described):
    def __init__(self, port: ArenaPort) -> None: ...

def empty(arena: Arena, shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]: ...
def born(shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]: ...
def readers_of(array: np.ndarray[Any, Any]) -> int: ...
def borrowers_of(array: np.ndarray[Any, Any]) -> list[str]: ...
