"""Callers and servers over a lane and over hand-written peers."""

from __future__ import annotations

import inspect
import os
import pickle
import signal
import struct
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Protocol

import pytest
from tests.growing import growing_s
from tests.tracing import not_traced
from tests.unit.two_ends import NOW, SOON_S, Called, End, two_ends

import fastplug
from fastplug._wire import MethodCodec, pack_error, pack_header, unpack_header
from fastplug.deadlines import deadline
from fastplug.errors import Closed, DeadlineExceeded, LocalProtocolError, RemoteError, RemoteProtocolError
from fastplug.handshake.environment import FAST_VERSIONS
from fastplug.interfaces import interface, interface_of
from fastplug.protocols._call import Caller
from fastplug.protocols._remote import Remote
from fastplug.protocols._serve import Server

REQUEST, REPLY, ERROR = 1, 2, 3
SPILLED = 1


@interface("test.calls/1")
class Calls(Protocol):
    def double(self, n: int) -> int:
        """Twice n."""
        ...

    def wait(self, n: int) -> int: ...
    def fail(self, text: str) -> None: ...
    def text(self, size: int) -> str: ...
    def length(self, text: str) -> int: ...


class Implementation:
    def __init__(self) -> None:
        self.entered, self.leave = threading.Event(), threading.Event()

    def double(self, n: int) -> int:
        return 2 * n

    def wait(self, n: int) -> int:
        self.entered.set()
        assert self.leave.wait(SOON_S)
        return n

    def fail(self, text: str) -> None:
        if text == "exit":
            raise SystemExit(3)
        raise KeyError(text)

    def text(self, size: int) -> str:
        return "t" * size

    def length(self, text: str) -> int:
        return len(text)


class Connected:
    def __init__(self) -> None:
        self.host, self.plugin = two_ends()
        self.implementation = Implementation()
        self.call = Called(self.host, self.plugin, interface_of(Calls), self.implementation)

    def end(self) -> None:
        self.implementation.leave.set()
        self.call.end()
        self.host.close()
        self.plugin.close()
        vars(self).clear()


@pytest.fixture
def connected() -> Iterator[Connected]:
    made = Connected()
    yield made
    made.end()


def test_calls(connected: Connected) -> None:
    call = connected.call
    assert [call.double(n) for n in (1, -5, 10**30)] == [2, -10, 2 * 10**30]
    assert call.length("x" * 1_000_000) == 1_000_000
    assert call.text(1_000_000) == "t" * 1_000_000
    with pytest.raises(RemoteError) as failed:
        call.fail("no")
    assert isinstance(failed.value, KeyError)
    with pytest.raises(RemoteError, match="SystemExit"):
        call.fail("exit")
    assert call.double(2) == 4
    assert call.caller.calls == call.server.calls == 8


def test_a_method_looks_like_one(connected: Connected) -> None:
    double = connected.call.double
    method = interface_of(Calls).methods[0]
    described = Remote(connected.call.caller, MethodCodec("test.calls/1", method), 0, 0, method.doc, method.signature)
    assert described.__name__ == "double"
    assert described.__doc__ is not None
    assert "Twice n" in described.__doc__
    assert list(inspect.signature(described).parameters) == ["n"]
    assert repr(double) == "<fastplug method test.calls/1.double>"
    with pytest.raises(TypeError, match="Spec"):
        pickle.dumps(double)


def give_up_sent(call: Callable[[], object]) -> None:
    for after_s in growing_s(0.002):
        with pytest.raises(DeadlineExceeded) as caught, deadline(after_s=after_s):
            call()
        if "late one will be dropped" in str(caught.value):
            return
        assert "nothing was sent" in str(caught.value)


def test_a_late_reply_is_dropped(connected: Connected) -> None:
    call, implementation = connected.call, connected.implementation
    for n in range(3):
        give_up_sent(lambda: call.wait(n))  # noqa: B023
    implementation.leave.set()
    assert call.double(4) == 8
    assert call.caller.late == 3
    with pytest.raises(DeadlineExceeded, match="nothing was sent"), deadline(after_s=0):
        call.double(1)
    assert call.double(5) == 10


def test_drain(connected: Connected) -> None:
    call = connected.call
    give_up_sent(lambda: call.wait(1))
    call.caller.drain()
    assert call.caller.late == 0
    connected.implementation.leave.set()
    while not call.caller.late:
        call.caller.drain()
    assert call.double(1) == 2


