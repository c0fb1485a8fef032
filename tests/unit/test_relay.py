"""The relay process: TLS and yamux between sockets, whoever ends first, and what becomes of it when one of the processes does."""

from __future__ import annotations

import contextlib
import gc
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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from tests.conftest import ROOT
from tests.unit.relay_ends import WAIT_S, end, mux_pair, read_all, tls_pair

from fastplug.config import Tls
from fastplug.errors import Closed, ConfigError, TlsRefused
from fastplug.net import relay_main
from fastplug.net.relay import Relay
from fastplug.net.relay_joint import HANDSHAKE_TIMEOUT_S
from fastplug.net.relay_loop import MESSAGE_BYTES_MAX
from fastplug.net.tls import auto_mtls, context, one_time_identity, to_json


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
    del relaying
    gc.collect()  # a socket that it had not closed would be told of here


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
