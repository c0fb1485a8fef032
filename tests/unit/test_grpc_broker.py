"""The broker without processes: what is announced and for how long, two brokers that talk over queues, and what a foreign plugin lacks."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.interop import peer_proto

import fastplug
from fastplug.errors import BrokerTimeout, Closed, HandshakeError, RemoteProtocolError
from fastplug.net.listener import Listener
from fastplug.protocols.grpc.broker import OUTBOX_MAX, Broker
from fastplug.protocols.grpc.carrier import ANNOUNCED_MAX, AnnouncedSockets, Announcements
from fastplug.protocols.grpc.channel import Handler, HandlerKind, select
from fastplug.protocols.grpc.messages import ConnInfo
from fastplug.protocols.grpc.reflection import Reflection

WATCHDOG_S = 60.0
KEEP_S = 5.0


def info(service_id: int, address: str = "a") -> Any:
    return ConnInfo(service_id=service_id, network="unix", address=address)


def test_the_first_announcement_counts_once_and_for_a_while() -> None:
    kept = Announcements(KEEP_S)
    assert kept.put(info(1, "first"), 0.0)
    assert not kept.put(info(1, "second"), 1.0)
    assert kept.take(2, 1.0) is None
    assert kept.take(1, 4.9).address == "first"
    assert kept.take(1, 4.9) is None
    assert kept.put(info(1, "third"), 5.0)
    assert kept.take(1, 10.0) is None  # not a moment longer


def test_a_peer_cannot_announce_without_end() -> None:
    kept = Announcements(KEEP_S)
    assert all(kept.put(info(number), 0.0) for number in range(ANNOUNCED_MAX))
    assert not kept.put(info(ANNOUNCED_MAX), 1.0)
    assert kept.put(info(ANNOUNCED_MAX), 5.0)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.floats(0, 3)), max_size=40))
def test_announcements_against_a_model(steps: list[tuple[bool, int, float]]) -> None:
    kept, model, now = Announcements(KEEP_S), {}, 0.0
    for number, (put, service_id, later_s) in enumerate(steps):
        now += later_s
        model = {key: (what, until) for key, (what, until) in model.items() if until > now}
        if put:
            assert kept.put(info(service_id, str(number)), now) == (service_id not in model)
            model.setdefault(service_id, (str(number), now + KEEP_S))
        else:
            found, expected = kept.take(service_id, now), model.pop(service_id, None)
            assert (found and found.address) == (expected and expected[0])


class Pair:
    """Two brokers whose streams are joined by threads, as host and plugin are by a call."""

    def __init__(self, **options: Any) -> None:
        self.brokers = [self._make(**options) for _ in range(2)]
        self.threads = []
        for near, far in (self.brokers, self.brokers[::-1]):
            talk = near.begin()
            thread = threading.Thread(target=far.incoming, args=(near.outgoing(talk),), daemon=True)
            thread.start()
            self.threads.append(thread)

    @staticmethod
    def _make(**options: Any) -> Broker:
        def carrier(send: Callable[[Any], None]) -> AnnouncedSockets:
            return AnnouncedSockets(send, Listener, keep_s=WATCHDOG_S, connect_timeout_s=WATCHDOG_S, **options)

        return Broker(select(), carrier, None, timeout_s=WATCHDOG_S)

    def close(self) -> None:
        for broker in self.brokers:
            broker.close()
        for thread in self.threads:
            thread.join(WATCHDOG_S)
            assert not thread.is_alive()


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.close()


class Answering:
    def Unary(self, request: Any, context: Any) -> Any:  # noqa: N802  the name in the .proto
        return {"version": 1}


def echoing(server: Any) -> None:
    server.add_methods({"/t.T/Echo": Handler(HandlerKind.UNARY, lambda request, context: request[::-1])})


def test_a_brokered_server_describes_a_service_that_has_a_pool_of_its_own(pair: Pair) -> None:
    near, far = pair.brokers
    served = fastplug.grpc_service(peer_proto.SERVICE, Answering(), descriptors=peer_proto.descriptors())
    with near.accept_and_serve(1, lambda server: served.grpc_server(near, server)), far.dial(1) as channel:
        reflection = Reflection(lambda path, question: next(channel.stream_stream(path)(iter([question]))))
        files = reflection.files(peer_proto.SERVICE)
        assert files is not None
        assert "Unary" in (files.service(peer_proto.SERVICE) or {})


def test_each_side_counts_for_itself(pair: Pair) -> None:
    near, far = pair.brokers
    assert [near.next_id(), near.next_id(), far.next_id()] == [1, 2, 1]
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: near.next_id(), range(1000)))) == 1000


def test_one_serves_and_the_other_dials(pair: Pair) -> None:
    for near, far in (pair.brokers, pair.brokers[::-1]):
        with near.accept_and_serve(near.next_id(), echoing), far.dial(1) as channel:
            assert channel.unary_unary("/t.T/Echo")(b"abc") == b"cba"


def test_a_number_is_good_for_one_dial(pair: Pair) -> None:
    near, far = pair.brokers
    with near.accept_and_serve(3, echoing), far.dial(3) as channel:
        assert channel.unary_unary("/t.T/Echo")(b"x") == b"x"
        with pytest.raises(BrokerTimeout, match="id 3"):
            far.dial(3, timeout_s=0.01)


def test_a_listener_that_nobody_serves_on_gives_its_socket_back(pair: Pair) -> None:
    near, far = pair.brokers
    near.accept(7).close()
    with pytest.raises(HandshakeError):
        far.dial(7)
    listener = near.accept(8)
    listener.close()
    with pytest.raises(Closed, match="8"):
        listener.serve(echoing)


def test_what_register_raises_comes_out_and_leaves_nothing(pair: Pair) -> None:
    def broken(server: Any) -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        pair.brokers[0].accept_and_serve(1, broken)


def test_the_end_of_a_broker_ends_a_dial_that_waits(pair: Pair) -> None:
    near, _ = pair.brokers
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(near.dial, 9, timeout_s=WATCHDOG_S)
        near.close()
        assert isinstance(waiting.exception(WATCHDOG_S), Closed)
    for use in (lambda: near.accept(1), lambda: near.dial(1), lambda: near.accept_and_serve(1, echoing)):
        with pytest.raises(Closed, match="broker is closed"):
            use()


def test_a_peer_that_never_reads_is_told_of() -> None:
    broker = Pair._make()
    for number in range(OUTBOX_MAX):
        broker._post(info(number))
    with pytest.raises(Closed, match="does not read"):
        broker.accept(1)
    broker.close()


def test_a_new_conversation_takes_over_and_nothing_is_lost() -> None:
    broker = Pair._make()
    first = broker.begin()
    outgoing = broker.outgoing(first)
    broker._post(info(1))
    assert next(outgoing).service_id == 1
    second = broker.begin()
    broker._post(info(2))
    assert list(outgoing) == []
    broker.end(first)  # the old one is over anyway
    assert next(broker.outgoing(second)).service_id == 2
    broker.close()
    assert list(broker.outgoing(second)) == []


@pytest.mark.parametrize(
    ("network", "address", "error"),
    [("unix", "/nowhere/at/all", HandshakeError), ("udp", "127.0.0.1:1", RemoteProtocolError), ("tcp", "localhost", RemoteProtocolError)],
)
def test_an_address_that_leads_nowhere(pair: Pair, network: str, address: str, error: type[Exception]) -> None:
    near, far = pair.brokers
    near._post(ConnInfo(service_id=5, network=network, address=address))
    with pytest.raises(error):
        far.dial(5)


class Elsewhere:
    """A plugin whose files have other names than here."""

    def plugin_to_host(self, network: str, address: str) -> tuple[str, str]:
        return network, address.removeprefix("/inside")

    def host_to_plugin(self, network: str, address: str) -> tuple[str, str]:
        return network, f"/inside{address}"


def test_addresses_are_translated_on_the_way() -> None:
    sent: list[Any] = []
    carrier = AnnouncedSockets(sent.append, Listener, keep_s=KEEP_S, connect_timeout_s=WATCHDOG_S, translator=Elsewhere())
    listening = carrier.listen(4)
    assert sent[0].address.startswith("/inside/")
    carrier.received(sent[0])  # as if the plugin had announced it, in its own words
    stream = carrier.dial(4, 1.0)
    accepted = listening.accept()
    assert accepted is not None
    stream.sendall(memoryview(b"hello"))
    buffer = memoryview(bytearray(5))
    assert accepted.recv_into(buffer) == 5
    assert bytes(buffer) == b"hello"
    for one in (stream, accepted, listening, carrier):
        one.close()


def test_tcp_is_dialled_too(pair: Pair) -> None:
    near, far = pair.brokers
    with socket.create_server(("127.0.0.1", 0)) as server:
        near._post(ConnInfo(service_id=6, network="tcp", address=f"127.0.0.1:{server.getsockname()[1]}"))
        channel = far.dial(6)
        server.accept()[0].close()
        channel.close()
