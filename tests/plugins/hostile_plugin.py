"""A plugin that breaks one rule of the protocol: argv[1] names which. It never ends by itself; its host does that."""

from __future__ import annotations

import os
import select
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

from tests.plugins.hostile import ARENA_BYTES, FAST_VERSION, HEADER, RING_BYTES, SEALS, TABLE_SLOTS, Peer, array_value, memfd, regular_file

__all__ = ["CONTROLS", "HARMLESS", "HELLOS", "KEEPS", "NEVER_WRITES", "REPLIES", "SEGMENTS", "WRITES_FOR_EVER"]

Breaks = Callable[[Peer], None]
U64 = (1 << 64) - 1
# How long the host may take to hear of one write; later than that it does not listen. And how late an answer is that its loop waits for.
HEARD_S = 5.0
LATE_S = 0.005

# What it answers to plus_one(): keyword arguments of Peer.publish over a correct reply.
REPLIES: dict[str, dict[str, Any]] = {
    "size: more than was published": {"size": 60_000},
    "size: 2^32 - 1": {"size": (1 << 32) - 1},
    "size: less than the value": {"size": 10},
    "size: nothing": {"size": 0},
    "kind: unknown": {"kind": 99},
    "kind: a request": {"kind": 1},
    "kind: an error that is none": {"kind": 3},
    "kind: padding, for ever": {"kind": 0xFFFF},
    "flags: spilled, but the reference has another size": {"flags": 1},
    "flags: spilled to outside of the segment": {"flags": 1, "payload": struct.pack("<IIQQ", 0, 0, ARENA_BYTES, 64)},
    "flags: spilled, offset and size overflow": {"flags": 1, "payload": struct.pack("<IIQQ", 0, 0, 64, U64 - 32)},
    "flags: spilled to an unknown segment": {"flags": 1, "payload": struct.pack("<IIQQ", 9, 0, 0, 64)},
    "flags: spilled to an unknown slot": {"flags": 1, "payload": struct.pack("<IIQQ", 0, 1 << 30, 0, 64)},
    "call: one that was never made": {"call_offset": 1000},
    "tail: beyond the ring": {"tail": RING_BYTES + 64},
    "tail: 2^64 - 64": {"tail": U64 - 63},
    "tail: not aligned": {"tail": 33},
    "tag: another type": {"payload": b"\x07\x01\0\0\0a"},
    "tag: unknown": {"payload": b"\xff"},
    "value: cut off": {"payload": array_value()[:-3]},
    "value: more behind it": {"payload": array_value() + b"\0"},
    "array form: unknown": {"array": {"form": 9}},
    "array kind: objects": {"array": {"kind": b"O"}},
    "array kind: void": {"array": {"kind": b"V"}},
    "array kind: strings": {"array": {"kind": b"U", "itemsize": 4}},
    "array itemsize: 0": {"array": {"itemsize": 0}},
    "array itemsize: 3": {"array": {"itemsize": 3}},
    "array dtype: not the declared one": {"array": {"kind": b"i"}},
    "array ndim: 65": {"array": {"shape": (1,) * 65}},
    "array ndim: more than there are numbers": {"array": {"ndim": 200}},
    "array order: unknown": {"array": {"order": 7}},
    "array shape: longer than the segment": {"array": {"shape": (ARENA_BYTES,)}},
    "array shape: 2^63": {"array": {"shape": (1 << 63,)}},
    "array shape: the product overflows": {"array": {"shape": (1 << 33, 1 << 33)}},
    "array shape: the product overflows to something small": {"array": {"shape": (1 << 32, 1 << 32, 1)}},
    "array shape: overflow hidden by a zero": {"array": {"shape": (0, U64, U64)}},
    "array strides: below the segment": {"array": {"order": 2, "strides": (-8,)}},
    "array strides: beyond the segment": {"array": {"order": 2, "strides": (1 << 40,)}},
    "array strides: overflow": {"array": {"order": 2, "strides": (-(1 << 63),)}},
    "array offset: behind the segment": {"array": {"offset": ARENA_BYTES}},
    "array offset: the end sticks out": {"array": {"offset": ARENA_BYTES - 7992}},
    "array offset: 2^64 - 8": {"array": {"offset": U64 - 7}},
    "array segment: unknown": {"array": {"segment": 5}},
    "array slot: unknown": {"array": {"slot": 1 << 31}},
    "array home: a slot where nothing is lent": {"array": {"form": 2, "slot": 77}},
    "array passed: the end sticks out": {"array": {"form": 3, "offset": ARENA_BYTES - 7992}},
    "array passed: a slot that is none": {"array": {"form": 3, "slot": 1 << 31}},
    "array inline: n is not what the shape says": {"array": {"form": 0, "n": 16, "data": bytes(16)}},
    "array inline: n is more than there is": {"array": {"form": 0, "n": 1 << 40}},
}


