"""The lanes of a connection as callers get them: the lowest free one, one more when none is, up to a limit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Protocol

import pytest

from fastplug._wire import MethodCodec
from fastplug.deadlines import deadline
from fastplug.errors import DeadlineExceeded
from fastplug.interfaces import interface, interface_of
from fastplug.protocols._call import Caller
from fastplug.protocols._inline import DeferredPort
from fastplug.protocols._pool import LANES_MAX, Pool
from fastplug.protocols._remote import Remote
from fastplug.protocols._serve import Server
from fastplug.protocols.inproc import _pair

SOON_S = 60.0


@interface("test.pool/1")
class Waiting(Protocol):
    def lane(self) -> int: ...
    def wait(self) -> int: ...


class Lanes:
    """Lanes in this process, each served by a thread; their handlers say which one it was."""

    def __init__(self, limit: int, *, spread: bool = False, opens: bool = True) -> None:
        self.asked: list[int] = []
        self.opens = opens
        self.callers: list[Caller] = []
        self.threads: list[threading.Thread] = []
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()
        self._links: list[tuple[object, object]] = []
        self.pool = Pool(self.make(), limit, spread, self.opener)
        self.methods = {
            method.name: Remote(self.pool, MethodCodec("test.pool/1", method), 0, index, None, method.signature)
            for index, method in enumerate(interface_of(Waiting).methods)
        }

    def make(self) -> Caller:
        near, far = _pair()
        number = len(self.callers)
        caller = Caller(near, DeferredPort(), ConnectionError)

        def wait() -> int:
            self.entered.release()
            assert self.opened.wait(SOON_S)
            return number

        handlers: list[Callable[[], int]] = [lambda: number, wait]
        codecs = [MethodCodec("test.pool/1", method) for method in interface_of(Waiting).methods]
        server = Server(far, DeferredPort(), [list(zip(codecs, handlers, strict=True))])
        thread = threading.Thread(target=server.run)
        thread.start()
        self.callers.append(caller)
        self.threads.append(thread)
        self._links.append((near, far))
        return caller

    def opener(self, number: int) -> None:
        self.asked.append(number)
        if not self.opens:
            raise OSError("no further lane")
        self.pool.add(self.make())

    def lane(self) -> int:
        found: int = self.methods["lane"]()
        return found

    def waiting(self, count: int) -> list[threading.Thread]:
        """So many threads inside a call."""
        threads = [threading.Thread(target=self.methods["wait"]) for _ in range(count)]
        for thread in threads:
            thread.start()
            assert self.entered.acquire(timeout=SOON_S)
        return threads

    def close(self) -> None:
        self.opened.set()
        for near, far in self._links:
            near.peer_gone()  # type: ignore[attr-defined]
            far.peer_gone()  # type: ignore[attr-defined]
        for thread in self.threads:
            thread.join(SOON_S)


@pytest.fixture
def make() -> Iterator[Callable[..., Lanes]]:
    made: list[Lanes] = []

    def of(limit: int, **how: bool) -> Lanes:
        made.append(Lanes(limit, **how))
        return made[-1]

    yield of
    for lanes in made:
        lanes.close()


def test_one_caller_uses_one_lane(make: Callable[..., Lanes]) -> None:
    lanes = make(LANES_MAX)
    assert [lanes.lane() for _ in range(10)] == [0] * 10
    assert lanes.asked == []
    assert lanes.pool.lanes == 1


def test_a_caller_that_finds_none_free_opens_one(make: Callable[..., Lanes]) -> None:
    lanes = make(3)
    threads = lanes.waiting(2)
    assert lanes.asked == [1]
    assert lanes.lane() == 2
    assert lanes.pool.lanes == 3
    lanes.opened.set()
    for thread in threads:
        thread.join(SOON_S)
    assert [lanes.lane() for _ in range(3)] == [0] * 3, "the lowest free one"


def test_at_the_limit_a_call_waits_until_one_is_free(make: Callable[..., Lanes]) -> None:
    lanes = make(2)
    threads = lanes.waiting(2)
    with pytest.raises(DeadlineExceeded, match="nothing was sent"), deadline(after_s=0.05):
        lanes.lane()
    assert lanes.asked == [1]
    late: list[int] = []
    waiter = threading.Thread(target=lambda: late.append(lanes.lane()))
    waiter.start()
    lanes.opened.set()
    for thread in (*threads, waiter):
        thread.join(SOON_S)
    assert late in ([0], [1])


def test_no_more_than_sixteen(make: Callable[..., Lanes]) -> None:
    lanes = make(1000)
    threads = lanes.waiting(LANES_MAX)
    with pytest.raises(DeadlineExceeded), deadline(after_s=0.05):
        lanes.lane()
    assert lanes.pool.lanes == LANES_MAX
    lanes.opened.set()
    for thread in threads:
        thread.join(SOON_S)


def test_a_peer_that_opens_none_is_asked_once(make: Callable[..., Lanes]) -> None:
    lanes = make(4, opens=False)
    threads = lanes.waiting(1)
    for _ in range(2):
        with pytest.raises(DeadlineExceeded), deadline(after_s=0.05):
            lanes.lane()
    assert lanes.asked == [1]
    lanes.opened.set()
    for thread in threads:
        thread.join(SOON_S)
    assert lanes.lane() == 0


def test_with_workers_a_lane_with_a_call_under_way_is_not_free(make: Callable[..., Lanes]) -> None:
    lanes = make(2, spread=True)
    slow = lanes.methods["wait"].submit((), {})
    assert lanes.entered.acquire(timeout=SOON_S)
    assert lanes.lane() == 1
    lanes.opened.set()
    assert slow.result(SOON_S) == 0
    assert lanes.lane() == 0
