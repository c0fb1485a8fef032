from __future__ import annotations

import os
import random
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from types import FrameType

import pytest

from fastplug._wire import pack_header
from fastplug.errors import DeadlineExceeded, RemoteProtocolError
from fastplug.protocols.fast import socket_link as module
from fastplug.protocols.fast.socket_link import FRAME_BYTES_MAX, SocketLink

SOON_S = 60.0
LONG_AGO_S = 0.001
# More than the buffers of both sides can hold.
LARGE = bytes(range(256)) * (128 << 10)


def frame(payload: bytes, call: int = 0) -> bytes:
    return pack_header(len(payload), 1, call=call) + payload


def soon_s() -> float:
    return time.monotonic() + SOON_S


@pytest.fixture
def links() -> Iterator[tuple[SocketLink, SocketLink]]:
    one, other = (SocketLink(sock) for sock in socket.socketpair())
    yield one, other
    one.close()
    other.close()


@pytest.fixture
def raw() -> Iterator[tuple[socket.socket, SocketLink]]:
    mine, theirs = socket.socketpair()
    link = SocketLink(theirs)
    yield mine, link
    mine.close()
    link.close()


def test_frames(links: tuple[SocketLink, SocketLink]) -> None:
    one, other = links
    assert other.receive_frame(LONG_AGO_S) is None
    sent = [frame(b""), frame(b"x"), frame(os.urandom(100_000)), frame(b"y" * 31)]
    for each in sent:
        one.send_frame(each, soon_s())
    assert [other.receive_frame(soon_s()) for _ in sent] == sent
    assert other.receive_frame(LONG_AGO_S) is None


def test_large_frames_between_threads(links: tuple[SocketLink, SocketLink]) -> None:
    one, other = links
    got: list[bytes | None] = []
    thread = threading.Thread(target=lambda: got.extend(other.receive_frame(soon_s()) for _ in range(3)))
    thread.start()
    for call in range(3):
        one.send_frame(frame(LARGE, call), soon_s())
    thread.join(SOON_S)
    assert got == [frame(LARGE, call) for call in range(3)]


def test_any_pieces(raw: tuple[socket.socket, SocketLink]) -> None:
    mine, link = raw
    rng = random.Random(1)
    sent = [frame(rng.randbytes(rng.randrange(200)), call) for call in range(50)]
    stream = b"".join(sent)
    got = []
    while stream or len(got) < len(sent):
        cut = rng.randrange(1, 80)
        mine.send(stream[:cut])
        stream = stream[cut:]
        while (each := link.receive_frame(LONG_AGO_S)) is not None:
            got.append(each)
    assert got == sent


def test_two_sides_that_only_send(links: tuple[SocketLink, SocketLink]) -> None:
    """Each waits for room, and reads meanwhile: otherwise both wait for ever."""
    got: dict[SocketLink, list[bytes | None]] = {link: [] for link in links}

    def talk(link: SocketLink) -> None:
        for call in range(4):
            link.send_frame(frame(LARGE, call), soon_s())
        got[link].extend(link.receive_frame(soon_s()) for _ in range(4))

    threads = [threading.Thread(target=talk, args=(link,)) for link in links]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON_S)
    for link in links:
        assert got[link] == [frame(LARGE, call) for call in range(4)]