def test_threads_queue(connected: Connected) -> None:
    call = connected.call
    found: list[int] = []

    def work(start: int) -> None:
        for n in range(start, start + 300):
            assert call.double(n) == 2 * n
            found.append(n)

    threads = [threading.Thread(target=work, args=(1000 * n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON_S)
    assert len(set(found)) == 1800


def test_a_deadline_in_the_queue(connected: Connected) -> None:
    call, implementation = connected.call, connected.implementation
    thread = threading.Thread(target=call.wait, args=(1,))
    thread.start()
    assert implementation.entered.wait(SOON_S)
    for after_s in growing_s(0.01):
        with pytest.raises(DeadlineExceeded, match="nothing was sent") as caught, deadline(after_s=after_s):
            call.double(1)
        if "waiting for other calls" in str(caught.value):
            break
    implementation.leave.set()
    thread.join(SOON_S)
    assert call.double(1) == 2


class StopError(Exception):
    pass


@not_traced
@pytest.mark.parametrize("where", ["call", "queue"])
def test_a_signal_handler_that_raises_ends_the_wait(connected: Connected, where: str) -> None:
    call, implementation = connected.call, connected.implementation

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise StopError

    thread = threading.Thread(target=call.wait, args=(1,))
    if where == "queue":
        thread.start()
        assert implementation.entered.wait(SOON_S)
    before = signal.signal(signal.SIGALRM, stop)
    try:
        with pytest.raises(StopError):  # noqa: PT012  the signal may come before the wait
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            call.wait(2) if where == "call" else call.double(3)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    implementation.leave.set()
    if where == "queue":
        thread.join(SOON_S)
    assert call.double(4) == 8


@not_traced
def test_a_call_within_a_call_of_the_same_thread(connected: Connected) -> None:
    call = connected.call

    def nested(_signal: int, _frame: FrameType | None) -> None:
        call.double(1)

    before = signal.signal(signal.SIGUSR1, nested)
    threading.Thread(target=lambda: connected.implementation.entered.wait(SOON_S) and os.kill(os.getpid(), signal.SIGUSR1)).start()
    try:
        with pytest.raises(LocalProtocolError, match="second handle"):
            call.wait(2)
    finally:
        signal.signal(signal.SIGUSR1, before)
    connected.implementation.leave.set()
    assert call.double(3) == 6


def test_after_close(connected: Connected) -> None:
    call = connected.call
    call.caller.close(Closed("it was closed"))
    call.caller.close(Closed("again"))
    for use in (lambda: call.double(1), call.caller.check_usable):
        with pytest.raises(Closed, match="it was closed"):
            use()
    call.caller.drain()
    connected.call.end()
    call.caller.release()
    with pytest.raises(Closed, match="it was closed"):
        call.double(1)


def test_the_end_of_the_peer_during_a_call(connected: Connected) -> None:
    call, host = connected.call, connected.host
    errors: list[BaseException] = []

    def waits() -> None:
        try:
            call.wait(1)
        except ConnectionError as error:
            errors.append(error)

    thread = threading.Thread(target=waits)
    thread.start()
    assert connected.implementation.entered.wait(SOON_S)
    host.lane.peer_gone()
    while thread.is_alive():
        host.lane.wake()
        thread.join(0.001)
    assert [str(error) for error in errors] == ["test.calls/1.wait"]


def test_finish_sends_the_reply_of_the_call_in_hand(connected: Connected) -> None:
    call = connected.call
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(call.wait(7)))
    thread.start()
    assert connected.implementation.entered.wait(SOON_S)
    connected.plugin.lane.finish()
    connected.implementation.leave.set()
    thread.join(SOON_S)
    assert found == [7]


def test_there_is_no_serving_arena_outside_of_handlers() -> None:
    assert fastplug.empty(1000).flags.owndata


def test_the_newest_version_is_spoken_unless_another_was_agreed_on(connected: Connected) -> None:
    assert connected.call.caller.version == max(FAST_VERSIONS)


# -- a plugin that breaks the rules


class Hostile:
    """The test answers calls itself."""

    def __init__(self, answer: Callable[[Any], list[bytes]]) -> None:
        self.host, self.plugin = two_ends()
        method = interface_of(Calls).methods[0]
        self.caller = Caller(self.host.lane, self.host.port, ConnectionError)
        self.double = Remote(self.caller, MethodCodec("test.calls/1", method), 0, 0, None, method.signature)
        self.answer = answer
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self) -> None:
        try:
            while (got := self.plugin.lane.receive_frame()) is not None:
                for frame in self.answer(unpack_header(got)):
                    self.plugin.lane.send_frame(frame)
        except EOFError:
            return

    def refused(self, why: str) -> None:
        try:
            with deadline(after_s=SOON_S):
                with pytest.raises(RemoteProtocolError, match=why):
                    self.double(1)
                with pytest.raises(RemoteProtocolError, match="not used any more after an earlier error"):
                    self.double(1)
        finally:
            self.plugin.lane.peer_gone()
            while self.thread.is_alive():
                self.plugin.lane.wake()
                self.thread.join(0.001)


INT = struct.pack("<Bq", 3, 4)


