"""Frames about streams and callbacks that break the protocol, from either side; and two full rings."""

from __future__ import annotations

import random
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pytest
from tests.unit.two_ends import NOTHING_OUT, NOW, SOON_S, Called, two_ends

from fastplug._wire import MethodCodec, PyLink, pack_error, pack_header, unpack_header
from fastplug.contexts import context
from fastplug.deadlines import deadline
from fastplug.errors import PluginError, RemoteError, RemoteProtocolError
from fastplug.interfaces import interface, interface_of
from fastplug.protocols._call import Caller
from fastplug.protocols._inline import DeferredPort
from fastplug.protocols._remote import Call, Mapped, Remote
from fastplug.protocols._serve import Server

REQUEST, REPLY, ERROR, ITEM, END, CREDIT, CLOSE, CANCEL, CALLBACK, RETURN, RAISE, RELEASE, REQUESTS, REPLIES = range(1, 15)
INT = struct.pack("<Bq", 3, 4)
Floats = npt.NDArray[np.float64]


@interface("test.frames/1")
class Frames(Protocol):
    def count(self, n: int) -> Iterator[int]: ...
    def total(self, values: Iterator[int]) -> int: ...
    def each(self, tell: Callable[[int], int]) -> int: ...
    def double(self, n: int) -> int: ...
    def grown(self, x: Floats) -> Floats: ...


METHODS = {method.name: (index, method) for index, method in enumerate(interface_of(Frames).methods)}


def frame(kind: int, call: int, payload: bytes = b"", **fields: int) -> bytes:
    return pack_header(len(payload), kind, call=call, **fields) + payload


class Hostile:
    """The test answers calls itself: each request with these frames."""

    def __init__(self, answer: Callable[[int], list[bytes]]) -> None:
        self.host, self.plugin = two_ends()
        self.caller = Caller(self.host.lane, self.host.port, ConnectionError)
        self.answer = answer
        self.thread = threading.Thread(target=self.serve, daemon=True)  # a test that fails does not end it
        self.thread.start()

    def method(self, name: str) -> Remote:
        index, method = METHODS[name]
        return Remote(self.caller, MethodCodec("test.frames/1", method), 0, index, None, method.signature)

    def serve(self) -> None:
        try:
            while (got := self.plugin.lane.receive_frame()) is not None:
                if unpack_header(got).kind in (REQUEST, REQUESTS):
                    for one in self.answer(unpack_header(got).call):
                        self.plugin.lane.send_frame(one)
        except EOFError:
            return

    def end(self) -> None:
        self.plugin.lane.peer_gone()
        while self.thread.is_alive():
            self.plugin.lane.wake()
            self.thread.join(0.001)


def run(hostile: Hostile, name: str) -> object:
    if name == "count":
        return list(hostile.method("count")(5))
    if name == "total":
        return hostile.method("total")(iter(range(100)))
    if name == "each":
        return hostile.method("each")(abs)
    return hostile.method("double")(1)


def run_both(hostile: Hostile, name: str) -> None:
    """What is wrong with the frames behind an end is seen by the next call."""
    run(hostile, name)
    run(hostile, "double")


@pytest.mark.parametrize(
    ("name", "answer", "why"),
    [
        ("count", lambda c: [frame(REPLY, c, INT)], "kind 2"),
        ("count", lambda c: [frame(CREDIT, c, struct.pack("<I", 1))], "kind 6"),
        ("count", lambda c: [frame(CLOSE, c)], "kind 7"),
        ("count", lambda c: [frame(ITEM, c, INT)] * 33, "without credit|behind its end"),
        ("count", lambda c: [frame(END, c), frame(ITEM, c, INT), frame(END, c + 9)], "never made or has been answered"),
        ("count", lambda c: [frame(ITEM, c, b"\x07\0\0\0\0")], "str"),
        ("count", lambda c: [frame(ITEM, c, b"")], "too early"),
        ("count", lambda c: [frame(ITEM, c, INT + INT)], "behind the last"),
        ("count", lambda c: [frame(ITEM, c + 1, INT)], "never made"),
        ("total", lambda c: [frame(ITEM, c, INT)], "kind 4"),
        ("total", lambda c: [frame(END, c)], "kind 5"),
        ("total", lambda c: [frame(CREDIT, c, struct.pack("<I", 33))], "credit for 33"),
        ("total", lambda c: [frame(CREDIT, c, struct.pack("<I", 0))], "credit for 0"),
        ("total", lambda c: [frame(CREDIT, c, b"\1")], "too early"),
        ("each", lambda c: [frame(CALLBACK, 1, struct.pack("<QH", 3, 0))], "never passed"),
        ("each", lambda c: [frame(CALLBACK, 1, b"\1")], "too early"),
        ("each", lambda c: [frame(RELEASE, 0, struct.pack("<Q", 3))], "never passed"),
        ("each", lambda c: [frame(RELEASE, 0, b"")], "payload of 0"),
        ("each", lambda c: [frame(RETURN, 1, INT)], "kind 10"),
        ("double", lambda c: [frame(ITEM, c, INT)], "never made"),
        ("double", lambda c: [frame(CANCEL, c)], "kind 8"),
        ("double", lambda c: [frame(REPLY, c, INT, flags=8)], "unknown flags 0x0008"),
        ("count", lambda c: [frame(ITEM, c, INT, flags=16)], "unknown flags 0x0010"),
    ],
)
def test_plugins_that_break_the_protocol(name: str, answer: Callable[[int], list[bytes]], why: str) -> None:
    hostile = Hostile(answer)
    try:
        with deadline(after_s=SOON_S), pytest.raises(RemoteProtocolError, match=why):
            run_both(hostile, name)
        with pytest.raises(RemoteProtocolError, match="not used any more"):
            run(hostile, "double")
    finally:
        hostile.end()


