"""Values that call back while they are encoded or decoded. Nothing is served on top of that, since it would use the same encoder."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import pytest
from tests.plugins.lazy_plugin import Lazy, LazyPairs, Pair, Waking, kept

import fastplug

SOON_S = 60.0


@pytest.fixture
def lazy(start: Callable[..., fastplug.Client]) -> Iterator[LazyPairs]:
    pairs: LazyPairs = start(Lazy).dispense(LazyPairs)
    yield pairs
    kept.clear()  # of a plugin in this process


@pytest.mark.transports("shm", "socket", "inproc")
def test_it_may_not_while_the_plugin_can_serve_nobody(lazy: LazyPairs) -> None:
    """The callback could call the plugin, which has one worker: it would wait for ever, or the frame that is being made be spoilt."""
    asked = list[int]()

    def tell(n: int) -> int:
        asked.append(n)
        return len(lazy.text(100))

    waking = Waking(2)
    lazy.keep(tell)
    refused = pytest.raises(fastplug.RemoteError, match=r"LocalProtocolError.*was called while a value was encoded or decoded")
    for _ in range(3):
        with refused:
            lazy.pair(21)
        with refused:
            list(lazy.pairs(3))
        with refused:
            lazy.made(3, tell)
        with refused:
            fastplug.submit(lazy.pair, 5).result(SOON_S)
        with refused:
            lazy.taken(waking)
        assert lazy.text(3) == "xxx"
    results = list(fastplug.map(lazy.text, range(50)))
    assert results == ["x" * n for n in range(50)]
    assert not asked


@pytest.mark.transports("shm", "socket", "inproc")
def test_nor_on_the_lane_of_a_handler_that_waits(lazy: LazyPairs) -> None:
    """``told`` waits for its callback, on top of it ``pair`` is encoded, whose property calls that same callback."""
    depths = list[int]()

    def tell(n: int) -> int:
        depths.append(n)
        with pytest.raises(fastplug.RemoteError, match="LocalProtocolError"):
            lazy.pair(n)
        return n + len(lazy.text(n))

    assert lazy.told(5, tell) == 10
    assert depths == [5]


@pytest.mark.transports("grpc")
def test_over_grpc_it_may(lazy: LazyPairs) -> None:
    lazy.keep(lambda n: n + len(lazy.text(100)))
    assert lazy.pair(21) == Pair(21, 121)
    assert list(lazy.pairs(2)) == [Pair(0, 100), Pair(1, 101)]
    assert lazy.taken(Waking(2)) == 102


def _ways(lazy: LazyPairs) -> list[Callable[[], object]]:
    """To get a Waking from the plugin, as the outermost call and within a callback."""
    ways: list[Callable[[], object]] = [
        lambda: lazy.woken(1).a,
        lambda: next(lazy.all_woken(2)).a,
        lambda: next(iter(fastplug.map(lazy.woken, [1]))).a,
        lambda: fastplug.submit(lazy.woken, 1).result(SOON_S).a,
        lambda: lazy.told_woken(1, lambda woken: woken.a),
    ]
    return ways + [lambda way=way: lazy.around(1, lambda _: cast("int", way())) for way in ways]  # type: ignore[misc]


@pytest.mark.transports("shm", "socket")
def test_the_host_may_not_while_it_decodes(lazy: LazyPairs) -> None:
    """Of the same handle: what comes next would be read over what is decoded."""
    for way in _ways(lazy):
        kept[:] = [lambda n: len(lazy.text(n))]
        with pytest.raises(Exception, match="LocalProtocolError"):
            way()
        kept.clear()
        assert lazy.text(3) == "xxx"


@pytest.mark.transports("grpc")
def test_the_host_may_over_grpc(lazy: LazyPairs) -> None:
    kept[:] = [lambda n: 10 + len(lazy.text(n))]
    assert [way() for way in _ways(lazy)] == [11, 10, 11, 11, 11] * 2


@pytest.mark.transports("shm", "socket")
def test_a_signal_handler_may_while_the_plugin_waits(start: Callable[..., fastplug.Client]) -> None:
    client = start(Lazy)
    lazy: LazyPairs = client.dispense(LazyPairs)
    told = threading.Event()

    def tell(n: int) -> int:
        told.set()
        return n

    lazy.keep(tell)
    pid = lazy.on_signal()
    for lanes in (1, 2):
        while client.stats()["lanes"] < lanes and client.stats()["transport"] == "shm":
            with ThreadPoolExecutor(4) as threads:
                list(threads.map(lazy.text, range(1000)))
        for _ in range(3):
            os.kill(pid, signal.SIGUSR1)
            assert told.wait(SOON_S)
            told.clear()
            assert lazy.text(2) == "xx"