def test_what_is_read_ahead_is_bounded(raw: tuple[socket.socket, SocketLink], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AHEAD_BYTES_MAX", 1000)
    mine, link = raw
    mine.send(frame(bytes(100)) * 100)
    with pytest.raises(DeadlineExceeded):
        link.send_frame(frame(LARGE), time.monotonic() + 0.05)
    assert 1000 <= link._ahead_bytes < 1000 + 132
    assert sum(link.receive_frame(LONG_AGO_S) is not None for _ in range(101)) == 100


def test_a_deadline_before_the_first_byte(links: tuple[SocketLink, SocketLink]) -> None:
    one, other = links
    sent = 0

    def fill() -> None:
        nonlocal sent
        while True:
            one.send_frame(frame(b"z" * 1000, sent), time.monotonic() + 0.005)
            sent += 1

    with pytest.raises(DeadlineExceeded, match="socket is full"):
        fill()
    for call in range(sent):
        got = other.receive_frame(soon_s())
        assert got == frame(b"z" * 1000, call)
    one.send_frame(frame(b"next"), soon_s())
    late = other.receive_frame(soon_s()) or b""
    if late == frame(b"z" * 1000, sent):  # a part of it was out: then all of it came
        late = other.receive_frame(soon_s()) or b""
    assert late == frame(b"next")


def test_a_deadline_in_the_middle_of_a_frame(links: tuple[SocketLink, SocketLink]) -> None:
    """Half a frame cannot be taken back: what is left goes out before the next one."""
    one, other = links
    with pytest.raises(DeadlineExceeded):
        one.send_frame(frame(LARGE, 1), time.monotonic() + 0.01)
    with pytest.raises(DeadlineExceeded):
        one.send_frame(frame(b"never sent", 2), time.monotonic() + 0.01)
    got: list[bytes | None] = []
    thread = threading.Thread(target=lambda: got.extend(other.receive_frame(soon_s()) for _ in range(2)))
    thread.start()
    one.send_frame(frame(b"three", 3), soon_s())
    thread.join(SOON_S)
    assert got == [frame(LARGE, 1), frame(b"three", 3)]


class StopError(Exception):
    pass


def stop(_signal: int, _frame: FrameType | None) -> None:
    raise StopError


@pytest.mark.parametrize("what", ["sending", "receiving"])
def test_an_exception_of_a_signal_handler_leaves_the_stream_whole(what: str, links: tuple[SocketLink, SocketLink]) -> None:
    one, other = links
    large = frame(LARGE, 1)
    before = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        with pytest.raises(StopError):
            one.send_frame(large, None) if what == "sending" else one.receive_frame(None)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    got: list[bytes | None] = []
    expected = [large] * bool(one._unsent) + [frame(b"after", 2)]
    thread = threading.Thread(target=lambda: got.extend(other.receive_frame(soon_s()) for _ in expected))
    thread.start()
    one.send_frame(frame(b"after", 2), soon_s())
    thread.join(SOON_S)
    assert got == expected
    other.send_frame(frame(b"answer", 3), soon_s())
    assert one.receive_frame(soon_s()) == frame(b"answer", 3)


def test_an_interrupt_that_loses_count_is_an_end_and_no_mixed_up_stream(links: tuple[SocketLink, SocketLink]) -> None:
    one, _ = links
    one._exact = False
    for use in (lambda: one.send_frame(frame(b""), None), lambda: one.receive_frame(None)):
        with pytest.raises(EOFError, match="count was lost"):
            use()


def test_a_frame_that_is_too_large_is_refused_at_once(raw: tuple[socket.socket, SocketLink]) -> None:
    mine, link = raw
    mine.send(struct.pack("<I", FRAME_BYTES_MAX - 31) + bytes(28))
    with pytest.raises(RemoteProtocolError, match="announced a frame"):
        link.receive_frame(LONG_AGO_S)


def test_an_announced_size_is_not_set_aside_before_it_comes(raw: tuple[socket.socket, SocketLink]) -> None:
    mine, link = raw
    mine.send(struct.pack("<I", FRAME_BYTES_MAX - 32) + bytes(28))
    assert link.receive_frame(LONG_AGO_S) is None
    assert len(link._frame) == module.STEP_BYTES


@pytest.mark.parametrize("part", [0, 10, 32, 40])
def test_the_end(raw: tuple[socket.socket, SocketLink], part: int) -> None:
    mine, link = raw
    mine.send(frame(b"last") + frame(bytes(100))[:part])
    mine.close()
    assert link.receive_frame(None) == frame(b"last")
    with pytest.raises(EOFError):
        link.receive_frame(None)
    with pytest.raises(EOFError):
        link.send_frame(frame(b"x"), None)


@pytest.mark.parametrize("waits_in", ["send", "receive"])
def test_peer_gone_ends_whoever_waits(links: tuple[SocketLink, SocketLink], waits_in: str) -> None:
    one, _ = links
    ended = threading.Event()
    started = threading.Event()

    def wait() -> None:
        started.set()
        try:
            one.send_frame(frame(LARGE), None) if waits_in == "send" else one.receive_frame(None)
        except EOFError:
            ended.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert started.wait(SOON_S)
    one.peer_gone()
    one.peer_gone()
    assert not one.wake()
    assert ended.wait(SOON_S)
    thread.join()


def test_finish_receives_what_came_and_still_sends(links: tuple[SocketLink, SocketLink]) -> None:
    one, other = links
    one.send_frame(frame(b"the last request"), None)
    other.finish()
    assert other.receive_frame(None) == frame(b"the last request")
    with pytest.raises(EOFError):
        other.receive_frame(None)
    other.send_frame(frame(b"its reply"), None)
    assert one.receive_frame(None) == frame(b"its reply")
    other.peer_gone()
    with pytest.raises(EOFError):
        other.send_frame(frame(b"x"), None)
