from typing_extensions import disjoint_base

def size_of_block(bytes: int) -> int: ...  # noqa: A002

@disjoint_base
class Space:
    @property
    def bytes(self) -> int: ...
    @property
    def free_bytes(self) -> int: ...
    def __init__(self, bytes: int) -> None: ...  # noqa: A002
    def take(self, bytes: int, align: int = ..., from_end: bool = ...) -> int: ...  # noqa: A002
    def give_back(self, offset: int, bytes: int) -> None: ...  # noqa: A002
    def begin(self, offset: int) -> int: ...
    def extents(self) -> list[tuple[int, int]]: ...
