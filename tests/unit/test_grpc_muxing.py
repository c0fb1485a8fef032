"""Knocking: which number the next stream is for; two carriers joined by one socket."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from fastplug.errors import BrokerTimeout, Closed, HandshakeError
from fastplug.net.relay import Joint, Relay
from fastplug.protocols.grpc.channel import ByteStream
from fastplug.protocols.grpc.messages import ConnInfo
from fastplug.protocols.grpc.muxing import KNOCKS_MAX, WAITING_MAX, Doors, MultiplexedStreams

WAIT_S = 60.0
KEEP_S = 5.0


def test_a_knock_is_answered_when_somebody_listens() -> None:
    doors = Doors(KEEP_S)
    assert not doors.listen(1, 0.0)
    assert doors.knock(1, 1.0)
    assert doors.incoming(1.0) == 1
    assert doors.incoming(1.0) is None
    doors.leave(1)
    assert doors.knock(1, 2.0) is None
    assert doors.incoming(2.0) is None
    doors.listen(1, 2.0)
    assert doors.knock(1, 2.0)
    assert doors.knock(2, 2.0) is False


def test_a_knock_waits_for_its_listener_but_not_for_ever() -> None:
    doors = Doors(KEEP_S)
    assert not doors.knock(7, 0.0)
    assert doors.incoming(0.0) is None
    assert doors.listen(7, KEEP_S - 0.1)
    assert doors.incoming(KEEP_S) == 7
    assert not doors.knock(8, 0.0)
    assert not doors.listen(8, KEEP_S)


def test_an_answer_without_a_stream_does_not_take_a_later_one() -> None:
    doors = Doors(KEEP_S)
    doors.listen(1, 0.0)
    doors.listen(2, 0.0)
    assert doors.knock(1, 0.0)
    assert doors.knock(2, 4.0)
    assert doors.incoming(KEEP_S) == 2
    assert doors.incoming(KEEP_S) is None


def test_a_peer_that_only_knocks_fills_no_memory() -> None:
    doors = Doors(KEEP_S)
    doors.listen(0, 0.0)
    for number in range(2 * KNOCKS_MAX):
        doors.knock(number, 0.0)
        doors.knock(0, 0.0)
    assert len(doors._knocks) <= KNOCKS_MAX
    assert len(doors._next) <= KNOCKS_MAX
    for number in range(2 * KNOCKS_MAX):
        doors.listen(number, 0.0)
        doors.leave(number)
    assert len(doors._left) <= KNOCKS_MAX


class Pair:
    """A host's and a plugin's carrier; what one sends the other receives at once, unless it is kept back."""

    def __init__(self, relay: Relay) -> None:
        here, there = socket.socketpair()
        self.sessions = relay.mux(here, client=True), relay.mux(there, client=False)
        self.sent: list[Any] = []
        self.unannounced: list[Any] = []
        self.arrived = threading.Event()
        self.spoken = threading.Event()
        self.host = MultiplexedStreams(lambda info: self.pass_on(info, self.plugin), keep_s=WAIT_S)
        self.plugin = MultiplexedStreams(lambda info: self.pass_on(info, self.host), keep_s=WAIT_S, unannounced=self.take)
        self.routers = [
            threading.Thread(target=carrier.route, args=(session,))
            for carrier, session in zip((self.host, self.plugin), self.sessions, strict=True)
        ]
        for router in self.routers:
            router.start()

    def pass_on(self, info: Any, to: MultiplexedStreams) -> None:
        self.sent.append(info)
        to.received(info)
        self.spoken.set()

    def take(self, stream: ByteStream, joint: Joint) -> None:
        self.unannounced.append(stream)
        self.arrived.set()

    def end(self) -> None:
        for carrier, session in zip((self.host, self.plugin), self.sessions, strict=True):
            carrier.close()
            session.close()
        for router in self.routers:
            router.join(WAIT_S)
        for stream in self.unannounced:
            stream.close()


@pytest.fixture
def pair(relay: Relay) -> Iterator[Pair]:
    made = Pair(relay)
    yield made
    made.end()


def exchange(dialled: ByteStream, accepted: ByteStream | None, word: bytes) -> bool:
    assert accepted is not None
    with contextlib.closing(dialled), contextlib.closing(accepted):
        dialled.sendall(memoryview(word))
        buffer = bytearray(64)
        return bytes(buffer[: accepted.recv_into(memoryview(buffer))]) == word


def test_both_sides_dial_and_each_stream_goes_where_it_was_announced(pair: Pair) -> None:
    doors = {number: (pair.plugin if number % 2 else pair.host).listen(number) for number in range(1, 9)}
    dialled = {number: (pair.host if number % 2 else pair.plugin).dial(number, WAIT_S) for number in reversed(doors)}
    for number, door in doors.items():
        assert exchange(dialled[number], door.accept(), b"for %d" % number)
        door.close()
        assert door.accept() is None
    # go-plugin's bytes: a knock, and its acknowledgement
    assert pair.sent[0].SerializeToString() == bytes.fromhex("080822020801")
    assert pair.sent[1].SerializeToString() == bytes.fromhex("0808220408011001")


def test_dials_at_once_do_not_mix_up_their_streams(pair: Pair) -> None:
    doors = {number: pair.plugin.listen(number) for number in range(1, 9)}
    with ThreadPoolExecutor(8) as threads:
        dialled = dict(zip(doors, threads.map(lambda number: pair.host.dial(number, WAIT_S), doors), strict=True))
    for number, door in doors.items():
        assert exchange(dialled[number], door.accept(), b"for %d" % number)
        door.close()


def test_a_dial_may_come_before_its_listener(pair: Pair) -> None:
    with ThreadPoolExecutor(1) as thread:
        dial = thread.submit(pair.host.dial, 3, WAIT_S)
        assert pair.spoken.wait(WAIT_S)
        door = pair.plugin.listen(3)
        assert exchange(dial.result(WAIT_S), door.accept(), b"late")
        door.close()


def test_what_comes_without_a_knock_is_the_plugins_own(pair: Pair) -> None:
    main = pair.sessions[0].open()
    assert main.socket is not None
    assert pair.arrived.wait(WAIT_S)
    main.socket.sendall(b"main")
    assert pair.unannounced[0].recv_into(memoryview(bytearray(9))) == 4
    main.socket.close()
    stray = pair.sessions[1].open()  # a host serves nothing that was not asked for
    assert stray.socket is not None
    assert stray.socket.recv(1) == b""
    stray.socket.close()


def test_refusals_name_the_id(pair: Pair) -> None:
    with pytest.raises(BrokerTimeout, match="timeout waiting for multiplexing knock handshake on id 5") as caught:
        pair.host.dial(5, 0.01)
    assert caught.value.service_id == 5
    door = pair.plugin.listen(6)
    with pytest.raises(Closed, match="broker id 6 is accepted already"):
        pair.plugin.listen(6)
    door.close()
    with pytest.raises(HandshakeError, match="failed to knock for id 6: no listener for id 6"):
        pair.host.dial(6, WAIT_S)
    pair.plugin.close()
    with pytest.raises(Closed, match="the broker is closed"):
        pair.plugin.listen(7)
    with pytest.raises(Closed, match="the broker is closed"):
        pair.plugin.dial(7, WAIT_S)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"knock": {"knock": True, "ack": True, "error": "no listener for id 9"}}, "failed to knock for id 9: no listener for id 9"),
        ({"network": "unix", "address": "/x"}, "handshake failed for multiplexing on id 9"),
    ],
)
def test_other_answers(relay: Relay, answer: dict[str, Any], words: str) -> None:
    here, there = socket.socketpair()
    session = relay.mux(here, client=True)
    carrier = MultiplexedStreams(lambda info: carrier.received(ConnInfo(service_id=info.service_id, **answer)), keep_s=WAIT_S)
    router = threading.Thread(target=carrier.route, args=(session,))
    router.start()
    with pytest.raises(HandshakeError, match=words):
        carrier.dial(9, WAIT_S)
    carrier.received(ConnInfo(service_id=10, knock={"knock": True, "ack": True}))  # nobody asked
    session.close()
    router.join(WAIT_S)
    there.close()


def test_a_peer_that_opens_more_than_anybody_takes(pair: Pair) -> None:
    door = pair.plugin.listen(1)
    dialled = [pair.host.dial(1, WAIT_S) for _ in range(WAITING_MAX + 1)]
    assert dialled[-1].recv_into(memoryview(bytearray(1))) == 0
    door.close()
    for stream in dialled:
        assert stream.recv_into(memoryview(bytearray(1))) == 0
        stream.close()