def reply(call: int, payload: bytes = INT, kind: int = REPLY, flags: int = 0) -> bytes:
    return pack_header(len(payload), kind, flags=flags, call=call) + payload


def test_an_honest_reply_by_hand() -> None:
    hostile = Hostile(lambda request: [reply(request.call)])
    assert hostile.double(2) == 4
    hostile.answer = lambda request: [reply(request.call, pack_error(ValueError("x")), ERROR)]
    with pytest.raises(RemoteError, match="x"):
        hostile.double(2)
    hostile.answer = lambda request: [reply(request.call + 1)]
    hostile.refused("never made")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda r: [reply(r.call, kind=REQUEST)], "kind 1"),
        (lambda r: [reply(r.call - 1, kind=REQUEST)], "kind 1"),
        (lambda r: [reply(r.call - 1)], "never made or has been answered"),
        (lambda r: [reply(r.call + 1)], "never made or has been answered"),
        (lambda r: [reply(0)], "never made or has been answered"),
        (lambda r: [reply(2**64 - 1)], "never made or has been answered"),
        (lambda r: [reply(r.call, b"")], "too early"),
        (lambda r: [reply(r.call, INT + b"\0")], "behind the last value"),
        (lambda r: [reply(r.call, b"\x07\x01\0\0\0x")], "str"),
        (lambda r: [reply(r.call, b"\xff")], "unknown tag"),
        (lambda r: [reply(r.call, b"", ERROR)], "too early"),
        (lambda r: [reply(r.call, INT, ERROR)], "no tuple"),
        (lambda r: [reply(r.call, INT, flags=SPILLED)], "spilled payload"),
        (lambda r: [reply(r.call, struct.pack("<IIQQ", 9, 0, 0, 8), flags=SPILLED)], "segment 9"),
        (lambda r: [reply(r.call, struct.pack("<IIQQ", 0, 8192, 0, 8), flags=SPILLED)], "slot 8192"),
        (lambda r: [reply(r.call, struct.pack("<IIQQ", 0, 0, 1 << 20, 1), flags=SPILLED)], "outside"),
        (lambda r: [reply(r.call, struct.pack("<IIQQ", 0, 0, 2**64 - 1, 2), flags=SPILLED)], "outside"),
        (lambda r: [reply(r.call, struct.pack("<IIQQ", 0, 0, 0, 2**64 - 1), flags=SPILLED)], "outside"),
    ],
)
def test_replies_that_break_the_protocol(answer: Callable[[Any], list[bytes]], why: str) -> None:
    Hostile(answer).refused(why)


def test_a_second_reply_to_one_call() -> None:
    hostile = Hostile(lambda request: [reply(request.call), reply(request.call)])
    assert hostile.double(2) == 4
    hostile.refused("has been answered")


def test_late_replies_without_end_do_not_keep_a_call_busy() -> None:
    hostile = Hostile(lambda request: [reply(request.call - 1)] * 5000)
    hostile.refused("has been answered")


# -- a host that breaks the rules


def served(host: End, plugin: End, frames: list[bytes]) -> None:
    for frame in frames:
        host.lane.send_frame(frame)
    plugin.lane.finish()
    method = interface_of(Calls).methods[0]
    Server(plugin.lane, plugin.port, [[(MethodCodec("test.calls/1", method), lambda n: 2 * n)]]).run()


def request(payload: bytes = b"\x01\0" + INT, kind: int = REQUEST, flags: int = 0, interface_index: int = 0, method: int = 0) -> bytes:
    return pack_header(len(payload), kind, flags=flags, call=5, interface=interface_index, method=method) + payload


def test_an_honest_request_by_hand() -> None:
    host, plugin = two_ends()
    served(host, plugin, [request()])
    got = host.lane.receive_frame(NOW)
    assert got is not None
    assert (unpack_header(got).kind, unpack_header(got).call, got[32:]) == (REPLY, 5, struct.pack("<Bq", 3, 8))


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (request(kind=REPLY), "kind 2"),
        (request(interface_index=1), "interface 1"),
        (request(interface_index=65535), "interface 65535"),
        (request(method=1), "method 1"),
        (request(b""), "too early"),
        (request(b"\0\0"), "no argument 'n'"),
        (request(b"\x02\0" + INT + INT), "2 arguments for 1"),
        (request(b"\x01\0\x05" + bytes(8)), "float"),
        (request(flags=SPILLED), "spilled payload"),
        (request(struct.pack("<IIQQ", 3, 0, 0, 8), flags=SPILLED), "segment 3"),
    ],
)
def test_requests_that_break_the_protocol(frame: bytes, why: str) -> None:
    host, plugin = two_ends()
    with pytest.raises(RemoteProtocolError, match=why):
        served(host, plugin, [frame])
