"""The link over a stream socket: what is half sent or half received is finished by the next call, and nobody waits for ever."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import NoReturn

import pytest
from tests.unit.two_ends import HEADER_BYTES, NOW, SOON_S

from fastplug._wire import MESSAGE_BYTES_MAX, pack_header
from fastplug.errors import DeadlineExceeded, RemoteProtocolError
from fastplug.net._socket_link import SocketLink

REQUEST, REPLY = 1, 2
# More than the buffers of both ends hold.
LARGE = 32 << 20


def frame(payload: bytes, kind: int = REPLY, call: int = 1) -> bytes:
    return pack_header(len(payload), kind, call=call) + payload


def soon() -> int:
    return time.monotonic_ns() + int(SOON_S * 1e9)


def read(sock: socket.socket, n: int) -> bytes:
    data = bytearray()
    while len(data) < n:
        data += sock.recv(min(n - len(data), 1 << 20))
    return bytes(data)


@pytest.fixture
def ends() -> Iterator[tuple[SocketLink, socket.socket]]:
    """A link, and its peer as a bare socket."""
    near, far = socket.socketpair()
    link = SocketLink(near)
    with far:
        yield link, far
        link.close()


Ends = tuple[SocketLink, socket.socket]


@pytest.mark.parametrize("size", [0, 1, 1000, (16 << 10) - HEADER_BYTES, 16 << 10, 300_000, LARGE])
def test_frames_of_every_size_pass(size: int) -> None:
    one, other = (SocketLink(sock) for sock in socket.socketpair())
    sent = [frame(os.urandom(size), call=n) for n in range(3)]

    def send() -> None:
        for each in sent:
            one.send_frame(each)

    sender = threading.Thread(target=send)
    sender.start()
    assert [other.receive_frame(soon()) for _ in sent] == sent
    sender.join()
    one.close()
    with pytest.raises(EOFError):
        other.receive_frame(soon())
    other.close()


def test_a_frame_may_come_byte_by_byte(ends: Ends) -> None:
    link, far = ends
    whole = frame(b"some bytes")
    for byte in whole[:-1]:
        far.send(bytes([byte]))
        assert link.receive_frame(NOW) is None
    far.send(whole[-1:] + whole[:40])
    assert link.receive_frame(NOW) == whole
    assert link.receive_frame(NOW) is None
    far.send(whole[40:])
    assert link.receive_frame(NOW) == whole


def test_a_large_frame_is_kept_across_deadlines(ends: Ends) -> None:
    link, far = ends
    whole = frame(os.urandom(1 << 20))
    far.setblocking(False)
    rest = memoryview(whole)
    while rest:
        assert link.receive_frame(NOW) is None
        rest = rest[far.send(rest[:100_000]) :]
    assert link.receive_frame(NOW) == whole


def test_the_deadline_holds_while_nothing_comes(ends: Ends) -> None:
    link, _ = ends
    until = time.monotonic_ns() + 20_000_000
    assert link.receive_frame(until) is None
    assert time.monotonic_ns() >= until


def test_a_frame_that_nobody_takes_is_finished_before_the_next(ends: Ends) -> None:
    link, far = ends
    first, second = frame(os.urandom(LARGE), REQUEST, 1), frame(b"second", REQUEST, 2)
    with pytest.raises(DeadlineExceeded, match="whole call"):
        link.send_frame(first, time.monotonic_ns() + 20_000_000)
    with pytest.raises(DeadlineExceeded, match="nothing was sent"):
        link.send_frame(second, NOW)
    sender = threading.Thread(target=link.send_frame, args=(second, soon()))
    sender.start()
    assert read(far, len(first)) == first
    assert read(far, len(second)) == second
    sender.join()


def test_two_sides_that_send_at_once_do_not_wait_for_each_other() -> None:
    """The plugin answers a call that was given up, while the host sends the next one."""
    host, plugin = (SocketLink(sock) for sock in socket.socketpair())
    given_up, large = frame(b"x", REQUEST, 1), frame(os.urandom(LARGE), REQUEST, 2)
    late, answer = frame(os.urandom(LARGE), REPLY, 1), frame(b"y", REPLY, 2)

    def serve() -> None:
        assert plugin.receive_frame(soon()) == given_up
        plugin.send_frame(late)
        assert plugin.receive_frame(soon()) == large
        plugin.send_frame(answer)

    server = threading.Thread(target=serve)
    host.send_frame(given_up)
    assert host.receive_frame(NOW) is None
    server.start()
    host.send_frame(large)
    assert host.receive_frame(soon()) == late
    assert host.receive_frame(soon()) == answer
    server.join()
    host.close()
    plugin.close()


class Interrupt(Exception):
    pass


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGALRM raises Interrupt, as Ctrl-C raises KeyboardInterrupt."""

    def interrupt(*_: object) -> NoReturn:
        raise Interrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    yield
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("with_deadline", [False, True])
def test_a_signal_ends_a_receive_and_loses_nothing(ends: Ends, interruptible: None, with_deadline: bool) -> None:
    link, far = ends
    whole = frame(os.urandom(100_000))
    far.sendall(whole[:60_000])

    def receive() -> None:
        threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGALRM)).start()
        link.receive_frame(soon() if with_deadline else 0)

    with pytest.raises(Interrupt):
        receive()
    far.sendall(whole[60_000:])
    assert link.receive_frame(soon()) == whole


