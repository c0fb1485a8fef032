from __future__ import annotations

import json
import os
import random
import resource
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from fastplug.errors import LocalProtocolError, RemoteProtocolError
from fastplug.protocols.fast import control as module
from fastplug.protocols.fast.control import BODY_BYTES_MAX, FDS_MAX, Control, Message, check_hello
from fastplug.shm._segment import Segment

HEAD = struct.Struct("<IHH")
SOON_S = 60.0


class Seen:
    """What a handler got; owns the descriptors."""

    def __init__(self) -> None:
        self.messages: list[tuple[int, dict[str, Any], int]] = []
        self.fds: list[int] = []

    def __call__(self, kind: int, body: dict[str, Any], fds: list[int]) -> None:
        self.messages.append((kind, body, len(fds)))
        self.fds += fds

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)


@pytest.fixture
def seen() -> Iterator[Seen]:
    made = Seen()
    yield made
    made.close()


@pytest.fixture
def ends() -> Iterator[tuple[Control, Control]]:
    one, other = (Control(sock, name) for sock, name in zip(socket.socketpair(), ("the plugin", "the host"), strict=True))
    yield one, other
    one.close()
    other.close()


@pytest.fixture
def raw() -> Iterator[tuple[socket.socket, Control]]:
    """A peer that the test plays itself."""
    mine, theirs = socket.socketpair()
    control = Control(theirs, "the peer")
    yield mine, control
    mine.close()
    control.close()


def packed(kind: int, body: Any = None, fds: int = 0) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
    return HEAD.pack(len(data), kind, fds) + data


def send_fds(sock: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    socket.send_fds(sock, [data], list(fds))


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_messages_and_descriptors(ends: tuple[Control, Control], seen: Seen) -> None:
    one, other = ends
    segments = [Segment.create(4096) for _ in range(3)]
    one.send(Message.HELLO, {"a": 1}, [segment.fd for segment in segments])
    one.send(Message.PING, {"n": 5})
    one.send(Message.SEGMENT, {"segment": 7}, [segments[1].fd])
    assert other.pump(seen)
    assert seen.messages == [(1, {"a": 1}, 3), (6, {"n": 5}, 0), (2, {"segment": 7}, 1)]
    assert [os.fstat(fd).st_ino for fd in seen.fds] == [os.fstat(segments[n].fd).st_ino for n in (0, 1, 2, 1)]
    assert all(not os.get_inheritable(fd) for fd in seen.fds)


def test_receive_waits_for_hello(ends: tuple[Control, Control]) -> None:
    one, other = ends
    thread = threading.Thread(target=one.send, args=(Message.HELLO, {"x": "y"}))
    thread.start()
    assert other.receive(Message.HELLO, SOON_S) == ({"x": "y"}, [])
    thread.join()


def test_receive_gives_up(ends: tuple[Control, Control]) -> None:
    with pytest.raises(TimeoutError, match=r"no HELLO within 0\.01 s"):
        ends[0].receive(Message.HELLO, 0.01)


def test_receive_of_another_message(raw: tuple[socket.socket, Control]) -> None:
    mine, control = raw
    segment = Segment.create(4096)
    before = open_fds()
    send_fds(mine, packed(Message.SEGMENT, {}, 1), [segment.fd])
    with pytest.raises(RemoteProtocolError, match="instead of HELLO"):
        control.receive(Message.HELLO, SOON_S)
    assert open_fds() == before


def test_the_end(ends: tuple[Control, Control], seen: Seen) -> None:
    one, other = ends
    one.send(Message.PING, {"n": 1})
    one.close()
    one.close()
    assert not other.pump(seen)
    assert seen.messages == [(6, {"n": 1}, 0)]
    assert not other.pump(seen)
    with pytest.raises(EOFError, match="closed the control socket"):
        other.receive(Message.HELLO, SOON_S)
    with pytest.raises(OSError, match="Broken pipe"):
        other.send(Message.PONG, {})


def test_one_byte_at_a_time(raw: tuple[socket.socket, Control], seen: Seen) -> None:
    mine, control = raw
    segment = Segment.create(4096)
    data = packed(Message.SEGMENT, {"segment": 3}, 1) + packed(Message.PING, {"n": 1})
    send_fds(mine, data[:1], [segment.fd])
    for at in range(1, len(data)):
        assert control.pump(seen)
        mine.send(data[at : at + 1])
    assert control.pump(seen)
    assert seen.messages == [(2, {"segment": 3}, 1), (6, {"n": 1}, 0)]


def test_unknown_types_are_skipped_and_their_descriptors_closed(raw: tuple[socket.socket, Control], seen: Seen) -> None:
    mine, control = raw
    segment = Segment.create(4096)
    before = open_fds()
    send_fds(mine, packed(99, b"not even json", 2), [segment.fd, segment.fd])
    mine.send(packed(Message.PING, {"n": 2}))
    assert control.pump(seen)
    assert seen.messages == [(6, {"n": 2}, 0)]
    assert open_fds() == before


def test_descriptors_that_this_process_has_no_room_for(ends: tuple[Control, Control], seen: Seen) -> None:
    """They are lost; those of the next message, when there is room again, are not taken for them."""
    one, other = ends
    segments = [Segment.create(4096) for _ in range(3)]
    one.send(Message.HELLO, {}, [segment.fd for segment in segments])
    one.send(Message.SEGMENT, {"segment": 1}, [segments[0].fd])
    one.send(Message.SEGMENT, {"segment": 2}, [segments[0].fd])
    free = os.dup(0)
    os.close(free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def make_room_after_the_second(kind: int, body: dict[str, Any], fds: list[int]) -> None:
        seen(kind, body, fds)
        if body.get("segment") == 1:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, hard))
    try:
        assert other.pump(make_room_after_the_second)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert seen.messages == [(1, {}, 1), (2, {"segment": 1}, 0), (2, {"segment": 2}, 1)]