def _lane(**words: int) -> Breaks:
    def breaks(peer: Peer) -> None:
        for name, value in words.items():
            peer.set(name, value)

    return breaks


def _magic(peer: Peer) -> None:
    peer.lane[:8] = b"NOLANE01"


def _replace(name: str, size: int, make: Callable[[int], int]) -> Breaks:
    return lambda peer: setattr(peer, f"{name}_fd", make(size))


LANE_BYTES = 4096 + RING_BYTES

SEGMENTS: dict[str, Breaks] = {
    "lane: another magic": _magic,
    "lane: another version": _lane(version=9),
    "lane: a ring that is no power of two": _lane(ring_bytes=RING_BYTES - 64),
    "lane: a ring larger than its segment": _lane(ring_bytes=RING_BYTES * 2),
    "lane: an empty ring": _lane(ring_bytes=0),
    "lane: a ring of 2 GiB": _lane(ring_bytes=1 << 31),
    "lane: no seals": _replace("lane", LANE_BYTES, lambda size: memfd(size, seals=0)[0]),
    "lane: one seal is missing": _replace("lane", LANE_BYTES, lambda size: memfd(size, seals=SEALS & ~2)[0]),
    "lane: smaller than announced": _replace("lane", LANE_BYTES, lambda size: memfd(size - 4096)[0]),
    "lane: larger than announced": _replace("lane", LANE_BYTES, lambda size: memfd(size + 4096)[0]),
    "lane: a regular file": _replace("lane", LANE_BYTES, regular_file),
    "lane: a pipe": _replace("lane", 0, lambda size: os.pipe()[0]),
    "table: no seals": _replace("table", TABLE_SLOTS * 8, lambda size: memfd(size, seals=0)[0]),
    "table: sparse": _replace("table", TABLE_SLOTS * 8, lambda size: memfd(size, sparse=True)[0]),
    "arena: no seals": _replace("arena", ARENA_BYTES, lambda size: memfd(size, seals=0)[0]),
    "arena: sparse": _replace("arena", ARENA_BYTES, lambda size: memfd(size, sparse=True)[0]),
    "arena: it may still shrink": _replace("arena", ARENA_BYTES, lambda size: memfd(size, seals=SEALS & ~2)[0]),
}

HELLOS: dict[str, Breaks] = {
    "HELLO: garbage": lambda peer: peer.control.sendall(os.urandom(100)),
    "HELLO: no JSON": lambda peer: peer.send(1, b"{no json", _fds(peer)),
    "HELLO: no UTF-8": lambda peer: peer.send(1, b"\xff\xfe", _fds(peer)),
    "HELLO: a list": lambda peer: peer.send(1, [1, 2], _fds(peer)),
    "HELLO: nested 100 000 deep": lambda peer: peer.send(1, b"[" * 100_000, _fds(peer)),
    "HELLO: 4 GiB announced": lambda peer: peer.send(1, b"{}", _fds(peer), size=(1 << 32) - 1),
    "HELLO: 300 descriptors announced": lambda peer: peer.send(1, peer.hello(), _fds(peer), count=300),
    "HELLO: 250 descriptors sent": lambda peer: peer.send(1, peer.hello(), [peer.lane_fd] * 250, count=3),
    "HELLO: no descriptors": lambda peer: peer.send(1, peer.hello()),
    "HELLO: two descriptors": lambda peer: peer.send(1, peer.hello(), _fds(peer)[:2]),
    "HELLO: eight descriptors": lambda peer: peer.send(1, peer.hello(), [*_fds(peer), *_fds(peer), peer.lane_fd, peer.lane_fd]),
    "HELLO: four descriptors": lambda peer: peer.send(1, peer.hello(), [*_fds(peer), os.eventfd(0)]),
    "HELLO: an eventfd that is a pipe": lambda peer: peer.send(1, peer.hello(eventfd=True), [*_fds(peer), os.pipe()[0]]),
    "HELLO: an eventfd that is a socket": lambda peer: peer.send(1, peer.hello(eventfd=True), [*_fds(peer), peer.control.fileno()]),
    "HELLO: an eventfd that is a segment": lambda peer: peer.send(1, peer.hello(eventfd=True), [*_fds(peer), peer.lane_fd]),
    "HELLO: another message first": lambda peer: peer.send(6, {"n": 1}),
    "HELLO: another version": lambda peer: peer.send(1, peer.hello(fast=9), _fds(peer)),
    "HELLO: another transport": lambda peer: peer.send(1, peer.hello(transport="socket"), _fds(peer)),
    "HELLO: sizes are strings": lambda peer: peer.send(1, peer.hello(lane="many"), _fds(peer)),
    "HELLO: sizes are negative": lambda peer: peer.send(1, peer.hello(segment=-1), _fds(peer)),
    "HELLO: sizes are huge": lambda peer: peer.send(1, peer.hello(segment=1 << 70), _fds(peer)),
    "HELLO: sizes are missing": lambda peer: peer.send(1, {"fast": 1, "transport": "shm", "interfaces": []}, _fds(peer)),
    "HELLO: a table of no slots": lambda peer: peer.send(1, peer.hello(table=0), _fds(peer)),
    "HELLO: more slots than the table has": lambda peer: peer.send(1, peer.hello(table=1 << 19), _fds(peer)),
    "HELLO: interfaces are no list": lambda peer: peer.send(1, peer.hello(interfaces="all"), _fds(peer)),
    "HELLO: an interface without methods": lambda peer: peer.send(1, peer.hello(interfaces=[{"name": "a.b/1"}]), _fds(peer)),
    "HELLO: an interface of garbage": lambda peer: peer.send(1, peer.hello(interfaces=[{"name": "a.b/1", "methods": [["x"]]}]), _fds(peer)),
}


