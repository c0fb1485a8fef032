"""Several requests in one frame, and several results: the calls of a map. What one call at a time gives is the model."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tracing import TRACED
from tests.unit.test_call_frames import ERROR, INT, REPLIES, REPLY, REQUEST, REQUESTS, Hostile, frame
from tests.unit.two_ends import NOTHING_OUT, RING_BYTES, SOON_S, Called, two_ends

from fastplug._wire import MethodCodec, pack_error, unpack_header
from fastplug.contexts import context, metadata
from fastplug.deadlines import deadline
from fastplug.errors import ArgumentError, DeadlineExceeded, RemoteError, RemoteProtocolError
from fastplug.interfaces import interface, interface_of
from fastplug.protocols._call import Caller
from fastplug.protocols._remote import Mapped, Remote
from fastplug.protocols._serve import Server
from fastplug.shm.watcher import wake_until_awake

PACKED_MAX = 32
# After so many a plugin takes a method for quick.
QUICK = 130


@interface("test.packed/1")
class Packed(Protocol):
    def grown(self, n: int, text: str) -> str: ...
    def echo(self, data: bytes) -> bytes: ...
    def left(self, n: int) -> bool: ...
    def who(self, n: int) -> dict[str, str]: ...
    def count(self, n: int) -> Iterator[int]: ...


class Plain:
    def __init__(self) -> None:
        self.ran: list[bytes] = []
        self.when_run: Callable[[], object] | None = None

    def grown(self, n: int, text: str) -> str:
        if n < 0:
            raise ValueError(n)
        return text * n if n != 13 else 13  # type: ignore[return-value]

    def echo(self, data: bytes) -> bytes:
        self.ran.append(data)
        if self.when_run is not None:
            self.when_run()
        return data

    def left(self, n: int) -> bool:
        return context().remaining_s is not None

    def who(self, n: int) -> dict[str, str]:
        return dict(context().metadata)

    def count(self, n: int) -> Iterator[int]:
        yield from range(n)


@pytest.fixture
def called() -> Iterator[Called]:
    host, plugin = two_ends()
    called = Called(host, plugin, interface_of(Packed), Plain())
    yield called
    called.end()
    assert host.in_use() == plugin.in_use() == NOTHING_OUT
    host.close()
    plugin.close()


def outcomes(results: Mapped) -> list[object]:
    """Each item's result, or the type of its error."""
    found: list[object] = []
    while True:
        try:
            found.append(next(results))
        except StopIteration:
            return found
        except Exception as error:  # noqa: BLE001 - it is what the item gave
            found.append(type(error))


def mapped(method: Remote, *iterables: Any, in_flight: int = 64) -> Mapped:
    return Mapped(method, iterables, in_flight, True, True)


items = st.lists(
    st.tuples(st.integers(-1, 3) | st.just(13) | st.just("no number"), st.text(max_size=3) | st.integers(0, 900).map("x".__mul__)),
    max_size=80,
)


@given(items, st.integers(1, 70), st.booleans())
def test_a_map_gives_what_calls_one_by_one_give(given_items: list[tuple[Any, str]], in_flight: int, quick: bool) -> None:
    """With results that do not fit, arguments that are refused, handlers that raise, and what is too large for a frame of several: the
    rings are small, a frame inline takes 256 bytes."""
    host, plugin = two_ends()
    called = Called(host, plugin, interface_of(Packed), Plain())
    try:
        with deadline(after_s=SOON_S):
            if quick:
                assert outcomes(mapped(called.grown, [1] * QUICK, ["a"] * QUICK)) == ["a"] * QUICK
            single = []
            for n, text in given_items:
                try:
                    single.append(called.grown(n, text))
                except Exception as error:  # noqa: BLE001 - it is what the item gave
                    single.append(type(error))
            found = outcomes(
                mapped(called.grown, *zip(*given_items, strict=True), in_flight=in_flight) if given_items else mapped(called.grown)
            )
        assert found == single
    finally:
        called.end()


def test_calls_do_share_frames() -> None:
    """Seen from the plugin's end of the lane."""
    host, plugin = two_ends()
    caller = Caller(host.lane, host.port, ConnectionError)
    index, method = next((i, m) for i, m in enumerate(interface_of(Packed).methods) if m.name == "echo")
    remote = Remote(caller, MethodCodec("test.packed/1", method), 0, index, None, method.signature)
    for packs, expected in ((True, [REQUESTS, REQUESTS]), (False, [REQUEST] * 40)):
        caller.version = 3 if packs else 2
        results = Mapped(remote, ([b"x"] * 40,), 64, True, True)
        answering = threading.Thread(target=outcomes, args=(results,))
        answering.start()
        kinds, calls = [], 0
        while calls < 40:
            got = plugin.lane.receive_frame()
            header = unpack_header(got)
            count = struct.unpack_from("<H", got, 32)[0] if header.kind == REQUESTS else 1
            kinds.append(header.kind)
            calls += count
            for n in range(count):
                plugin.lane.send_frame(frame(REPLY, header.call + n, b"\x08\1\0\0\0x"))
        answering.join(SOON_S)
        assert kinds == expected