def test_noise_from_a_plugin_is_an_error_of_the_tree() -> None:
    rng = random.Random(5)
    lengths: list[int] = []
    for _ in range(150):
        kinds = rng.choices(range(1, 15), k=rng.randrange(1, 6))
        payloads = [rng.choice((b"", INT, struct.pack("<I", 1), rng.randbytes(rng.randrange(40)), pack_error(KeyError(1)))) for _ in kinds]
        nears = [rng.choice((0, 0, 0, 1, -1)) for _ in kinds]
        hostile = Hostile(lambda c: [frame(k, c + n, p) for k, n, p in zip(kinds, nears, payloads, strict=True)])  # noqa: B023
        try:
            with deadline(after_s=0.2):
                run(hostile, rng.choice(("count", "total", "each", "double")))
        except PluginError as error:
            lengths.append(len(str(error)))
        finally:
            hostile.end()
    assert lengths
    assert max(lengths) < 2000


class Plain:
    def __init__(self) -> None:
        self.got: list[Any] = []

    def count(self, n: int) -> Iterator[int]:
        yield from range(n)

    def total(self, values: Iterator[int]) -> int:
        return sum(values)

    def each(self, tell: Callable[[int], int]) -> int:
        return tell(3)

    def double(self, n: int) -> int:
        return 2 * n

    def grown(self, x: Floats) -> Floats:
        return x + 1


def served(frames: list[bytes]) -> list[Any]:
    host, plugin = two_ends()
    for one in frames:
        host.lane.send_frame(one)
    plugin.lane.finish()
    implementation = Plain()
    handlers = [(MethodCodec("test.frames/1", method), getattr(implementation, name)) for name, (_, method) in METHODS.items()]
    Server(plugin.lane, plugin.port, [handlers]).run()
    found = []
    while (got := host.lane.receive_frame(NOW)) is not None:
        found.append(unpack_header(got))
    return found


COUNT = frame(REQUEST, 5, b"\x01\0" + INT, method=0)
TOTAL = frame(REQUEST, 5, b"\x01\0\x15", method=1)


@pytest.mark.parametrize(
    ("frames", "why"),
    [
        ([frame(REPLY, 5, INT)], "kind 2"),
        ([frame(CALLBACK, 5)], "kind 9"),
        ([frame(RELEASE, 5)], "kind 12"),
        ([frame(RETURN, 5, INT)], "never asked"),
        ([frame(ITEM, 6, INT)], "never made"),
        ([COUNT, frame(CREDIT, 5, struct.pack("<I", 33))], "credit for 33"),
        ([COUNT, frame(ITEM, 5, INT)], "takes no stream"),
        ([COUNT, frame(CREDIT, 7, struct.pack("<I", 1))], "never made"),
        ([TOTAL, frame(ITEM, 5, b"\x05" + bytes(8))], "float"),
        ([TOTAL, frame(CREDIT, 5, struct.pack("<I", 1))], "returns no stream"),
        ([TOTAL, TOTAL], "twice"),
        ([frame(REQUEST, 5, b"\x01\0" + INT, method=1)], "int"),
        ([frame(REQUEST, 5, b"\x01\0\x14", method=2)], "too early"),
    ],
)
def test_hosts_that_break_the_protocol(frames: list[bytes], why: str) -> None:
    with pytest.raises(RemoteProtocolError, match=why):
        served(frames)


