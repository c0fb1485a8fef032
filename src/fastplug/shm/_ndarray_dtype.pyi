from typing import Final

CACHED_MAX: Final[int]

class Declared: ...
