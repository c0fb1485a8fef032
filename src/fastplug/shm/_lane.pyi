from typing import Final

from typing_extensions import disjoint_base

from fastplug._wire import Link
from fastplug.shm._segment import Segment

MAGIC: Final[bytes]
LAYOUT_VERSION: Final[int]
RING_OFFSET: Final[int]
RING_BYTES: Final[int]
MIN_RING_BYTES: Final[int]
MAX_RING_BYTES: Final[int]
INLINE_FRACTION: Final[int]
SPIN_HOLDING_GIL_NS: Final[int]
SPIN_NS: Final[int]
HOST_SLICE_NS: Final[int]
PLUGIN_SLICE_NS: Final[int]
BACKLOG_FRAMES: Final[int]
BACKLOG_BYTES: Final[int]

def set_spin(*, holding_gil_ns: int, released_ns: int) -> None: ...
def create_segment(ring_bytes: int = ...) -> Segment: ...

@disjoint_base
class Lane(Link):
    slice_ns: int
    @property
    def spins(self) -> int: ...
    @property
    def sleeps(self) -> int: ...
    @property
    def positions(self) -> tuple[int, int]: ...
    @property
    def held(self) -> int: ...
    def __init__(self, mine: Segment, theirs: Segment, slice_ns: int = ...) -> None: ...
    def peer_gone(self) -> None: ...
    def finish(self) -> None: ...
    def wake(self) -> bool: ...
    def send_frame(self, frame: bytes, until_ns: int = 0) -> None: ...
    def receive_frame(self, until_ns: int = 0) -> bytes | None: ...
