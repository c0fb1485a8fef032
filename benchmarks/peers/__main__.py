"""``python -m benchmarks.peers [name ...]``: starts each peer, asks it everything once, and stops it."""

from __future__ import annotations

import math
import sys

import numpy as np

from . import MODULES, Peer, load

__all__ = ["check"]

ARRAY_ELEMENTS = (8, 1 << 10, 1 << 18)  # inline, just large enough for an arena, larger than any buffer on the way


def check(peer: Peer) -> None:
    """Raises AssertionError when an answer is wrong."""
    assert peer.echo(b"fastplug") == b"fastplug"
    assert peer.echo_dict({"a": 1.5}) == {"a": 1.5}
    for count in ARRAY_ELEMENTS:
        x = np.arange(count, dtype=np.float64)
        touched = peer.touch(x, 0, 1, count - 1)
        assert touched[0] == (count,), touched
        assert touched[1:] == (0.0, 1.0, count - 1), touched
        assert math.isclose(peer.total(x), x.sum())


if __name__ == "__main__":
    for name in sys.argv[1:] or MODULES:
        try:
            peer = load(name)
        except ImportError as error:
            print(f"{name}: not installed: {error}")
            continue
        try:
            peer.start()
            check(peer)
        finally:
            peer.stop()
        peer.stop()  # may be called twice
        print(f"{name}: ok")