def _flood(peer: Peer) -> None:
    for _ in range(400):
        peer.send(99, {}, [peer.lane_fd] * 250, count=0)


def _spare() -> list[int]:
    return [memfd(4096)[0]]


# Sent instead of an answer, while a call waits.
CONTROLS: dict[str, Breaks] = {
    "control: garbage": lambda peer: peer.control.sendall(b"\xff" * 100),
    "control: no JSON": lambda peer: peer.send(2, b"{no json"),
    "control: a segment twice": lambda peer: peer.send(2, {"segment": 0, "bytes": 4096}, _spare()),
    "control: a segment with a wild id": lambda peer: peer.send(2, {"segment": 1 << 30, "bytes": 4096}, _spare()),
    "control: a segment of another size": lambda peer: peer.send(2, {"segment": 1, "bytes": 8192}, _spare()),
    "control: a segment without seals": lambda peer: peer.send(2, {"segment": 1, "bytes": 4096}, [memfd(4096, seals=0)[0]]),
    "control: a segment without a size": lambda peer: peer.send(2, {"segment": 1}, _spare()),
    "control: a table without seals": lambda peer: peer.send(5, {"table": 1, "slots": 8192, "bytes": 65536}, [memfd(65536, seals=0)[0]]),
    "control: a table of another size": lambda peer: peer.send(5, {"table": 1, "slots": 512, "bytes": 4096}, _spare()),
    "control: bytes of a segment that it was not told of": lambda peer: peer.send(10, {"segment": 3, "offset": 0, "bytes": 16}),
    "control: bytes behind the end of a segment": lambda peer: peer.send(10, {"segment": 0, "offset": ARENA_BYTES - 8, "bytes": 16}),
    "control: more bytes than may be asked for": lambda peer: peer.send(10, {"segment": 0, "offset": 0, "bytes": 1 << 20}),
    "control: the table of HELLO is lost": lambda peer: peer.send(9, {"table": 0}),
    "control: a table that is none is lost": lambda peer: peer.send(9, {"table": 4}),
    "control: nothing is lost": lambda peer: peer.send(9, {}),
    "control: a pong with a descriptor": lambda peer: peer.send(7, {"n": 12345}, _spare()),
    "call: one that was answered": lambda peer: peer.publish(b"\0", call=0, blocks=0),
    "control: a hundred thousand descriptors": _flood,
}


def _ask(peer: Peer) -> None:
    for n in range(100):
        peer.send(10, {"segment": 0, "offset": 64 * n, "bytes": 64})