@pytest.mark.parametrize(
    "data",
    [
        HEAD.pack(BODY_BYTES_MAX + 1, Message.PING, 0),
        HEAD.pack(2**32 - 1, 99, 0),
        HEAD.pack(2, Message.PING, FDS_MAX + 1) + b"{}",
        HEAD.pack(2, Message.PING, 1) + b"{}",
        HEAD.pack(2, Message.HELLO, 5) + b"{}",
        packed(Message.PING, b"{"),
        packed(Message.PING, b"[]"),
        packed(Message.PING, b"7"),
        packed(Message.PING, b"\xff\xfe"),
        packed(Message.PING, b"[" * 100_000),
        packed(Message.PING, b"9" * 10_000),
    ],
)
def test_what_is_no_message(raw: tuple[socket.socket, Control], seen: Seen, data: bytes) -> None:
    mine, control = raw
    mine.send(data)
    with pytest.raises(RemoteProtocolError, match="the peer sent"):
        control.pump(seen)
    mine.send(packed(Message.PING, {"n": 1}))
    assert not control.pump(seen), "nothing is read after that"
    assert not seen.messages


def test_descriptors_that_nobody_announced(raw: tuple[socket.socket, Control], seen: Seen) -> None:
    mine, control = raw
    segment = Segment.create(4096)
    before = open_fds()
    send_fds(mine, packed(Message.PING, {"n": 1}), [segment.fd])
    with pytest.raises(RemoteProtocolError, match="belong to no message"):
        control.pump(seen)
    assert open_fds() == before


def test_descriptors_without_end(raw: tuple[socket.socket, Control], seen: Seen) -> None:
    """Byte by byte of one long message, each with a descriptor."""
    mine, control = raw
    segment = Segment.create(4096)
    before = open_fds()
    mine.send(HEAD.pack(1000, Message.PING, 0))

    def feed() -> None:
        for _ in range(1000):
            send_fds(mine, b"x", [segment.fd])
            control.pump(seen)

    with pytest.raises(RemoteProtocolError, match="belong to no message"):
        feed()
    assert open_fds() == before


