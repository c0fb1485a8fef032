"""A call is given up at the worst moment: the thread that hears of it is another one than that which runs the handler."""

from __future__ import annotations

import dataclasses
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pytest
from tests.unit.test_call_frames import CLOSE, END, ERROR, ITEM, REPLY, REQUEST, Sent, frame
from tests.unit.two_ends import SOON_S

import fastplug.protocols._running
from fastplug._wire import MethodCodec, unpack_header
from fastplug.contexts import Context, context
from fastplug.interfaces import interface, interface_of
from fastplug.protocols._inline import DeferredPort
from fastplug.protocols._serve import Server

BUILT: list[Callable[[], object]] = []


@dataclasses.dataclass
class Slow:
    """Its constructor lets other threads run."""

    n: int

    def __post_init__(self) -> None:
        for built in BUILT:
            built()


@interface("test.given/1")
class Given(Protocol):
    def plain(self, slow: Slow) -> int: ...
    def fed(self, slow: Slow, values: Iterator[int]) -> int: ...
    def stream(self, slow: Slow) -> Iterator[int]: ...
    def task(self, slow: Slow) -> int: ...


SLOW = b"\x12\x01\0\0\0" + struct.pack("<Bq", 3, 4)


def served(frames: list[bytes], **handlers: Callable[..., Any]) -> tuple[Server, Sent]:
    link = Sent(*frames)
    methods = [(MethodCodec("test.given/1", method), handlers.get(method.name)) for method in interface_of(Given).methods]
    return Server(link, DeferredPort(), [methods]), link


@pytest.fixture
def built() -> Iterator[list[Callable[[], object]]]:
    yield BUILT
    BUILT.clear()


@pytest.mark.parametrize(("name", "arguments"), [("plain", 1), ("fed", 2), ("stream", 1), ("task", 1)])
def test_while_its_arguments_are_decoded(name: str, arguments: int, built: list[Callable[[], object]]) -> None:
    """It has come, and its handler has not begun: it does not begin."""
    begun: list[str] = []

    async def task(slow: Slow) -> int:
        begun.append("task")
        return slow.n

    def handler(*_: object) -> Any:
        begun.append(name)

    index = [method.name for method in interface_of(Given).methods].index(name)
    payload = struct.pack("<H", arguments) + SLOW + b"\x15" * (arguments - 1)
    server, link = served([frame(REQUEST, 5, payload, method=index)], **{name: task if name == "task" else handler})
    built.append(lambda: server.cancel(5))
    server.run()
    assert begun == []
    assert [unpack_header(one).kind for one in link.sent] == [ERROR]
    assert b"before its handler began" in link.sent[0]


class Meeting:
    """The thread that cancels call 5 is held up while it makes the context of the call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.making, self.goes_on = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=lambda: self.server.cancel(5))
        meeting = self

        class Held(Context):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args)
                if threading.current_thread() is meeting.thread:
                    meeting.making.set()
                    assert meeting.goes_on.wait(SOON_S)

        monkeypatch.setattr(fastplug.protocols._running, "Context", Held)

    def begin(self) -> None:
        self.thread.start()
        assert self.making.wait(SOON_S)

    def end(self) -> None:
        self.goes_on.set()
        self.thread.join(SOON_S)
        assert not self.thread.is_alive()

    def serve(self, *handlers: Callable[[], object]) -> list[int]:
        waiting = list(handlers)

        def plain(slow: Slow) -> int:
            waiting.pop(0)()
            return slow.n

        calls = [frame(REQUEST, 5 + i, b"\x01\0" + SLOW) for i in range(len(handlers))]
        self.server, link = served(calls, plain=plain)
        self.server.run()
        return [unpack_header(one).kind for one in link.sent]


def test_while_its_handler_asks_whether_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    meeting, seen = Meeting(monkeypatch), []

    def handler() -> None:
        meeting.begin()
        mine = context()
        meeting.end()
        seen.append((mine.cancelled, context() is mine))

    assert meeting.serve(handler) == [REPLY]
    assert seen == [(True, True)]


def test_when_the_next_one_runs_already(monkeypatch: pytest.MonkeyPatch) -> None:
    meeting, seen = Meeting(monkeypatch), []

    def following() -> None:
        meeting.end()
        seen.append(context().cancelled)

    assert meeting.serve(meeting.begin, following) == [REPLY, REPLY]
    assert seen == [False], "call 5 was given up, not call 6"


def test_between_two_items_of_its_stream() -> None:
    """Nothing asked for its context before; the clean-up does."""
    seen: list[bool] = []

    def stream(slow: Slow) -> Iterator[int]:
        try:
            while True:
                yield slow.n
        finally:
            seen.append(context().cancelled)

    server, link = served([frame(REQUEST, 5, b"\x01\0" + SLOW, method=2), frame(CLOSE, 5)], stream=stream)
    server.run()
    kinds = [unpack_header(one).kind for one in link.sent]
    assert kinds == [ITEM] * (len(kinds) - 1) + [END]
    assert seen == [True]
