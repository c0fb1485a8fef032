# Invariant: whatever a peer writes to its lane segment, receiving ends in a frame of bounded size, in nothing, or in RemoteProtocolError,
# sending in success, DeadlineExceeded or RemoteProtocolError; nothing
# hangs. With a peer that keeps the rules no frame is lost, doubled or changed.
from __future__ import annotations

import collections
import contextlib
import random

from tests.twin import lane_twin as twin
from tests.unit.two_ends import NOW, RING_BYTES, attached

from fastplug._wire import pack_header, unpack_header
from fastplug.errors import DeadlineExceeded, RemoteProtocolError
from fastplug.shm import _lane, _rings
from fastplug.shm._lane import Lane

LIMIT = RING_BYTES // _lane.INLINE_FRACTION
TELLING = (0, 1, 63, 64, 65, 0x7FFF, 0xFFFF, RING_BYTES - 64, RING_BYTES, RING_BYTES + 64, 2**31, 2**32 - 1, 2**63, 2**64 - 64, 2**64 - 1)


def frame(rng: random.Random) -> bytes:
    payload = rng.randbytes(rng.choice((0, rng.randrange(300), rng.randrange(LIMIT + 1))))
    return pack_header(len(payload), rng.choice((1, 2, 3)), call=rng.getrandbits(32), blocks=rng.choice((0, 0, 1))) + payload


def check_honest(rng: random.Random) -> None:
    """The twin writes, the lane reads; the lane writes, the twin reads."""
    mine, theirs = _rings.create_segment(RING_BYTES), _rings.create_segment(RING_BYTES)
    lane, writer = Lane(mine, attached(theirs)), twin.Writer(theirs.write, RING_BYTES)
    coming: collections.deque[bytes] = collections.deque()
    read = 0
    going: collections.deque[bytes] = collections.deque()
    for _ in range(rng.randrange(400)):
        one = frame(rng)
        kind = rng.randrange(4)
        if kind == 0 and writer.tail + writer.need(one) - twin.word(mine.read, "head") <= RING_BYTES:
            writer.send(one)
            coming.append(one)
        elif kind == 1:
            assert lane.receive_frame(NOW) == (coming.popleft() if coming else None)
        elif kind == 2:
            with contextlib.suppress(DeadlineExceeded):
                lane.send_frame(one, NOW)
                going.append(one)
        else:
            for position, got in twin.frames(mine.read, read):
                assert got == going.popleft()
                read = position
            theirs.write(twin.OFFSETS["head"], twin.packed("head", read))
    while coming:
        assert lane.receive_frame(NOW) == coming.popleft()
    assert [got for _, got in twin.frames(mine.read, read)] == list(going)


def bounded(error: RemoteProtocolError) -> None:
    assert len(str(error)) < 500


def check_hostile(rng: random.Random) -> None:
    mine, theirs = _rings.create_segment(RING_BYTES), _rings.create_segment(RING_BYTES)
    lane, writer = Lane(mine, attached(theirs)), twin.Writer(theirs.write, RING_BYTES)
    try:
        for _ in range(rng.randrange(1, 60)):
            kind = rng.randrange(6)
            if kind <= 1:
                writer.send(frame(rng))
            elif kind == 2:
                name = rng.choice(("tail", "head", "cpu", "waiting_data", "waiting_space", "ring_bytes", "version"))
                bits = 64 if twin.WORDS[name] == "<Q" else 32
                value = rng.choice((*TELLING, writer.tail + rng.choice(TELLING), rng.getrandbits(64)))
                theirs.write(twin.OFFSETS[name], twin.packed(name, value % 2**bits))
            elif kind == 3:
                theirs.write(twin.RING_OFFSET + rng.randrange(RING_BYTES - 64) // 64 * 64, rng.randbytes(rng.randrange(1, 33)))
            elif kind == 4:
                got = lane.receive_frame(NOW)
                if got is not None:
                    assert unpack_header(got).size == len(got) - 32 <= RING_BYTES
            else:
                with contextlib.suppress(DeadlineExceeded):
                    lane.send_frame(frame(rng), NOW)
    except RemoteProtocolError as error:
        bounded(error)
    assert twin.word(mine.read, "tail") == lane.positions[0]
    assert mine.read(0, 8) == twin.MAGIC


CHECKS = (check_honest, check_hostile)
