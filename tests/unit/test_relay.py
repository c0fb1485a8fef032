"""The relay process: TLS and yamux between sockets, whoever ends first, and what becomes of it when one of the processes does."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import random
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from tests.conftest import ROOT

from fastplug.config import Tls
from fastplug.errors import Closed, ConfigError, DeadlineExceeded, TlsRefused
from fastplug.net import relay_main
from fastplug.net.relay import Joint, MuxSession, Relay
from fastplug.net.relay_joint import HANDSHAKE_TIMEOUT_S
from fastplug.net.relay_loop import HELD_BYTES_MAX, MESSAGE_BYTES_MAX
from fastplug.net.relay_mux import STREAMS_MAX
from fastplug.net.tls import auto_mtls, context, one_time_identity, to_json
from fastplug.yamux.frames import Flag, FrameType, header

# Everything here takes milliseconds; a machine that is swapping takes longer.
WAIT_S = 20.0


@pytest.fixture(scope="module")
def relay() -> Iterator[Relay]:
    made = Relay()
    hold = made.hold()
    yield made
    hold.release()


@pytest.fixture(scope="module")
def sides() -> tuple[Tls, Tls]:
    """Host's and plugin's, which trust each other; the plugin's key is of the curve that go-plugin uses."""
    host, plugin = one_time_identity(), one_time_identity("P-521")
    return auto_mtls(host, plugin.certificate_pem), auto_mtls(plugin, host.certificate_pem)


@contextlib.contextmanager
def tls_pair(relay: Relay, client: Tls, server: Tls) -> Iterator[tuple[Joint, Joint]]:
    here, there = socket.socketpair()
    connecting, listening = relay.tls(here, client, server=False), relay.tls(there, server, server=True)
    yield connecting, listening
    connecting.close()
    listening.close()


@contextlib.contextmanager
def mux_pair(
    relay: Relay, client: Tls | None = None, server: Tls | None = None, **limits: float
) -> Iterator[tuple[MuxSession, MuxSession]]:
    here, there = socket.socketpair()
    host, plugin = relay.mux(here, client=True, tls=client, **limits), relay.mux(there, client=False, tls=server, **limits)
    yield host, plugin
    host.close()
    plugin.close()
    plugin.closed.result(WAIT_S)


def end(joint: Joint | None) -> socket.socket:
    assert joint is not None
    assert joint.socket is not None
    joint.socket.settimeout(WAIT_S)
    return joint.socket


