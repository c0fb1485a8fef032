"""One end of the fast protocol by hand: struct, mmap and a socket, so that every byte can be a wrong one. docs/wire.md, sections 1 to 5."""

from __future__ import annotations

import array
import contextlib
import fcntl
import json
import mmap
import os
import socket
import struct
import tempfile
import time
from typing import Any

from tests.twin import lane_twin as twin

__all__ = ["ARRAY", "FAST_VERSION", "HEADER", "Peer", "array_value", "memfd"]

HEADER = twin.HEADER  # size, kind, flags, call, interface, method, blocks, remaining_ns
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | 0x0010 | fcntl.F_SEAL_SEAL  # 0x0010: F_SEAL_FUTURE_WRITE
RING_BYTES = 1 << 16
TABLE_SLOTS = 8192
ARENA_BYTES = 4 << 20
# A peer that never says anything: the test has failed.
WATCHDOG_S = 60.0
ARRAY = 0x13
FAST_VERSION = 3


def memfd(size: int, *, seals: int = SEALS, sparse: bool = False) -> tuple[int, mmap.mmap]:
    """A segment as the protocol wants it, unless told otherwise."""
    fd = os.memfd_create("hostile", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    if not sparse:
        os.posix_fallocate(fd, 0, size)
    memory = mmap.mmap(fd, size)
    if seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd, memory


def array_value(**wrong: Any) -> bytes:
    """One lent float64 array of 1000 elements; ``wrong`` replaces any of its parts."""
    part = {
        "form": 1,
        "kind": b"f",
        "itemsize": 8,
        "order": 0,
        "zero": 0,
        "shape": (1000,),
        "strides": (),
        "segment": 0,
        "slot": 0,
        "offset": 0,
        **wrong,
    }
    ndim = part.get("ndim", len(part["shape"]))
    head = struct.pack("<BBcBBBH", ARRAY, part["form"], part["kind"], part["itemsize"], ndim, part["order"], part["zero"])
    body = b"".join(struct.pack("<Q", n) for n in part["shape"]) + b"".join(struct.pack("<q", n) for n in part["strides"])
    if part["form"] == 0:
        return b"".join([head, body, struct.pack("<Q", part.get("n", 8000)), part.get("data", bytes(8000))])
    return head + body + struct.pack("<IIQ", part["segment"], part["slot"], part["offset"])


class Peer:
    """Owns the control socket; speaks for either side."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        control.settimeout(WATCHDOG_S)
        self.lane_fd, self.lane = memfd(twin.RING_OFFSET + RING_BYTES)
        self.table_fd, self.table = memfd(TABLE_SLOTS * 8)
        self.arena_fd, self.arena = memfd(ARENA_BYTES)
        self.lane[:8] = twin.MAGIC
        self.set("version", twin.VERSION)
        self.set("ring_bytes", RING_BYTES)
        self.tail = self.head = 0
        self.theirs: mmap.mmap
        self.hello_body: dict[str, Any] = {}

    # -- control messages

    def send(self, kind: int, body: object, fds: list[int] | None = None, *, count: int | None = None, size: int | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = struct.pack("<IHH", len(data) if size is None else size, kind, len(fds or ()) if count is None else count)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        with contextlib.suppress(OSError):  # the other side may have had enough already
            self.control.sendmsg([head + data], ancillary)

    def receive(self) -> tuple[int, dict[str, Any], list[int]]:
        data, fds, _, _ = socket.recv_fds(self.control, 1 << 20, 8)
        size, kind, _ = struct.unpack_from("<IHH", data)
        while len(data) < 8 + size:
            data += self.control.recv(1 << 20)
        return kind, json.loads(data[8 : 8 + size]), list(fds)

    def hello(self, **wrong: Any) -> dict[str, Any]:
        body = {"fast": FAST_VERSION, "transport": "shm", "pid": os.getpid(), "interfaces": []}
        sizes = {"lane": len(self.lane), "table": TABLE_SLOTS, "table_bytes": len(self.table), "segment": len(self.arena)}
        return {**body, **sizes, **wrong}

    def map_theirs(self, body: dict[str, Any], fds: list[int]) -> None:
        self.theirs = mmap.mmap(fds[0], body["lane"], mmap.MAP_SHARED, mmap.PROT_READ)

    # -- frames

    def set(self, name: str, value: int) -> None:
        packed = twin.packed(name, value)
        self.lane[twin.OFFSETS[name] : twin.OFFSETS[name] + len(packed)] = packed

    def get(self, name: str) -> int:
        return twin.word(lambda offset, count: self.theirs[offset : offset + count], name)

    def next_frame(self) -> bytes:
        """The header and payload that the other side published next."""
        until = time.monotonic() + WATCHDOG_S
        while self.get("tail") == self.head:
            assert time.monotonic() < until, "no frame came"
            os.sched_yield()
        at = twin.RING_OFFSET + self.head % self.get("ring_bytes")
        size = struct.unpack_from("<I", self.theirs, at)[0]
        self.head += twin.rounded(size)
        self.set("head", self.head)
        return self.theirs[at : at + HEADER.size + size]

    def publish(self, payload: bytes, *, call: int, kind: int = 2, flags: int = 0, blocks: int = 1, size: int | None = None,
                interface: int = 0, method: int = 0, tail: int | None = None) -> None:  # fmt: skip
        """One frame; every field as the caller says."""
        at = twin.RING_OFFSET + self.tail
        frame = HEADER.pack(len(payload) if size is None else size, kind, flags, call, interface, method, blocks, 0) + payload
        self.lane[at : at + len(frame)] = frame
        self.tail += twin.rounded(len(payload))
        self.set("tail", self.tail if tail is None else tail)

    def until_the_end(self) -> None:
        """Until the other side hangs up; what it still says is passed over."""
        with contextlib.suppress(OSError):
            while self.control.recv(1 << 16):
                continue


def regular_file(size: int) -> int:
    with tempfile.TemporaryFile() as file:
        file.truncate(size)
        return os.dup(file.fileno())