def test_an_honest_host_by_hand() -> None:
    found = served([TOTAL, frame(ITEM, 5, INT), frame(ITEM, 5, INT), frame(END, 5), frame(ITEM, 5, INT), frame(CLOSE, 5)])
    assert [(one.kind, one.call) for one in found if one.kind != CREDIT] == [(REPLY, 5)]
    short = frame(REQUEST, 5, b"\x01\0" + struct.pack("<Bq", 3, 2), method=0)
    assert [one.kind for one in served([short])] == [ITEM, ITEM, END]


class Sent(PyLink):
    """A host that sends these frames, and then ends."""

    def __init__(self, *frames: bytes) -> None:
        self.frames = list(frames)
        self.sent: list[bytes] = []

    def send_frame(self, frame: bytes, until_s: float | None) -> None:
        self.sent.append(bytes(frame))

    def receive_frame(self, until_s: float | None) -> bytes | None:
        if not self.frames:
            raise EOFError
        return self.frames.pop(0)


def request_with(values: dict[str, str]) -> bytes:
    packed = struct.pack("<BI", 0x0B, len(values))
    packed += b"".join(struct.pack("<BI", 7, len(text)) + text.encode() for item in values.items() for text in item)
    return frame(REQUEST, 5, packed + struct.pack("<H", 1) + INT, flags=4)


def seen_by_handlers(link: Sent) -> list[dict[str, str]]:
    seen: list[dict[str, str]] = []

    def double(n: int) -> int:
        seen.append(dict(context().metadata))
        return 2 * n

    Server(link, DeferredPort(), [[(MethodCodec("test.frames/1", METHODS["double"][1]), double)]]).run()
    return seen


@pytest.mark.parametrize("values", [{}, {f"k{n}": "" for n in range(64)}, {"key": "x" * 8189}])
def test_metadata_up_to_the_limit(values: dict[str, str]) -> None:
    link = Sent(request_with(values))
    assert seen_by_handlers(link) == [values]
    assert [unpack_header(one).kind for one in link.sent] == [REPLY]


@pytest.mark.parametrize(
    ("values", "why"),
    [({f"k{n}": "" for n in range(65)}, "65 entries"), ({"key": "x" * 8190}, "more than 8192 bytes"), ({"x" * 5000: "y" * 5000}, "8192")],
)
def test_more_metadata_is_refused_whoever_sends_it(values: dict[str, str], why: str) -> None:
    link = Sent(request_with(values))
    with pytest.raises(RemoteProtocolError, match=why):
        seen_by_handlers(link)
    assert link.sent == []


@pytest.mark.parametrize("runs", [2, pytest.param(1000, marks=pytest.mark.long)])
def test_both_rings_full(runs: int) -> None:
    """Arrays both ways, many more than the rings hold, from threads that submit before they look at any answer."""
    for _ in range(runs):
        host, plugin = two_ends()
        called = Called(host, plugin, interface_of(Frames), Plain())
        failed: list[BaseException] = []

        def work(seed: int) -> None:
            rng = random.Random(seed)
            try:
                for _ in range(3):
                    calls: list[tuple[Call[Any], int]] = []
                    for _ in range(120):
                        size = rng.choice((1, 300, 400))
                        calls.append((called.grown.submit((np.full(size, 1.0),), {}), size))  # noqa: B023
                    for call, size in calls:
                        assert call.result(SOON_S).sum() == 2.0 * size
                assert list(Mapped(called.double, (range(500),), 64, True, False)) == [2 * n for n in range(500)]  # noqa: B023
            except BaseException as error:  # noqa: BLE001  the test raises it
                failed.append(error)  # noqa: B023

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SOON_S)
        assert not any(thread.is_alive() for thread in threads)
        assert not failed, failed
        assert called.double(1) == 2
        assert host.in_use() == NOTHING_OUT
        called.end()
        host.close()
        plugin.close()


def test_errors_of_streams_come_at_their_place() -> None:
    hostile = Hostile(lambda c: [frame(ITEM, c, INT), frame(ERROR, c, pack_error(KeyError("k")))])
    stream = hostile.method("count")(3)
    assert next(stream) == 4
    with pytest.raises(RemoteError, match="KeyError"):
        next(stream)
    hostile.end()


def test_a_loop_that_looks_hears_that_nothing_will_come() -> None:
    """It does not wait for frames, which would say so: it would look for ever, and keep the GIL from whoever ends the connection."""
    hostile = Hostile(lambda _: [])
    call = hostile.method("double").submit((1,), {})
    assert hostile.caller.read_ready()
    assert not call.done()
    told = threading.Event()
    assert call.tell(told.set)
    hostile.host.lane.peer_gone()
    while not told.wait(0):  # by a thread, which learns why, and then has the link itself
        hostile.caller.read_ready()
    assert not hostile.caller.parting
    with pytest.raises(ConnectionError):
        call.result(SOON_S)
    hostile.end()
