"""yamux in the relay process: streams over one socket, with TLS inside them or not, and what a peer may do to them."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import random
import select
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.growing import growing_s
from tests.unit.relay_ends import WAIT_S, end, exactly, mux_pair, read_all

from fastplug.config import Tls
from fastplug.errors import Closed, DeadlineExceeded
from fastplug.net.relay import MuxSession, Relay
from fastplug.net.relay_loop import HELD_BYTES_MAX
from fastplug.net.relay_mux import STREAMS_MAX
from fastplug.yamux.frames import Flag, FrameType, header


@pytest.mark.parametrize("secure", [False, True])
def test_streams_of_both_sides_share_one_socket(relay: Relay, sides: tuple[Tls, Tls], secure: bool) -> None:
    """Each of the streams carries other bytes, all at once; both sides open some."""
    with mux_pair(relay, *(sides if secure else (None, None))) as (host, plugin):

        def echo(side: MuxSession) -> None:
            sock = end(side.accept())
            sock.sendall(hashlib.sha256(read_all(sock)).digest())
            sock.close()

        def ask(side: MuxSession, seed: int) -> bool:
            rng = random.Random(seed)
            payload = rng.randbytes(rng.choice((1, 100, 70_000, 900_000)))
            sock = end(side.open())
            sock.sendall(payload)
            sock.shutdown(socket.SHUT_WR)
            answer = read_all(sock)
            sock.close()
            return answer == hashlib.sha256(payload).digest()

        with ThreadPoolExecutor(24) as threads:
            echoes = [threads.submit(echo, side) for side in (host, plugin) for _ in range(6)]
            asked = [threads.submit(ask, side, 10 * number + (side is host)) for side in (host, plugin) for number in range(6)]
            assert all(one.result(WAIT_S) for one in asked)
            for one in echoes:
                one.result(WAIT_S)
        assert 0 < host.ping_s(WAIT_S) < WAIT_S
        host.close()
        assert host.closed.result(WAIT_S) == "the connection was closed"
        assert plugin.closed.result(WAIT_S) == "the peer closed the connection"
        assert plugin.accept() is plugin.accept() is None
        with pytest.raises(Closed, match="has ended: the peer closed"):
            plugin.open()
        with pytest.raises(Closed):
            plugin.ping_s(WAIT_S)


def test_a_reader_that_does_not_read_stops_its_sender_and_nobody_else(relay: Relay) -> None:
    with mux_pair(relay) as (host, plugin):
        stuck = host.open()
        unread = plugin.accept()
        sock = end(stuck)
        sock.settimeout(0.2)
        sent = 0
        while select.select([], [sock], [], 0.2)[1]:
            sent += sock.send(bytes(1 << 16))
        # two windows, what either side of the relay holds, and the buffers of the sockets
        assert sent < 4 * HELD_BYTES_MAX + (4 << 20)
        free = host.open()
        reads = plugin.accept()
        end(free).sendall(b"still")
        assert end(reads).recv(16) == b"still"
        received = 0
        while received < sent:
            received += len(end(unread).recv(1 << 16))
        assert received == sent
        for joint in (stuck, unread, free, reads):
            end(joint).close()


def test_a_session_that_ends_delivers_what_came_before(relay: Relay) -> None:
    peer, there = socket.socketpair()
    plugin = relay.mux(there, client=False)
    payload = bytes(100_000)
    peer.sendall(header(FrameType.DATA, Flag.SYN, 1, len(payload)) + payload + header(9, 0, 0, 0))
    joint = plugin.accept()
    assert read_all(end(joint)) == payload
    assert "type 9" in plugin.closed.result(WAIT_S)
    assert joint is not None
    assert "type 9" in joint.reason()
    assert read_all(peer).endswith(header(FrameType.GO_AWAY, 0, 0, 1))
    peer.close()
    joint.close()


def test_resets_and_refusals_of_the_peer(relay: Relay) -> None:
    peer, there = socket.socketpair()
    peer.settimeout(WAIT_S)
    host = relay.mux(there, client=True, close_timeout_s=0.05)
    first, second = host.open(), host.open()
    exactly(peer, 24)
    peer.sendall(header(FrameType.WINDOW_UPDATE, Flag.RST, 1, 0))
    assert end(first).recv(1) == b""
    assert first.reason() == "the peer reset the stream"
    end(second).close()  # and the peer never ends it
    assert exactly(peer, 24)[3::12] == bytes([Flag.FIN, Flag.RST])
    peer.sendall(header(FrameType.GO_AWAY, 0, 0, 0) + header(FrameType.PING, Flag.SYN, 0, 7))
    assert exactly(peer, 12) == header(FrameType.PING, Flag.ACK, 0, 7)
    third = host.open()
    assert third.reason() == "the peer takes no more streams"
    with pytest.raises(DeadlineExceeded):
        host.ping_s(0.05)
    host.close()
    peer.close()
    first.close()
    third.close()


def test_opening_waits_for_the_peer_to_accept(relay: Relay) -> None:
    with mux_pair(relay, accept_backlog=1) as (host, plugin):
        opened = [host.open() for _ in range(5)]
        accepted = [plugin.accept() for _ in opened]
        for there, here in zip(accepted, opened, strict=True):
            end(here).sendall(b"x")
            assert end(there).recv(1) == b"x"
        for joint in (*opened, *accepted):
            end(joint).close()


def test_more_streams_than_descriptors_are_reset(relay: Relay) -> None:
    peer, there = socket.socketpair()
    peer.settimeout(WAIT_S)
    plugin = relay.mux(there, client=False)
    answers = b""
    for start in (0, 200):  # the backlog has 256
        peer.sendall(b"".join(header(FrameType.WINDOW_UPDATE, Flag.SYN, 2 * n + 1, 0) for n in range(start, start + 200)))
        answers += exactly(peer, 12 * 200)[3::12]
    peer.sendall(header(FrameType.WINDOW_UPDATE, Flag.SYN, 2 * STREAMS_MAX + 1, 0))
    assert answers + exactly(peer, 12)[3::12] == bytes([Flag.ACK]) * STREAMS_MAX + bytes([Flag.RST])
    for _ in range(STREAMS_MAX):
        end(plugin.accept()).close()
    plugin.close()
    plugin.closed.result(WAIT_S)
    peer.close()


def test_the_gil_of_the_owner_does_not_matter(relay: Relay) -> None:
    answer = b""
    for answer_timeout_s in growing_s(0.2):
        with mux_pair(relay, keepalive_interval_s=answer_timeout_s / 4, answer_timeout_s=answer_timeout_s) as (host, plugin):
            joint = host.open()
            accepted = plugin.accept()
            assert ctypes.PyDLL(None).usleep(int(5e6 * answer_timeout_s)) == 0  # a PyDLL keeps the GIL
            with contextlib.suppress(OSError):  # a keepalive was answered too late: the relay has a CPU no sooner than we
                end(joint).sendall(b"alive")
                answer = end(accepted).recv(16)
            end(joint).close()
            end(accepted).close()
        if answer == b"alive":
            break
