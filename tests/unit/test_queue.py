"""The queue of compiled code against a deque."""

from __future__ import annotations

import collections
import random
import weakref

from fastplug.shm._queue import Queue


class Item:
    pass


def test_it_is_a_deque() -> None:
    rng = random.Random(1)
    queue, oracle = Queue(), collections.deque[object]()
    for _ in range(20):
        grows = rng.choice((0.3, 0.5, 0.7))
        for _ in range(400):
            if not oracle or rng.random() < grows:
                item = Item()
                queue.add(item)
                oracle.append(item)
            else:
                assert queue.first_one() is oracle[0]
                assert queue.pop() is oracle.popleft()
            assert len(queue) == len(oracle)
        assert queue.list() == list(oracle)


def test_it_keeps_nothing_that_was_taken() -> None:
    queue = Queue()
    items = [Item() for _ in range(300)]
    gone = [weakref.ref(item) for item in items]
    for item in items:
        queue.add(item)
    del item
    items.clear()
    for left in range(300, 0, -1):
        assert sum(one() is not None for one in gone) == left
        queue.pop()
    assert queue.list() == []