def test_a_deadline_and_metadata_reach_each_of_them(called: Called) -> None:
    assert outcomes(mapped(called.left, range(QUICK))) == [False] * QUICK
    with deadline(after_s=SOON_S):
        assert outcomes(mapped(called.left, range(QUICK))) == [True] * QUICK
    with metadata(a="b"):  # these travel one by one
        assert outcomes(mapped(called.who, range(QUICK))) == [{"a": "b"}] * QUICK
    assert outcomes(mapped(called.who, range(QUICK))) == [{}] * QUICK


def test_a_deadline_that_is_over(called: Called) -> None:
    with deadline(after_s=0):
        assert outcomes(mapped(called.left, range(40))) == [DeadlineExceeded] * 40
    assert outcomes(mapped(called.left, range(40))) == [False] * 40


def test_a_map_that_is_closed_leaves_nothing_behind(called: Called) -> None:
    results = mapped(called.echo, [b"%d" % n for n in range(100)])
    assert next(results) == b"0"
    results.close()
    assert outcomes(results) == []
    assert outcomes(mapped(called.echo, [b"y"] * 100)) == [b"y"] * 100
    assert called.caller.late


def test_what_does_not_fit_its_parameters_fails_at_its_place(called: Called) -> None:
    values: list[Any] = [b"x"] * 100
    values[40] = values[63] = values[64] = "text"
    found = outcomes(mapped(called.echo, values))
    assert [n for n, one in enumerate(found) if one is ArgumentError] == [40, 63, 64]
    assert found.count(b"x") == 97


# -- peers that break the rules


def packed(count: int, *values: bytes) -> bytes:
    return struct.pack("<H", count) + b"".join(values)


ONE = b"\1\0" + b"\x08\1\0\0\0x"  # the arguments of echo
X = b"\x08\1\0\0\0x"


class Served:
    """A plugin's half, and a host that sends frames by hand."""

    def __init__(self) -> None:
        self.host, plugin = two_ends()
        self._lane = plugin.lane
        methods = interface_of(Packed).methods
        self.index = {method.name: index for index, method in enumerate(methods)}
        self.implementation = Plain()
        handlers = [(MethodCodec("test.packed/1", one), getattr(self.implementation, one.name)) for one in methods]
        self.server = Server(plugin.lane, plugin.port, [handlers])
        self.failed: list[RemoteProtocolError] = []
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        try:
            self.server.run()
        except RemoteProtocolError as error:
            self.failed.append(error)

    def send(self, call: int, payload: bytes, method: str = "echo", flags: int = 0) -> None:
        self.host.lane.send_frame(frame(REQUESTS, call, payload, method=self.index[method], flags=flags))

    def answers(self, calls: int) -> dict[int, int]:
        """call -> kind of the frame that brought its answer."""
        found: dict[int, int] = {}
        while len(found) < calls:
            got = self.host.lane.receive_frame()
            header = unpack_header(got)
            count = struct.unpack_from("<H", got, 32)[0] if header.kind == REPLIES else 1
            found |= {header.call + n: header.kind for n in range(count)}
        return found

    def warm(self) -> None:
        """Until the plugin takes echo() for quick, and one frame answers several."""
        if TRACED:
            self.end()
            pytest.skip("no handler is quick under a tracer")
        while True:
            self.send(1000, packed(PACKED_MAX, *[ONE] * PACKED_MAX))
            if REPLIES in self.answers(PACKED_MAX).values():
                return

    def end(self) -> None:
        self._lane.finish()
        wake_until_awake(self._lane)
        self.thread.join(SOON_S)
        assert not self.thread.is_alive()


@pytest.mark.parametrize(
    ("method", "payload", "flags", "why"),
    [
        ("echo", packed(0), 0, "0 packed calls"),
        ("echo", packed(33, *[ONE] * 33), 0, "33 packed calls"),
        ("echo", packed(2, ONE), 0, "too early"),
        ("echo", packed(1, ONE, ONE), 0, "behind the last"),
        ("echo", packed(2, ONE, b"\2\0" + X + X), 0, "2 arguments for 1"),
        ("echo", packed(2, ONE, b"\1\0" + INT), 0, "int where bytes"),
        ("echo", b"\1", 0, "too early"),
        ("echo", packed(1, ONE), 1, "flags 1"),
        ("count", packed(1, b"\1\0" + INT), 0, "may not be"),
    ],
)
@pytest.mark.parametrize("quick", [False, True])
def test_hosts_that_break_the_protocol(method: str, payload: bytes, flags: int, why: str, quick: bool) -> None:
    served = Served()
    if quick:
        served.warm()
    served.send(9000, payload, method, flags)
    served.thread.join(SOON_S)
    assert not served.thread.is_alive()
    assert why in str(served.failed[0])


