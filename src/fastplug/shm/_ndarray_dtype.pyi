from typing import Final

from typing_extensions import disjoint_base

CACHED_MAX: Final[int]

@disjoint_base
class Declared: ...
