from typing_extensions import disjoint_base

from fastplug.shm._lane import Lane

__all__ = ["Lanes"]

@disjoint_base
class Lanes:
    @property
    def spins(self) -> int: ...
    @property
    def sleeps(self) -> int: ...
    def __init__(self, first: Lane) -> None: ...
