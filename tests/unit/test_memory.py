"""One connection's memory from HELLO to the end, both sides in one process, over a real control socket."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from tests.unit.test_leases import Keeper, KeeperPlugin

from fastplug._wire import MethodCodec
from fastplug.errors import RemoteProtocolError
from fastplug.interfaces import interface_of
from fastplug.protocols._call import Caller
from fastplug.protocols._remote import Remote
from fastplug.protocols._serve import Server
from fastplug.protocols.fast.control import Control, Message
from fastplug.protocols.fast.memory import PeerLeft, SharedMemory
from fastplug.shm import _ndarray
from fastplug.shm._loans import TABLE_SLOTS
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
        gc.collect()
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


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    """This process is at its limit: what is sent to it loses its descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def lose_what_is_announced(joined: Joined, announce: Callable[[], object]) -> None:
    """The plugin gets what the host announces without its descriptor; from here on both sides read their control sockets."""
    watcher().remove(joined.plugin.control.fileno())
    announce()
    with no_descriptor_left():
        joined.plugin.control.pump(joined.plugin.memory.handle)
    joined.plugin.watch()
    joined.host.watch()


def test_a_payload_in_a_lost_segment_is_copied_and_the_segment_comes_again(joined: Joined, caplog: pytest.LogCaptureFixture) -> None:
    size = 1_000_000  # 8 MB: a segment of its own
    array: Any = _ndarray.empty(joined.host.arena, size, np.float64)
    array[:] = values(size, 7)
    ledger, arena = joined.host.memory.ledger, joined.host.arena
    assert ledger is not None
    with caplog.at_level(logging.WARNING, "fastplug.fast"):
        lose_what_is_announced(joined, ledger.announce_all)
    assert "its descriptor was lost on the way" in caplog.text
    assert joined.plugin.memory.borrowed.lost_segments
    port = joined.plugin.memory.port
    assert port is not None
    copies = port.copies
    got = joined.echo([array[::2]])  # fetched, and sent home by reference
    assert np.array_equal(got[0], array[::2])
    assert np.shares_memory(got[0], array)
    assert port.copies == copies + 1
    assert joined.echo([array[1::2]])[0][5] == array[11]  # LOST was answered before: the plugin has mapped it now, or copied once more
    joined.nothing()
    assert not joined.plugin.memory.borrowed.lost_segments
    del got
    joined.keep(1, array)
    assert joined.implementation.kept[1][-1] == array[-1]
    joined.drop(1)
    joined.nothing()
    assert ledger.lent == 0
    assert arena.stats()["blocks_in_use"] == 1
    del array, arena, ledger


def test_a_long_message_in_a_lost_segment(joined: Joined) -> None:
    ledger = joined.host.memory.ledger
    assert ledger is not None
    keep = joined.host.arena.allocate(4 * MIB)  # the first segment is full
    spilled = joined.host.arena.allocate(1 * MIB)
    lose_what_is_announced(joined, ledger.announce_all)
    del spilled
    text = "long" * 100_000
    assert joined.text(len(text)) == "y" * len(text)
    assert joined.read(text) == len(text)
    del keep, ledger


def test_a_lost_table_is_asked_for_when_slots_run_out(joined: Joined) -> None:
    ledger = joined.host.memory.ledger
    assert ledger is not None
    watcher().remove(joined.plugin.control.fileno())
    joined.plugin.memory._more_slots()
    with no_descriptor_left():
        joined.host.control.pump(joined.host.memory.handle)
    assert ledger.tables_known == 1
    joined.plugin.memory._more_slots()  # the third one is passed over before the second is here
    joined.host.control.pump(joined.host.memory.handle)
    assert ledger.tables_known == 1
    joined.host.memory._missing(0)  # as lend() does without a slot
    joined.plugin.control.pump(joined.plugin.memory.handle)
    joined.host.control.pump(joined.host.memory.handle)
    assert ledger.tables_known == 2
    joined.plugin.watch()


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (Message.FETCH, {"segment": 0, "offset": 4 * MIB, "bytes": 1}),
        (Message.FETCH, {"segment": 0, "offset": 0, "bytes": (64 << 10) + 1}),
        (Message.FETCH, {"segment": 5, "offset": 0, "bytes": 1}),
        (Message.FETCH, {"segment": 0, "offset": -1, "bytes": 1}),
        (Message.FETCH, {}),
        (Message.LOST, {"table": 0}),
        (Message.LOST, {"table": 1}),
        (Message.LOST, {}),
        (Message.LOST, {"device": 1, "inode": -1}),
        (Message.FETCH, {"device": 1, "inode": 1, "offset": 0, "bytes": 1}),
    ],
)
def test_what_may_not_be_asked_for(joined: Joined, kind: Message, body: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError, match=r"the (plugin|peer)"):
        joined.host.memory.handle(kind, body, [])


def test_lost_segments_that_are_gone_and_bytes_that_nobody_wants_are_passed_over(joined: Joined) -> None:
    joined.host.memory.handle(Message.LOST, {"segment": 17}, [])
    joined.host.memory.handle(Message.BYTES, {"segment": 0, "offset": 0, "data": "not base64"}, [])


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
