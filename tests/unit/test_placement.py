"""Two sides on one CPU: one of them leaves it, once it has been so for some waits."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Iterator

import pytest
from tests.unit.two_ends import NOW, SOON_S, attached

from fastplug._wire import pack_header
from fastplug.shm import _rings
from fastplug.shm._lane import Lane
from fastplug.shm._placement import PATIENCE_MAX, Placement

PATIENCE = 4
FRAME = pack_header(0, 1)

WELL_SPINS = 1024  # as in _placement.pxd

cpu: ctypes._NamedFuncPointer = ctypes.CDLL(None).sched_getcpu


@pytest.fixture
def affinity() -> Iterator[set[int]]:
    """The CPUs of this thread, which gets them back."""
    before = os.sched_getaffinity(0)
    yield before
    os.sched_setaffinity(0, before)


def pair(patience: int = PATIENCE) -> tuple[Lane, Lane]:
    """Both ends here, so that they share a CPU unless one of them has left."""
    mine, theirs = _rings.create_segment(_rings.MIN_RING_BYTES), _rings.create_segment(_rings.MIN_RING_BYTES)
    return Lane(mine, attached(theirs), patience=patience), Lane(theirs, attached(mine))


def soon_ns() -> int:
    return time.monotonic_ns() + int(SOON_S * 1e9)


def shortly_ns() -> int:
    """Too short to sleep, so that a wait does not."""
    return time.monotonic_ns() + 30_000


def wait_beside(lane: Lane, peer: Lane) -> None:
    """One wait on the CPU where the peer has just been: it is over at once."""
    os.sched_setaffinity(0, {cpu()})
    peer.send_frame(FRAME)
    assert lane.receive_frame(NOW) == FRAME
    os.sched_setaffinity(0, ALLOWED)
    lane.receive_frame(shortly_ns())


ALLOWED = os.sched_getaffinity(0)


@pytest.mark.skipif(len(ALLOWED) < 2, reason="there is only one CPU")
def test_it_leaves_after_some_waits_and_keeps_its_cpus(affinity: set[int]) -> None:
    lane, peer = pair()
    waits = 0
    while not lane.placement.moves:
        wait_beside(lane, peer)
        waits += 1
        assert waits < 1000
    assert waits >= PATIENCE
    assert lane.placement.moves == 1
    assert lane.placement.patience == 2 * PATIENCE, "if it comes back at once, it did not help much"
    assert os.sched_getaffinity(0) == affinity


def test_it_stays_where_it_is_bound(affinity: set[int]) -> None:
    lane, peer = pair()
    os.sched_setaffinity(0, {cpu()})
    for _ in range(10 * PATIENCE):
        peer.send_frame(FRAME)
        assert lane.receive_frame(NOW) == FRAME
        lane.receive_frame(shortly_ns())
    assert lane.placement.moves == 0
    assert len(os.sched_getaffinity(0)) == 1
    assert lane.placement.patience > PATIENCE, "it asks ever more seldom"


def test_patience_has_an_end() -> None:
    lane, peer = pair(patience=1)
    for _ in range(100):
        peer.send_frame(FRAME)
        assert lane.receive_frame(NOW) == FRAME
        lane.receive_frame(shortly_ns())
    assert lane.placement.patience <= PATIENCE_MAX


def test_patience_comes_back_when_all_is_well() -> None:
    """Two threads call each other: with a CPU each nearly all waits end while spinning, and that is counted."""
    lane, peer = pair(patience=1)
    peer.send_frame(FRAME)
    assert lane.receive_frame(NOW) == FRAME
    lane.receive_frame(shortly_ns())
    grown = lane.placement.patience
    rounds = 20_000

    def echo() -> None:
        for _ in range(rounds):
            frame = peer.receive_frame(soon_ns())
            assert frame is not None
            peer.send_frame(frame)

    thread = threading.Thread(target=echo)
    thread.start()
    seen = set()
    for _ in range(rounds):
        lane.send_frame(FRAME)
        assert lane.receive_frame(soon_ns()) == FRAME
        seen.add(lane.placement.patience)
    thread.join(SOON_S)
    assert grown == 2
    if lane.placement.spins < WELL_SPINS:
        pytest.skip("the machine is too busy: hardly a wait ended while spinning")
    assert 1 in seen


def test_further_lanes_have_the_first_ones_placement() -> None:
    first, _ = pair()
    mine, theirs = _rings.create_segment(_rings.MIN_RING_BYTES), _rings.create_segment(_rings.MIN_RING_BYTES)
    further = Lane(mine, attached(theirs), first=first)
    assert further.placement is first.placement
    assert isinstance(first.placement, Placement)
