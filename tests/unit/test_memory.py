"""One connection's memory from HELLO to the end, both sides in one process, over a real control socket."""

from __future__ import annotations

import logging
import os
import resource
import socket
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tests.unit.test_leases import Keeper, KeeperPlugin

from fastplug._wire import MethodCodec
from fastplug.errors import RemoteProtocolError
from fastplug.interfaces import interface_of
from fastplug.protocols._call import Caller, Remote
from fastplug.protocols._serve import Server
from fastplug.protocols.fast.control import Control, Message
from fastplug.protocols.fast.memory import PeerLeft, SharedMemory
from fastplug.shm._arena import TABLE_SLOTS
from fastplug.shm._segment import Segment
from fastplug.shm.watcher import wake_until_awake, watcher

MIB = 1 << 20


class Side:
    def __init__(self, sock: socket.socket, peer: str, limit_bytes: int) -> None:
        self.control = Control(sock, peer)
        self.memory = SharedMemory(self.control, peer, limit_bytes=limit_bytes, strict=False, slice_ns=10**8)

    @property
    def arena(self) -> Any:
        return self.memory.arena

    def watch(self) -> None:
        watcher().add(self.control.fileno(), lambda: self.control.pump(self.memory.handle) and None)

    def close(self) -> None:
        watcher().remove(self.control.fileno())
        self.memory.close()
        self.control.close()


class Joined:
    def __init__(self, limit_bytes: int = 64 * MIB) -> None:
        one, other = socket.socketpair()
        self.host, self.plugin = Side(one, "the plugin", limit_bytes), Side(other, "the host", limit_bytes)
        for side, peer in ((self.host, self.plugin), (self.plugin, self.host)):
            body, fds = side.memory.hello()
            side.control.send(Message.HELLO, body, fds)
            peer.memory.accept(*peer.control.receive(Message.HELLO, 60.0))
        self.plugin.watch()
        lane, port = self.host.memory.lane, self.host.memory.port
        assert lane is not None
        assert port is not None
        self.caller = Caller(lane, port, ConnectionError)
        self.implementation = KeeperPlugin(self.plugin)  # type: ignore[arg-type]
        methods = interface_of(Keeper).methods
        codecs = [MethodCodec("test.keeper/1", method) for method in methods]
        self.methods = {
            codec.name: Remote(self.caller, codec, 0, n, None, method.signature)
            for n, (codec, method) in enumerate(zip(codecs, methods, strict=True))
        }
        their_lane, their_port = self.plugin.memory.lane, self.plugin.memory.port
        assert their_lane is not None
        assert their_port is not None
        server = Server(their_lane, their_port, [[(codec, getattr(self.implementation, codec.name)) for codec in codecs]])
        self.thread = threading.Thread(target=server.run)
        self.thread.start()

    def __getattr__(self, name: str) -> Remote:
        return self.methods[name]

    def close(self) -> None:
        lane = self.plugin.memory.lane
        assert lane is not None
        lane.finish()
        wake_until_awake(lane)
        self.thread.join(60.0)
        self.caller.close(ConnectionError())
        self.caller.release()
        self.host.close()
        self.plugin.close()
        vars(self).clear()


@pytest.fixture
def joined(request: pytest.FixtureRequest) -> Iterator[Joined]:
    made = Joined(*getattr(request, "param", ()))
    yield made
    made.close()


def values(size: int, seed: int) -> Any:
    return np.arange(size, dtype=np.float64) + seed


def test_new_segments_are_announced_before_they_are_named(joined: Joined) -> None:
    for n, size in enumerate((1000, 600_000, 3_000_000)):
        got = joined.echo([values(size, n)])
        assert np.array_equal(got[0], values(size, n))
        made = joined.make(n, size, n)
        assert np.array_equal(made, np.arange(size) + n * 1e6)
    del got, made
    joined.implementation.kept.clear()
    assert joined.host.memory.stats()["arena"]["segments"] >= 2


@pytest.mark.parametrize("joined", [(16 * MIB,)], indirect=True)
def test_segments_are_retired_and_the_room_is_used_again(joined: Joined) -> None:
    for n in range(12):
        size = (600_000, 1_000_000, 1_500_000)[n % 3]
        joined.keep(n, values(size, n))
        assert np.array_equal(joined.implementation.kept[n], values(size, n))
        joined.drop(n)
        stats = joined.host.memory.stats()["arena"]
        assert stats["bytes"] <= 16 * MIB
    assert joined.host.arena.stats()["blocks_lent"] <= 1


def test_a_further_table_is_announced_before_it_is_needed(joined: Joined) -> None:
    count = TABLE_SLOTS + 500
    for n in range(count):
        joined.keep(n, values(128, n))
    memory = joined.host.memory
    assert memory.ledger is not None
    assert memory.ledger.lent == count
    for n in (0, 1, TABLE_SLOTS - 1, TABLE_SLOTS, count - 1):
        assert np.array_equal(joined.implementation.kept[n], values(128, n))
    joined.implementation.kept.clear()
    joined.nothing()
    assert memory.ledger.lent == 0


def test_a_lost_descriptor_is_an_error_that_says_so(joined: Joined, caplog: pytest.LogCaptureFixture) -> None:
    watcher().remove(joined.plugin.control.fileno())
    free = os.dup(0)
    os.close(free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    array = joined.host.arena.allocate(6 * MIB)  # a segment that the plugin does not know
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, hard))
    del array
    with caplog.at_level(logging.WARNING, "fastplug.fast"):
        try:
            handled = threading.Event()
            joined.host.memory._announce(9, joined.host.arena.first_segment())
            joined.plugin.control.pump(joined.plugin.memory.handle)
            handled.set()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "lost its descriptor" in caplog.text


def test_announcing_to_a_peer_that_left() -> None:
    joined = Joined()
    try:
        watcher().remove(joined.plugin.control.fileno())
        joined.plugin.control.close()
        with pytest.raises(ConnectionError, match="echo"):
            joined.echo([values(2_000_000, 1)])
        with pytest.raises(PeerLeft, match="closed the control socket"):
            joined.host.memory._announce(1, None)
    finally:
        joined.close()


@pytest.mark.parametrize(
    "body", [{}, {"lane": 4096}, {"lane": -1, "table": 1, "table_bytes": 1, "segment": 1}, {"lane": True}, {"lane": "x"}]
)
@pytest.mark.parametrize("count", [0, 2, 3])
def test_a_hello_that_lies_leaves_nothing_open(body: dict[str, Any], count: int) -> None:
    one, other = socket.socketpair()
    control = Control(one, "the peer")
    memory = SharedMemory(control, "the peer", limit_bytes=4 * MIB, strict=False, slice_ns=10**8)
    segment = Segment.create(4096)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(RemoteProtocolError):
        memory.accept(body, [os.dup(segment.fd) for _ in range(count)])
    assert len(os.listdir("/proc/self/fd")) == before
    memory.close()
    control.close()
    other.close()
