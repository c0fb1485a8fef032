from collections.abc import Callable
from typing import Final

from typing_extensions import disjoint_base

from fastplug.shm._arena import Arena
from fastplug.shm._segment import Segment

MAX_SEGMENTS: Final[int]
MAX_SEGMENT_IDS: Final[int]
MAX_TABLES: Final[int]
TABLE_SLOTS: Final[int]

@disjoint_base
class Borrowed:
    lent_on: Arena | None
    fetch_file: Callable[[int, int, int, int, Exception], Segment] | None
    private_copies: int
    @property
    def peer(self) -> str: ...
    def __init__(
        self,
        peer: str,
        missing: Callable[[int], object],
        more_slots: Callable[[], object] | None = None,
        fetch: Callable[[int, int, int], Segment] | None = None,
    ) -> None: ...
    def make_table(self, slots: int = ...) -> Segment: ...
    def add_segment(self, segment_id: int, segment: Segment) -> None: ...
    def lose_segment(self, segment_id: int, bytes: int) -> None: ...  # noqa: A002
    @property
    def lost_segments(self) -> frozenset[int]: ...
    def drop_segment(self, segment_id: int) -> bool: ...
    def mapped(self) -> dict[int, Segment]: ...
    def stats(self) -> dict[str, int]: ...
    def close(self) -> None: ...

@disjoint_base
class Lease:
    @property
    def segment_id(self) -> int: ...
    @property
    def slot(self) -> int: ...
