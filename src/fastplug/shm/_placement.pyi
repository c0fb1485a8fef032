from typing import Final, final

HOST_PATIENCE: Final[int]
PLUGIN_PATIENCE: Final[int]
PATIENCE_MAX: Final[int]

@final
class Placement:
    @property
    def spins(self) -> int: ...
    @property
    def sleeps(self) -> int: ...
    @property
    def moves(self) -> int: ...
    @property
    def patience(self) -> int: ...
    def __init__(self, patience: int) -> None: ...
