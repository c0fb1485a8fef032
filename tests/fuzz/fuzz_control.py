# Invariant: whatever bytes and descriptors a peer sends on the control socket, in whatever pieces, reading them and acting on them ends
# well or in an error of the tree with a text of at most 2000 characters;
# no descriptor and no mapping is left. An honest stream is read as it was sent.
from __future__ import annotations

import functools
import json
import os
import random
import socket
import struct
from collections.abc import Callable
from typing import Any

from fastplug.errors import PluginError
from fastplug.protocols.fast.control import Control, close_all
from fastplug.protocols.fast.memory import SharedMemory
from fastplug.shm import _rings
from fastplug.shm._segment import Segment, live

HEAD = struct.Struct("<IHH")
FDS = {1: 3, 2: 1, 5: 1}
BODIES: tuple[dict[str, Any], ...] = (
    {"fast": 1, "transport": "shm", "lane": 266240, "table": 8192, "table_bytes": 65536, "segment": 4 << 20},
    {"segment": 1, "bytes": 4096},
    {"segment": 0},
    {"slots": 8192, "bytes": 65536},
    {"n": 5},
    {},
)
ODD: tuple[Any, ...] = (0, -1, 2**31, 2**64, 1.5, None, True, "1", [], {}, "x" * 300)


class Fds:
    """Segments of every kind that a message may carry, and some that it may not."""

    def __init__(self) -> None:
        self.segments = [_rings.create_segment(), Segment.create(65536), Segment.create(4096), Segment.create(4 << 20)]
        self.plain = os.memfd_create("plain")
        self.null = os.open("/dev/null", os.O_RDONLY)

    def close(self) -> None:
        close_all([self.plain, self.null])
        self.segments.clear()  # a segment closes its descriptor

    def pick(self, rng: random.Random, count: int) -> list[int]:
        return [rng.choice((*[segment.fd for segment in self.segments], self.plain, self.null)) for _ in range(count)]


def packed(rng: random.Random) -> tuple[bytes, int]:
    kind = rng.choice((1, 2, 2, 3, 4, 5, 6, 7, 8, 9, 200))
    body = dict(rng.choice(BODIES))
    for key in list(body):
        if rng.random() < 0.2:
            body[key] = rng.choice(ODD)
    data = json.dumps(body).encode()
    fds = FDS.get(kind, 0) if rng.random() < 0.9 else rng.randrange(6)
    return HEAD.pack(len(data), kind, fds) + data, fds


def bounded(error: PluginError) -> None:
    assert len(str(error)) < 2000


def check_messages(rng: random.Random, fds: Fds) -> None:
    mine, theirs = socket.socketpair()
    control = Control(theirs, "the peer")
    memory = SharedMemory(control, "the peer", limit_bytes=4 << 20, strict=False, slice_ns=10**8)
    segments = fds.segments
    try:
        if rng.random() < 0.7:
            body = BODIES[0]
            memory.accept(body, [os.dup(segments[0].fd), os.dup(segments[1].fd), os.dup(segments[3].fd)])
        for _ in range(rng.randrange(1, 12)):
            data, count = packed(rng)
            if rng.random() < 0.1:
                data = bytes(byte ^ (rng.random() < 0.02) * rng.randrange(256) for byte in data)
            sent = fds.pick(rng, count if rng.random() < 0.9 else rng.randrange(4))
            cut = rng.randrange(1, len(data) + 1)
            socket.send_fds(mine, [data[:cut]], sent)
            if cut < len(data):
                mine.send(data[cut:])
            if rng.random() < 0.5:
                control.pump(memory.handle)
        control.pump(memory.handle)
    except PluginError as error:
        bounded(error)
    finally:
        mine.close()
        memory.close()
        control.close()


def check_honest(rng: random.Random, fds: Fds) -> None:
    one, other = (Control(sock, "peer") for sock in socket.socketpair())
    sent, got = [], []

    def handle(kind: int, body: dict[str, Any], received: list[int]) -> None:
        got.append((kind, body, [os.fstat(fd).st_ino for fd in received]))
        close_all(received)

    for _ in range(rng.randrange(30)):
        kind = rng.choice((1, 2, 3, 4, 5, 6, 7, 8))
        chosen = fds.pick(rng, rng.randrange(FDS.get(kind, 0) + 1))
        body = dict(rng.choice(BODIES)) | {"pad": "y" * rng.choice((0, 10, 5000))}
        one.send(kind, body, chosen)  # type: ignore[arg-type]
        sent.append((kind, body, [os.fstat(fd).st_ino for fd in chosen]))
        if rng.random() < 0.3:
            assert other.pump(handle)
    one.close()
    assert not other.pump(handle)
    other.close()
    assert got == sent


def leaving_nothing(check: Callable[[random.Random, Fds], None]) -> Callable[[random.Random], None]:
    """The check with descriptors of its own, and with a look at what it left."""

    @functools.wraps(check)
    def checked(rng: random.Random) -> None:
        fds = Fds()
        held = len(os.listdir("/proc/self/fd")), live()
        check(rng, fds)
        assert (len(os.listdir("/proc/self/fd")), live()) == held, "left behind"
        fds.close()

    return checked


CHECKS = (leaving_nothing(check_messages), leaving_nothing(check_honest))