@pytest.mark.parametrize("quick", [False, True])
def test_one_that_was_cancelled_before_is_not_run(quick: bool) -> None:
    served = Served()
    if quick:
        served.warm()
    assert not served.server.cancel(9003)
    before = served.server.calls
    served.send(9000, packed(6, *[ONE] * 6))
    found = served.answers(6)
    assert [call for call, kind in found.items() if kind == ERROR] == [9003]
    assert set(found) == set(range(9000, 9006))
    assert served.server.calls == before + 6
    served.end()
    assert not served.failed


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("later", [False, True])
def test_one_that_is_cancelled_while_one_of_its_frame_runs_is_not_run(quick: bool, later: bool) -> None:
    """Also when a call with a higher number has come before. The cancellation comes from another thread, or on the lane."""
    served = Served()
    if quick:
        served.warm()
    if later:
        served.send(9500, packed(1, ONE))
        assert set(served.answers(1)) == {9500}
    served.implementation.ran.clear()
    served.implementation.when_run = lambda: served.server.cancel(9003)
    served.send(9000, packed(6, *[ONE] * 6))
    found = served.answers(6)
    assert [call for call, kind in found.items() if kind == ERROR] == [9003]
    assert len(served.implementation.ran) == 5
    served.end()
    assert not served.failed


@pytest.mark.parametrize("in_flight", [20, 32, 64])
def test_a_map_is_left_while_its_results_fill_the_ring(called: Called, in_flight: int) -> None:
    """The plugin waits for room, and meanwhile reads that nobody wants the rest: also of calls that it has not come to."""
    results = mapped(called.grown, [3] * 200, ["x" * 80] * 200, in_flight=in_flight)
    assert next(results) == "x" * 240
    theirs, ours = called._plugin.lane, called.caller.link
    until = time.monotonic() + SOON_S
    while theirs.positions[0] - ours.positions[1] < RING_BYTES - 512 and called.server.calls < in_flight:  # else it had room for all
        assert time.monotonic() < until
    results.close()
    assert called.grown(1, "a") == "a"
    assert outcomes(mapped(called.grown, [1] * 50, ["b"] * 50)) == ["b"] * 50


def hostile_plugin(answer: Callable[[int], list[bytes]]) -> None:
    """A map of two from one that answers with these frames, and a call behind it."""
    hostile = Hostile(answer)
    double = hostile.method("double")
    try:
        with deadline(after_s=SOON_S):
            list(Mapped(double, ([1] * 2,), 64, True, False))
            double.submit((1,), {}).result()
    finally:
        hostile.end()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda c: [frame(REPLIES, c, packed(0))], "0 packed calls"),
        (lambda c: [frame(REPLIES, c, packed(33, *[INT] * 33))], "33 packed calls"),
        (lambda c: [frame(REPLIES, c, packed(2, INT))], "too early"),
        (lambda c: [frame(REPLIES, c, packed(2, INT, INT, INT))], "behind the last"),
        (lambda c: [frame(REPLIES, c, packed(2, INT, X))], "bytes where int"),
        (lambda c: [frame(REPLIES, c, packed(3, INT, INT, INT))], "never packed or has been answered"),
        (lambda c: [frame(REPLIES, c, packed(2, INT, INT), flags=1)], "flags 1"),
        (lambda c: [frame(REPLY, c, INT), frame(REPLIES, c, packed(2, INT, INT))], "never packed or has been answered"),
    ],
)
def test_plugins_that_break_the_protocol(answer: Callable[[int], list[bytes]], why: str) -> None:
    with pytest.raises(RemoteProtocolError, match=why):
        hostile_plugin(answer)


def test_a_call_by_itself_is_not_answered_in_a_frame_of_several() -> None:
    def answer(call: int) -> list[bytes]:
        first.append(call)
        return [frame(REPLIES, call, packed(2, INT, INT)) if len(first) == 1 else frame(REPLIES, call, packed(1, INT))]

    first: list[int] = []
    with pytest.raises(RemoteProtocolError, match="never packed"):
        hostile_plugin(answer)
    assert len(first) == 2


def test_any_call_of_several_may_be_answered_by_itself() -> None:
    def answer(call: int) -> list[bytes]:
        return [frame(ERROR, call + 1, pack_error(KeyError(1))), frame(REPLIES, call, packed(1, INT))]

    with pytest.raises(RemoteError):
        hostile_plugin(answer)