def test_close_closes_what_nobody_took(raw: tuple[socket.socket, Control], seen: Seen) -> None:
    mine, control = raw
    segment = Segment.create(4096)
    before = open_fds()
    send_fds(mine, HEAD.pack(1000, Message.SEGMENT, 1), [segment.fd])
    assert control.pump(seen)
    assert open_fds() == before + 1
    control.close()
    assert open_fds() == before - 1
    assert control.fileno() == -1


def test_a_handler_that_fails_has_had_its_message(ends: tuple[Control, Control], seen: Seen) -> None:
    one, other = ends
    one.send(Message.PING, {"n": 1})
    one.send(Message.PING, {"n": 2})

    def broken(_kind: int, _body: dict[str, Any], _fds: list[int]) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        other.pump(broken)
    assert other.pump(seen)
    assert seen.messages == [(6, {"n": 2}, 0)]


def test_a_peer_that_does_not_read(ends: tuple[Control, Control], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEND_TIMEOUT_S", 0.01)
    one, _ = ends

    def flood() -> None:
        while True:
            one.send(Message.PING, {"n": "x" * 50_000})

    with pytest.raises(TimeoutError, match="has not read its control socket"):
        flood()


def test_a_long_message_goes_in_pieces(ends: tuple[Control, Control], seen: Seen) -> None:
    one, other = ends
    body = {"interfaces": "x" * (4 << 20)}
    segment = Segment.create(4096)
    thread = threading.Thread(target=one.send, args=(Message.HELLO, body, [segment.fd]))
    thread.start()
    got, fds = other.receive(Message.HELLO, SOON_S)
    thread.join()
    seen.fds += fds
    assert got == body
    assert len(fds) == 1


def test_too_long_a_message_is_not_sent(ends: tuple[Control, Control]) -> None:
    with pytest.raises(LocalProtocolError, match="too large"):
        ends[0].send(Message.HELLO, {"x": "y" * BODY_BYTES_MAX})


def test_many_threads_send(ends: tuple[Control, Control], seen: Seen) -> None:
    one, other = ends
    segment = Segment.create(4096)

    def send(which: int) -> None:
        for n in range(100):
            one.send(Message.SEGMENT if which % 2 else Message.PONG, {"n": n, "who": which}, [segment.fd] if which % 2 else [])

    threads = [threading.Thread(target=send, args=(which,)) for which in range(4)]
    for thread in threads:
        thread.start()
    while len(seen.messages) < 400:
        assert other.pump(seen)
        for fd in seen.fds:
            os.close(fd)
        seen.fds.clear()
    for thread in threads:
        thread.join()
    for which in range(4):
        assert [body["n"] for _, body, _ in seen.messages if body["who"] == which] == list(range(100))
    assert all(fds == (kind == Message.SEGMENT) for kind, _, fds in seen.messages)


def test_hello_says_what_was_agreed_on() -> None:
    check_hello({"fast": 1, "transport": "shm"}, 1, "shm", "the peer")
    check_hello({"fast": 2, "transport": "shm"}, 2, "shm", "the peer")
    for body in ({}, {"fast": 2, "transport": "shm"}, {"fast": 1, "transport": "socket"}, {"fast": None, "transport": []}):
        with pytest.raises(RemoteProtocolError, match="the peer said HELLO"):
            check_hello(body, 1, "shm", "the peer")


def test_noise_is_a_message_or_an_error(seen: Seen) -> None:
    rng = random.Random(3)
    good = [packed(Message.PING, {"n": 1}), packed(Message.RETIRE, {"segment": 5}), packed(99, {"x": [1, 2, {"y": None}]})]
    for _ in range(500):
        mine, theirs = socket.socketpair()
        control = Control(theirs, "the peer")
        data = bytearray(b"".join(rng.choices(good, k=3)))
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            mine.send(data)
            control.pump(seen)
        except RemoteProtocolError:
            pass
        finally:
            mine.close()
            control.close()
    assert all(isinstance(body, dict) for _, body, _ in seen.messages)