# What a receiver passes over: the call is answered behind it.
HARMLESS: dict[str, Breaks] = {
    "nothing": lambda peer: None,
    "an unknown message": lambda peer: peer.send(99, {"news": [1]}),
    "an unknown message with descriptors": lambda peer: peer.send(99, {}, _spare() * 8),
    "a pong that nobody waits for": lambda peer: peer.send(7, {"n": 12345}),
    "a pong without a number": lambda peer: peer.send(7, {"n": [1]}),
    "a retired segment that is none": lambda peer: peer.send(4, {"segment": 5}),
    "the end of a segment that is none": lambda peer: peer.send(3, {"segment": 5}),
    "a lost segment that is none": lambda peer: peer.send(9, {"segment": 5}),
    "bytes that nobody asked for": lambda peer: peer.send(11, {"segment": 0, "offset": 0, "data": "!"}),
    "a table out of its turn": lambda peer: peer.send(5, {"table": 7, "slots": 8192, "bytes": 65536}, [memfd(65536)[0]]),
    "bytes of the first segment, a hundred times": _ask,
    "a segment whose descriptor was lost": lambda peer: peer.send(2, {"segment": 1, "bytes": 4096}, count=1),
}


def _keep(peer: Peer) -> None:
    """Answers every call and gives no array back."""
    inline = array_value(form=0, shape=(1,), n=8, data=bytes(8))
    while True:
        request = HEADER.unpack(peer.next_frame()[: HEADER.size])
        peer.publish(inline, call=request[3], method=request[5], blocks=0)


# Breaks no rule, and is no friend.
KEEPS = "keeps every array"
# What it does with the eventfd that its host's event loops watch.
NEVER_WRITES = "never writes its eventfd"
WRITES_FOR_EVER = "writes its eventfd for nothing"
WRITES = 100


def _write(eventfd: int) -> None:
    """Again and again, as soon as the host has heard it, until the host does not listen any more."""
    os.set_blocking(eventfd, True)  # the host shares this, and must not be kept by it
    poller = select.poll()
    for _ in range(WRITES):
        os.eventfd_write(eventfd, 1)
        until = time.monotonic() + HEARD_S
        poller.register(eventfd, select.POLLIN)
        while poller.poll(0):
            if time.monotonic() > until:
                return
            os.sched_yield()


def _write_and_answer(peer: Peer, eventfd: int, how: str) -> None:
    while True:
        request = HEADER.unpack(peer.next_frame()[: HEADER.size])
        if how == WRITES_FOR_EVER:
            _write(eventfd)
        until = time.monotonic() + LATE_S
        while time.monotonic() < until:  # longer than the host polls
            os.sched_yield()
        peer.publish(array_value(form=0, shape=(1,), n=8, data=bytes(8)), call=request[3], method=request[5], blocks=0)


def _fds(peer: Peer) -> list[int]:
    return [peer.lane_fd, peer.table_fd, peer.arena_fd]


def _interfaces() -> list[Any]:
    from tests.plugins.faults_api import Faults
    from tests.plugins.faults_plugin import Faulty

    from fastplug.interfaces import interface_of
    from fastplug.protocols.offering import announced

    return list(announced([(interface_of(Faults), Faulty())]))


def _answer(peer: Peer, how: str) -> None:
    request = HEADER.unpack(peer.next_frame()[: HEADER.size])
    call, method = request[3], request[5]
    if how in CONTROLS:
        CONTROLS[how](peer)
        return
    if how in HARMLESS:
        HARMLESS[how](peer)
    wrong = dict(REPLIES.get(how, {}))
    payload = wrong.pop("payload", None) or array_value(**wrong.pop("array", {}))
    peer.publish(payload, call=call + wrong.pop("call_offset", 0), method=method, **wrong)


def main(how: str) -> None:
    offer = dict(part.split("=") for part in os.environ["FASTPLUG_OFFER"].split(";"))
    control = socket.socket(fileno=int(offer["fd"]))
    interfaces = _interfaces()
    print(f"1|1|inherit|{offer['fd']}/{FAST_VERSION}/shm|fast|", flush=True)
    peer = Peer(control)
    _, body, fds = peer.receive()
    peer.map_theirs(body, fds)
    if how in SEGMENTS:
        SEGMENTS[how](peer)
    if how in HELLOS:
        HELLOS[how](peer)
    elif how in (NEVER_WRITES, WRITES_FOR_EVER):
        eventfd = os.eventfd(0, os.EFD_NONBLOCK)
        peer.send(1, peer.hello(interfaces=interfaces, eventfd=True), [*_fds(peer), eventfd])
        _write_and_answer(peer, eventfd, how)
    else:
        peer.send(1, peer.hello(interfaces=interfaces), _fds(peer))
    if how == KEEPS:
        _keep(peer)
    if how not in SEGMENTS and how not in HELLOS:
        _answer(peer, how)
    peer.until_the_end()


if __name__ == "__main__":
    main(sys.argv[1])
