from typing import Any, Final

import numpy as np
from typing_extensions import disjoint_base

from fastplug.shm._arena import Arena

THRESHOLD_BYTES: Final[int]
PRIVATE_VIEW_BYTES: Final[int]

@disjoint_base
class PrivateView: ...

def allocate_from(arena: Arena, implicit: bool) -> object: ...
def restore(previous: object) -> None: ...
def allocated() -> int: ...
def writable(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]: ...
