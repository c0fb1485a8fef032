from typing_extensions import disjoint_base

from fastplug.shm._lane import Lane

__all__ = ["Lanes"]

@disjoint_base
class Lanes:
    def __init__(self, first: Lane) -> None: ...