@pytest.mark.parametrize("with_deadline", [False, True])
def test_a_signal_ends_a_send_and_the_rest_follows(ends: Ends, interruptible: None, with_deadline: bool) -> None:
    link, far = ends
    first, second = frame(os.urandom(LARGE), REQUEST, 1), frame(b"second", REQUEST, 2)

    def interrupt_the_send() -> None:
        far.recv(1, socket.MSG_PEEK)
        os.kill(os.getpid(), signal.SIGALRM)

    def send() -> None:
        threading.Thread(target=interrupt_the_send).start()
        link.send_frame(first, soon() if with_deadline else 0)

    with pytest.raises(Interrupt):
        send()
    sender = threading.Thread(target=link.send_frame, args=(second, soon()))
    sender.start()
    assert read(far, len(first)) == first
    assert read(far, len(second)) == second
    sender.join()


def test_what_has_come_is_received_before_the_end(ends: Ends) -> None:
    link, far = ends
    whole = frame(b"last words")
    far.sendall(whole + whole[:10])
    far.close()
    assert link.receive_frame(soon()) == whole
    with pytest.raises(EOFError):
        link.receive_frame(soon())
    with pytest.raises(EOFError):
        link.send_frame(whole)


@pytest.mark.parametrize("how", ["peer_gone", "finish"])
def test_the_end_wakes_who_receives(ends: Ends, how: str) -> None:
    link, far = ends
    ended = threading.Event()

    def receive() -> None:
        with pytest.raises(EOFError):
            link.receive_frame()
        ended.set()

    threading.Thread(target=receive).start()
    getattr(link, how)()
    assert ended.wait(SOON_S)
    assert not link.wake()
    if how == "finish":
        link.send_frame(frame(b"the reply to the call in hand"))
        assert read(far, HEADER_BYTES)


def test_the_end_wakes_who_sends(ends: Ends) -> None:
    link, _ = ends
    ended = threading.Event()

    def send() -> None:
        with pytest.raises(EOFError):
            link.send_frame(frame(bytes(LARGE)))
        ended.set()

    threading.Thread(target=send).start()
    link.peer_gone()
    assert ended.wait(SOON_S)


def test_a_closed_link_has_ended(ends: Ends) -> None:
    link, _ = ends
    link.close()
    link.close()
    link.peer_gone()
    with pytest.raises(EOFError):
        link.receive_frame(soon())
    with pytest.raises(EOFError):
        link.send_frame(frame(b""))


@pytest.mark.parametrize("header", [pack_header(MESSAGE_BYTES_MAX + 1, REPLY), pack_header(0, 77), pack_header(0, REPLY, flags=0x8000)])
def test_a_header_that_is_none_is_refused_each_time(ends: Ends, header: bytes) -> None:
    link, far = ends
    far.sendall(header)
    for _ in range(2):
        with pytest.raises(RemoteProtocolError):
            link.receive_frame(soon())
