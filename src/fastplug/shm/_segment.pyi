import builtins
from typing import Final, Never

from typing_extensions import disjoint_base

PAGE_BYTES: Final[int]
MAX_SEGMENT_BYTES: Final[int]
SEALS: Final[int]
ALLOCATION_STEP_BYTES: Final[int]
ALLOCATION_TRIES: Final[int]
KEPT_DESCRIPTORS: Final[int]

def live() -> int: ...
def available() -> bool: ...

@disjoint_base
class Segment:
    @property
    def bytes(self) -> int: ...
    @property
    def fd(self) -> int: ...
    @property
    def writable(self) -> bool: ...
    @property
    def address(self) -> int: ...
    def __init__(self, *args: Never, **kwargs: Never) -> None: ...
    @staticmethod
    def create(bytes: int, name: str = "fastplug") -> Segment: ...  # noqa: A002
    @staticmethod
    def attach(fd: int, bytes: int, keep: bool = False) -> Segment: ...  # noqa: A002
    @staticmethod
    def private(bytes: int) -> Segment: ...  # noqa: A002
    def read(self, offset: int, count: int) -> builtins.bytes: ...
    def write(self, offset: int, data: builtins.bytes) -> None: ...
