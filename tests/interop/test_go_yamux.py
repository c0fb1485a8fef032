"""hashicorp/yamux as the peer of our sessions, in both roles, under load."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import pytest
from tests.interop.go_tool import built

from fastplug.errors import Closed
from fastplug.net.relay import Joint, MuxSession, Relay
from fastplug.yamux.frames import FrameType, header
from fastplug.yamux.session import Session

pytestmark = pytest.mark.go

WAIT_S = 60.0
Role = Literal["client", "server"]
ROLES: tuple[Role, ...] = ("client", "server")


class Peer:
    """The Go program, in one of the roles."""

    def __init__(self, role: Role, connected: socket.socket) -> None:
        argv = [str(built("yamux")), role, str(connected.fileno())]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[connected.fileno()], text=True)
        connected.close()

    def begin(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def finish(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def do(self, line: str) -> dict[str, Any]:
        self.begin(line)
        return self.finish()

    def end(self) -> None:
        self.process.communicate(timeout=WAIT_S)
        assert self.process.returncode == 0


@contextlib.contextmanager
def session_with_go(relay: Relay, role: Role) -> Iterator[tuple[MuxSession, Peer]]:
    """``role`` is Go's."""
    mine, its = socket.socketpair()
    peer = Peer(role, its)
    session = relay.mux(mine, client=role == "server")
    try:
        yield session, peer
    finally:
        session.close()
        peer.end()


def end(joint: Joint | None) -> socket.socket:
    assert joint is not None
    assert joint.socket is not None
    joint.socket.settimeout(WAIT_S)
    return joint.socket


def echo(session: MuxSession, count: int) -> None:
    """Returns what comes on so many streams of the peer's, each on a thread of its own."""

    def back(sock: socket.socket) -> None:
        with sock:
            while piece := sock.recv(1 << 16):
                sock.sendall(piece)

    with ThreadPoolExecutor(count) as threads:
        for one in [threads.submit(back, end(session.accept())) for _ in range(count)]:
            one.result(WAIT_S)


def exchange(session: MuxSession, size: int, seed: int) -> bool:
    """Whether what was sent on a stream of our own came back."""
    payload = random.Random(seed).randbytes(size)
    with end(session.open()) as sock, ThreadPoolExecutor(1) as thread:

        def send() -> None:
            sock.sendall(payload)
            sock.shutdown(socket.SHUT_WR)

        sent = thread.submit(send)
        back = bytearray()
        while piece := sock.recv(1 << 16):
            back += piece
        sent.result(WAIT_S)
    return bytes(back) == payload


def load(session: MuxSession, peer: Peer, streams: int, bytes_max: int) -> None:
    """Both sides open streams at once, each with other bytes, while pings go on."""
    assert peer.do("echo") == {"echoing": True}
    rng = random.Random(streams)
    sizes = [rng.choice((0, 1, rng.randrange(bytes_max), bytes_max)) for _ in range(streams)]
    peer.begin(f"load {streams} {bytes_max} 7")
    with ThreadPoolExecutor(streams + 1) as threads:
        echoing = threads.submit(echo, session, streams)
        asked = [threads.submit(exchange, session, size, seed) for seed, size in enumerate(sizes)]
        assert session.ping_s(WAIT_S) > 0
        assert all(one.result(WAIT_S) for one in asked)
        echoing.result(WAIT_S)
    answer = peer.finish()
    assert (answer["wrong"], answer["failed"]) == (0, None)
    assert answer["bytes"] > 0


@pytest.mark.parametrize("role", ROLES)
def test_many_streams_of_both_sides_at_once(relay: Relay, role: Role) -> None:
    with session_with_go(relay, role) as (session, peer):
        load(session, peer, 16, 700_000)
        assert peer.do("ping 20")["pinged"] == 20
        session.close()
        # All streams ended on both sides, or they would still be counted there.
        assert peer.do("wait") == {"over": True, "streams": 0}


@pytest.mark.long
@pytest.mark.parametrize("role", ROLES)
def test_many_more_streams(relay: Relay, role: Role) -> None:
    with session_with_go(relay, role) as (session, peer):
        for _ in range(3):
            load(session, peer, 150, 4_000_000)


@pytest.mark.parametrize("role", ROLES)
def test_what_go_does_not_accept_waits_and_goes_on_when_it_does(relay: Relay, role: Role) -> None:
    """More streams than its backlog of 256: those beyond wait here, and nothing is reset."""
    with session_with_go(relay, role) as (session, peer):
        opened = [session.open() for _ in range(300)]
        for number, joint in enumerate(opened):
            end(joint).sendall(number.to_bytes(4, "big"))
            end(joint).shutdown(socket.SHUT_WR)
        assert peer.do("echo") == {"echoing": True}
        assert [int.from_bytes(end(joint).recv(8), "big") for joint in opened] == list(range(300))
        for joint in opened:
            end(joint).close()


def test_go_aways_and_ends(relay: Relay) -> None:
    with session_with_go(relay, "server") as (session, peer):
        first = session.open()
        assert peer.do("hold 3") == {"held": 3}
        held = [session.accept() for _ in range(3)]
        assert peer.do("goaway") == {"went": True}
        late = session.open()
        assert late.reason() in ("the peer takes no more streams", "the peer reset the stream")
        assert peer.do("close") == {"closed": True}
        assert session.closed.result(WAIT_S).startswith("the peer closed the connection")
        for joint in (first, late, *held):
            assert end(joint).recv(1) == b""
            end(joint).close()
        with pytest.raises(Closed):
            session.open()


def test_go_ends_a_session_for_what_a_peer_must_not_send() -> None:
    """As ours does. Its GO_AWAY is queued and mostly overtaken by its own close, so that the end of the connection is all that is sure."""
    mine, its = socket.socketpair()
    peer = Peer("server", its)
    session = Session(client=True, now_s=0.0)
    session.send(session.open(0.0), bytes(262_144))
    with mine:
        for piece in session.outgoing():
            mine.sendall(piece)
        mine.sendall(header(FrameType.DATA, 0, 1, 1) + b"x")  # one byte more than the window
        data = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := mine.recv(1 << 16):
                data += piece
        session.receive(data, 0.0)
        assert session.ended in (None, "the yamux peer went away for a protocol error of this side")
    assert peer.do("wait")["over"]
    peer.end()
