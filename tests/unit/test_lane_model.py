"""A lane against two queues, in any order of sending and receiving."""

from __future__ import annotations

import collections

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.twin import lane_twin as twin
from tests.unit.test_lane import INLINE_LIMIT, frame
from tests.unit.two_ends import HEADER_BYTES, NOW, RING_BYTES, lanes

from fastplug.errors import DeadlineExceeded


class LaneModel(RuleBasedStateMachine):
    """Against two queues. A ring that is full refuses, having waited; nothing is lost, doubled or changed on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.ends = lanes()
        self.queues: tuple[collections.deque[bytes], ...] = (collections.deque(), collections.deque())
        self.calls = 0

    @rule(side=st.integers(0, 1), size=st.integers(0, 200) | st.integers(0, INLINE_LIMIT), blocks=st.booleans(), filler=st.integers(0, 255))
    def send(self, side: int, size: int, blocks: bool, filler: int) -> None:
        self.calls += 1
        sent = frame(bytes([filler]) * size, call=self.calls, blocks=int(blocks))
        room = RING_BYTES - sum(2 * twin.rounded(len(each) - HEADER_BYTES) for each in self.queues[side])
        try:
            self.ends[side].send_frame(sent, NOW)
        except DeadlineExceeded:
            assert room < 3 * INLINE_LIMIT, "refused though there must be room"
        else:
            self.queues[side].append(sent)

    @rule(side=st.integers(0, 1), sizes=st.lists(st.integers(0, 200) | st.just(INLINE_LIMIT), min_size=1, max_size=50))
    def send_together(self, side: int, sizes: list[int]) -> None:
        """Frames that may wait to be published: in order, and no later than the next one that may not, or that waits for room."""
        lane = self.ends[side]
        lane.lazy = True
        for size in sizes:
            self.calls += 1
            sent = frame(bytes([size % 251]) * size, call=self.calls)
            try:
                lane.send_frame(sent, NOW)
            except DeadlineExceeded:
                break
            self.queues[side].append(sent)
        lane.lazy = False
        self.send(side, 1, False, 0)

    @precondition(lambda self: any(self.queues))
    @rule(side=st.integers(0, 1), count=st.integers(1, 40))
    def receive(self, side: int, count: int) -> None:
        queue = self.queues[1 - side]
        for _ in range(count):
            expected = queue.popleft() if queue else None
            assert self.ends[side].receive_frame(NOW) == expected

    @rule(side=st.integers(0, 1))
    def fill(self, side: int) -> None:
        while True:
            self.calls += 1
            sent = frame(bytes(INLINE_LIMIT // 3), call=self.calls)
            try:
                self.ends[side].send_frame(sent, NOW)
            except DeadlineExceeded:
                break
            self.queues[side].append(sent)

    @invariant()
    def positions_are_aligned(self) -> None:
        for lane in self.ends:
            assert all(position % 64 == 0 for position in lane.positions)

    def teardown(self) -> None:
        for side in (0, 1):
            for expected in self.queues[1 - side]:
                assert self.ends[side].receive_frame(NOW) == expected
            assert self.ends[side].receive_frame(NOW) is None


LaneModel.TestCase.settings = settings(max_examples=60, stateful_step_count=60)
TestLaneModel = LaneModel.TestCase