def exactly(sock: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        piece = sock.recv(count - len(found))
        assert piece, "it ended too early"
        found += piece
    return found


def read_all(sock: socket.socket) -> bytes:
    found = bytearray()
    while piece := sock.recv(1 << 16):
        found += piece
    return bytes(found)


def test_tls_carries_bytes_both_ways_and_tells_when_both_sides_accepted(relay: Relay, sides: tuple[Tls, Tls]) -> None:
    with tls_pair(relay, *sides) as (connecting, listening):
        listening.ready.result(WAIT_S)
        assert not connecting.ready.done()  # nothing came from there yet
        payload = random.Random(1).randbytes(3 << 20)
        with ThreadPoolExecutor(2) as threads:
            sends = [threads.submit(end(one).sendall, payload) for one in (connecting, listening)]
            for one in (connecting, listening):
                received = b""
                while len(received) < len(payload):
                    received += end(one).recv(1 << 18)
                assert received == payload
            for send in sends:
                send.result(WAIT_S)
        connecting.ready.result(WAIT_S)
        end(connecting).close()
        assert end(listening).recv(1) == b""
        assert connecting.closed.result(WAIT_S) == "the connection was closed"
        assert listening.reason() == "the peer closed the connection"


def test_an_end_that_can_be_seen_has_been_told(relay: Relay, sides: tuple[Tls, Tls]) -> None:
    for _ in range(20):
        with tls_pair(relay, *sides) as (connecting, listening):
            listening.ready.result(WAIT_S)
            end(listening).close()
            assert end(connecting).recv(1) == b""
            relay.catch_up()
            assert connecting.closed.done()


def test_what_was_sent_before_the_end_arrives(relay: Relay, sides: tuple[Tls, Tls]) -> None:
    payload = bytes(1 << 20)
    with tls_pair(relay, *sides) as (connecting, listening), ThreadPoolExecutor(1) as thread:

        def send_and_leave() -> None:
            end(connecting).sendall(payload)
            end(connecting).close()

        sent = thread.submit(send_and_leave)
        assert read_all(end(listening)) == payload
        sent.result(WAIT_S)


def test_an_inner_socket_of_the_callers_own(relay: Relay, sides: tuple[Tls, Tls]) -> None:
    mine, inner = socket.socketpair()
    here, there = socket.socketpair()
    with mine:
        connecting = relay.tls(here, sides[0], server=False, inner=inner)
        listening = relay.tls(there, sides[1], server=True)
        assert connecting.socket is None
        end(listening).sendall(b"hello")
        assert mine.recv(16) == b"hello"
    assert end(listening).recv(1) == b""
    listening.close()


def test_a_stranger_is_refused_and_both_sides_say_so(relay: Relay, sides: tuple[Tls, Tls]) -> None:
    stranger = one_time_identity()
    host, plugin = sides
    unknown_client = replace(host, certificate_pem=stranger.certificate_pem, key_pem=stranger.key_pem)
    with tls_pair(relay, unknown_client, plugin) as (connecting, listening):
        with pytest.raises(TlsRefused, match="this side refused the certificate of the connecting side"):
            listening.ready.result(WAIT_S)
        with pytest.raises(TlsRefused, match=r"the listening side \(TLS server\) refused our certificate"):
            connecting.ready.result(WAIT_S)
        assert connecting.closed.result(WAIT_S).startswith("TLS: the listening side")
        assert end(connecting).recv(1) == end(listening).recv(1) == b""
    with tls_pair(relay, auto_mtls(stranger, stranger.certificate_pem), plugin) as (connecting, listening):
        with pytest.raises(TlsRefused, match="this side refused the certificate of the listening side"):
            connecting.ready.result(WAIT_S)
        with pytest.raises(TlsRefused, match="refused our certificate"):
            listening.ready.result(WAIT_S)


def test_who_has_no_certificate_is_refused(relay: Relay, sides: tuple[Tls, Tls]) -> None:
    here, there = socket.socketpair()
    listening = relay.tls(there, sides[1], server=True)
    anonymous = context(replace(sides[0], certificate_pem=b"", key_pem=b""), server=False)
    here.settimeout(WAIT_S)
    with (
        anonymous.wrap_socket(here, server_hostname="localhost") as connected,
        pytest.raises(ssl.SSLError, match=r"(?i)certificate required"),
    ):
        connected.recv(1)
    with pytest.raises(TlsRefused, match="it has no certificate"):
        listening.ready.result(WAIT_S)
    listening.close()


@pytest.mark.parametrize(("sent", "kind", "words"), [(b"PRI * HTTP/2.0\r\n", TlsRefused, "does not speak TLS"), (b"", Closed, "closed")])
def test_a_peer_without_tls(relay: Relay, sides: tuple[Tls, Tls], sent: bytes, kind: type[Exception], words: str) -> None:
    """One that speaks something else is refused; one that says nothing was a probe."""
    here, there = socket.socketpair()
    listening = relay.tls(there, sides[1], server=True)
    here.sendall(sent)
    here.shutdown(socket.SHUT_WR)
    with pytest.raises(kind, match=words):
        listening.ready.result(WAIT_S)
    here.close()
    listening.close()


def test_certificates_that_do_not_fit_end_one_connection_only(relay: Relay, sides: tuple[Tls, Tls]) -> None:
    broken = replace(sides[0], key_pem=one_time_identity().key_pem)
    with tls_pair(relay, broken, sides[1]) as (connecting, _):
        assert "cannot be used" in connecting.closed.result(WAIT_S)
    with pytest.raises(ConfigError, match="can be passed on"):
        relay.tls(socket.socket(), replace(sides[0], trusted_pem=b"x" * MESSAGE_BYTES_MAX), server=False)
    with tls_pair(relay, *sides) as (_, listening):
        listening.ready.result(WAIT_S)


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
    with mux_pair(relay, keepalive_interval_s=0.05, answer_timeout_s=0.2) as (host, plugin):
        joint = host.open()
        accepted = plugin.accept()
        assert ctypes.PyDLL(None).sleep(1) == 0  # a PyDLL keeps the GIL
        end(joint).sendall(b"alive")
        assert end(accepted).recv(16) == b"alive"
        assert not host.closed.done()
        end(joint).close()
        end(accepted).close()


def test_a_relay_that_was_killed_is_told_and_replaced(sides: tuple[Tls, Tls]) -> None:
    relay = Relay()
    with mux_pair(relay) as (host, plugin):
        joint = host.open()
        accepted = plugin.accept()
        assert relay.pid is not None
        os.kill(relay.pid, signal.SIGKILL)
        for ended in (host.closed, plugin.closed, joint.closed):
            assert "the relay process" in ended.result(WAIT_S)
        assert end(joint).recv(1) == b""
        end(accepted).close()
        end(joint).close()
    with tls_pair(relay, *sides) as (_, listening):
        listening.ready.result(WAIT_S)


def test_a_relay_ends_with_its_last_connection_and_is_not_shared_with_a_fork(sides: tuple[Tls, Tls]) -> None:
    relay = Relay()
    assert relay.pid is None
    hold = relay.hold()
    pid = relay.pid
    assert pid is not None
    with mux_pair(relay):
        hold.release()
        hold.release()
        assert relay.pid == pid
    pidfd_ended(pid)
    assert relay.pid in (None, pid)


def pidfd_ended(pid: int) -> None:
    """Waits for the end of a process that may be gone already."""
    with contextlib.suppress(ProcessLookupError):
        fd = os.pidfd_open(pid)
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        assert poller.poll(WAIT_S * 1000)
        os.close(fd)


OWNER = """
import os, sys
from fastplug.net.relay import relay
hold = relay().hold()
if os.fork() == 0:
    os.read(0, 1)      # a child that lives on, until the test is over
    os._exit(0)
print(relay().pid, flush=True)
os.kill(os.getpid(), 9)
"""


def test_a_relay_ends_with_its_owner_even_if_that_left_a_forked_child() -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    assert owner.stdout is not None
    assert owner.stdin is not None
    pidfd_ended(int(owner.stdout.readline()))
    owner.stdin.close()
    owner.stdout.close()
    assert owner.wait(WAIT_S) == -signal.SIGKILL


def test_a_handshake_that_never_ends_is_given_up(sides: tuple[Tls, Tls], monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, with a clock that is ahead."""
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    relaying = relay_main.Relaying(its)
    here, there = socket.socketpair()
    inner, other = socket.socketpair()
    thread = threading.Thread(target=relaying.run)
    monkeypatch.setattr("fastplug.net.relay_joint.HANDSHAKE_TIMEOUT_S", HANDSHAKE_TIMEOUT_S / 1000)
    thread.start()
    command = {"do": "tls", "id": 1, "server": True, "tls": to_json(sides[1])}
    socket.send_fds(mine, [json.dumps(command).encode()], [there.fileno(), inner.fileno()])
    said = json.loads(mine.recv(1 << 16))
    assert said["say"] == "closed"
    assert said["refused"]
    assert "did not finish the handshake in time" in said["reason"]
    mine.close()
    thread.join(WAIT_S)
    for one in (here, there, inner, other):
        one.close()


def test_a_refused_peer_that_has_sent_more_still_reads_why(sides: tuple[Tls, Tls], monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket that is closed with bytes unread takes back what was sent last. So a refusal reads on until the peer has ended.

    In this process, with a relay that reads little at a time.
    """
    monkeypatch.setattr("fastplug.net.relay_joint.BUFFER_BYTES", 4096)
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    relaying = relay_main.Relaying(its)
    thread = threading.Thread(target=relaying.run)
    thread.start()
    here, there = socket.socketpair()
    inner, other = socket.socketpair()
    command = {"do": "tls", "id": 1, "server": True, "tls": to_json(sides[1])}
    socket.send_fds(mine, [json.dumps(command).encode()], [there.fileno(), inner.fileno()])
    there.close()
    stranger = context(auto_mtls(one_time_identity(), sides[1].certificate_pem), server=False)
    arrived, leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
    tunnel = stranger.wrap_bio(arrived, leaving, server_hostname="localhost")
    here.settimeout(WAIT_S)
    with pytest.raises(ssl.SSLWantReadError):
        tunnel.do_handshake()
    here.sendall(leaving.read())
    while True:
        arrived.write(here.recv(1 << 16))
        with contextlib.suppress(ssl.SSLWantReadError):
            tunnel.do_handshake()
            break
    here.sendall(leaving.read() + bytes(100_000))
    arrived.write(here.recv(1 << 16))
    with pytest.raises(ssl.SSLError, match=r"ALERT|alert"):
        tunnel.read(1)
    here.shutdown(socket.SHUT_RDWR)
    assert [json.loads(mine.recv(1 << 16))["say"] for _ in range(2)] == ["closed", "over"]
    # A second connection is over after the relay has noticed the end of the first.
    last, gone = socket.socketpair()
    gone.close()
    socket.send_fds(mine, [json.dumps(command | {"id": 2}).encode()], [last.fileno(), inner.fileno()])
    assert [json.loads(mine.recv(1 << 16))["id"] for _ in range(2)] == [2, 2]
    for one in (mine, here, inner, other, last):
        one.close()
    thread.join(WAIT_S)


def test_whoever_ends_whenever_the_others_go_on(relay: Relay, sides: tuple[Tls, Tls]) -> None:
    """Connections that end at random moments, with bytes on the way, from both sides at once."""
    rng = random.Random(1)
    pid = relay.pid
    with mux_pair(relay, *sides) as (host, plugin):
        for round_ in range(60):
            if round_ % 2:
                here, there = socket.socketpair()
                one, other = relay.tls(here, sides[0], server=False), relay.tls(there, sides[1], server=True)
            else:
                one = host.open()
                accepted = plugin.accept()
                assert accepted is not None
                other = accepted
            ends = [end(one), end(other)]
            for sock in ends * rng.randrange(3):
                with contextlib.suppress(OSError):
                    sock.send(bytes(rng.choice((1, 5_000, 100_000))), socket.MSG_DONTWAIT)
            if rng.random() < 0.5:
                other.ready.result(WAIT_S)
            how = [lambda joint: joint.close(), lambda joint: end(joint).close(), lambda joint: end(joint).shutdown(socket.SHUT_RDWR)]
            for joint in rng.sample([one, other], 2):
                with contextlib.suppress(OSError):
                    rng.choice(how)(joint)
                if rng.random() < 0.5:
                    joint.closed.result(WAIT_S)
            for joint in (one, other):
                joint.closed.result(WAIT_S)
                joint.close()
        assert host.ping_s(WAIT_S) > 0
    assert relay.pid == pid


def test_a_bug_ends_one_connection_and_is_told(sides: tuple[Tls, Tls]) -> None:
    """In this process, where a part of it can be broken."""
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    mine.settimeout(WAIT_S)
    relaying = relay_main.Relaying(its)
    here, there = socket.socketpair()
    inner, other = socket.socketpair()
    thread = threading.Thread(target=relaying.run)
    thread.start()

    def alive(number: int) -> bool:
        mine.send(json.dumps({"do": "ping", "mux": 99, "id": number}).encode())
        return bool(json.loads(mine.recv(1 << 16)) == {"say": "pinged", "id": number, "s": None})

    command = {"do": "tls", "id": 1, "server": True, "tls": to_json(sides[1])}
    socket.send_fds(mine, [json.dumps(command).encode()], [there.fileno(), inner.fileno()])
    assert alive(3)
    relaying._joints[1].outer_received = None  # type: ignore[method-assign, assignment]
    here.sendall(b"x")
    said = [json.loads(mine.recv(1 << 16)) for _ in range(3)]
    assert [one["say"] for one in said] == ["failed", "closed", "over"]
    assert "TypeError" in said[0]["traceback"]
    assert said[1]["reason"].startswith("the relay process failed: ")
    assert alive(5)
    mine.close()
    thread.join(WAIT_S)
    assert not thread.is_alive()
    for sock in (here, there, inner, other):
        sock.close()
