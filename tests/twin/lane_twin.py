"""The lane of docs/wire.md, section 5, once more: slow, in plain Python, over bytes. An oracle for shm/_lane.pyx."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

MAGIC = b"FPLANE01"
VERSION = 1
OFFSETS = {
    "magic": 0,
    "version": 8,
    "ring_bytes": 12,
    "tail": 128,
    "cpu": 136,
    "head": 256,
    "waiting_data": 384,
    "waiting_space": 512,
    "doorbell": 640,
    "waiting_doorbell": 768,
}
WORDS = {
    "version": "<I",
    "ring_bytes": "<I",
    "tail": "<Q",
    "cpu": "<I",
    "head": "<Q",
    "waiting_data": "<I",
    "waiting_space": "<I",
    "doorbell": "<I",
    "waiting_doorbell": "<I",
}
RING_OFFSET = 4096
ALIGNMENT = 64
HEADER = struct.Struct("<IHHQHHIq")
PAD = 0xFFFF

Read = Callable[[int, int], bytes]
Write = Callable[[int, bytes], None]


class BrokenRingError(Exception):
    """The writer broke a rule of section 5."""


def rounded(size: int) -> int:
    """What a frame with ``size`` bytes of payload takes in the ring."""
    return -(-(HEADER.size + size) // ALIGNMENT) * ALIGNMENT


def word(read: Read, name: str) -> int:
    found: int = struct.unpack(WORDS[name], read(OFFSETS[name], struct.calcsize(WORDS[name])))[0]
    return found


def packed(name: str, value: int) -> bytes:
    return struct.pack(WORDS[name], value)


def frames(read: Read, head: int) -> Iterator[tuple[int, bytes]]:
    """(position behind it, frame) of all that lies between ``head`` and the segment's tail; padding is passed over."""
    if read(0, 8) != MAGIC or word(read, "version") != VERSION:
        raise BrokenRingError("no lane")
    ring_bytes, tail = word(read, "ring_bytes"), word(read, "tail")
    if ring_bytes & (ring_bytes - 1) or not 0 <= tail - head <= ring_bytes or (tail | head) % ALIGNMENT:
        raise BrokenRingError(f"tail {tail}, head {head}, ring {ring_bytes}")
    while head < tail:
        index = head % ring_bytes
        header = read(RING_OFFSET + index, HEADER.size)
        size, kind, *_ = HEADER.unpack(header)
        taken = rounded(size)
        if taken > tail - head or taken > ring_bytes - index:
            raise BrokenRingError(f"{size} bytes at {index}")
        if kind == PAD and (index == 0 or taken != ring_bytes - index):
            raise BrokenRingError("padding in the middle")
        head += taken
        if kind != PAD:
            yield head, header + read(RING_OFFSET + index + HEADER.size, size)


class Writer:
    """The sending half: writes frames to a segment as another language would."""

    def __init__(self, write: Write, ring_bytes: int) -> None:
        self.write = write
        self.ring_bytes = ring_bytes
        self.tail = 0

    def begin(self) -> None:
        self.write(0, MAGIC + packed("version", VERSION) + packed("ring_bytes", self.ring_bytes))
        self.write(OFFSETS["cpu"], packed("cpu", 0xFFFFFFFF))

    def need(self, frame: bytes) -> int:
        """Bytes of the ring that the frame takes, padding in front of it included."""
        taken, to_end = rounded(len(frame) - HEADER.size), self.ring_bytes - self.tail % self.ring_bytes
        return taken if taken <= to_end else to_end + taken

    def send(self, frame: bytes) -> None:
        """The caller has looked that there is room."""
        taken, to_end = rounded(len(frame) - HEADER.size), self.ring_bytes - self.tail % self.ring_bytes
        if taken > to_end:
            self.write(RING_OFFSET + self.tail % self.ring_bytes, HEADER.pack(to_end - HEADER.size, PAD, 0, 0, 0, 0, 0, 0))
            self.tail += to_end
        self.write(RING_OFFSET + self.tail % self.ring_bytes, frame)
        self.tail += taken
        self.write(OFFSETS["tail"], packed("tail", self.tail))
