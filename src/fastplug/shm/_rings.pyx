"""The two segments of a lane: each side makes its own, and checks the peer's. docs/wire.md, "Lane segment", is the layout."""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from fastplug.shm._segment cimport Segment

from fastplug.errors import RemoteProtocolError
from fastplug.shm._segment import Segment as SegmentType

MAGIC = b"FPLANE01"
LAYOUT_VERSION = 1
RING_OFFSET = 4096
# 256 KiB: fits the L2 cache twice over, and a page of first-touch cost per 4 KiB (1 GB/s) is paid once, at the start.
RING_BYTES = 256 * 1024
MIN_RING_BYTES = 64 * 1024
MAX_RING_BYTES = 64 * 1024 * 1024


def create_segment(ring_bytes: int = RING_BYTES) -> Segment:
    """This side's half of a lane: an own segment with the header filled in."""
    cdef Segment segment
    cdef fp_lane* lane
    cdef bytes magic = MAGIC
    if ring_bytes & (ring_bytes - 1) or not MIN_RING_BYTES <= ring_bytes <= MAX_RING_BYTES:
        raise ValueError(f"ring_bytes must be a power of two from {MIN_RING_BYTES} to {MAX_RING_BYTES}")
    segment = SegmentType.create(RING_OFFSET + ring_bytes, "fastplug-lane")
    lane = <fp_lane*>segment.base
    memcpy(lane.magic, <const char*>magic, 8)
    lane.version = LAYOUT_VERSION
    lane.ring_bytes = ring_bytes
    lane.cpu = 0xFFFFFFFF           # nowhere yet
    return segment


cdef uint64_t ring_of(Segment theirs) except 0:
    cdef fp_lane header
    cdef uint64_t ring_bytes
    if theirs.bytes < RING_OFFSET + MIN_RING_BYTES:
        raise RemoteProtocolError(f"the peer's lane segment has only {theirs.bytes} bytes")
    memcpy(&header, theirs.base, sizeof(fp_lane))       # a private copy, then the checks
    if header.magic[:8] != MAGIC or header.version != LAYOUT_VERSION:
        raise RemoteProtocolError(f"the peer's lane has layout {header.magic[:8]!r} version {header.version}; this side knows {MAGIC!r} version {LAYOUT_VERSION}")
    ring_bytes = header.ring_bytes
    if ring_bytes & (ring_bytes - 1) or not MIN_RING_BYTES <= ring_bytes <= MAX_RING_BYTES or theirs.bytes < RING_OFFSET + ring_bytes:
        raise RemoteProtocolError(f"the peer's ring has {ring_bytes} bytes in a segment of {theirs.bytes}")
    return ring_bytes


cdef int lost_tail(uint64_t published, uint64_t ring_bytes) except -1:
    raise RemoteProtocolError(f"the peer's tail is {published} bytes ahead in a ring of {ring_bytes}")


cdef int cut_off(uint32_t size, uint64_t published) except -1:
    raise RemoteProtocolError(f"a frame of {size} bytes does not fit what the peer published ({published} bytes)")


cdef int bad_pad(uint64_t need, uint64_t index, uint64_t ring_bytes) except -1:
    raise RemoteProtocolError(f"{need} bytes of padding came at {index} in a ring of {ring_bytes}; it fills the end of the ring and nothing else")
