from typing import Final

from fastplug.shm._segment import Segment

MAGIC: Final[bytes]
LAYOUT_VERSION: Final[int]
RING_OFFSET: Final[int]
RING_BYTES: Final[int]
MIN_RING_BYTES: Final[int]
MAX_RING_BYTES: Final[int]

def create_segment(ring_bytes: int = ...) -> Segment: ...
