"""Further lanes: a host that asks for them wrongly, and one whose descriptor was lost on the way."""

from __future__ import annotations

import os
from typing import Any

import pytest
from tests.adversity.processes import WATCHDOG_S
from tests.adversity.test_hostile_host import HostileHost, host, places
from tests.plugins.hostile import HEADER, array_value, memfd

__all__ = ["host"]  # a fixture

LANE = 14
LANE_BYTES = 4096 + 65536

# The body of LANE, and how many descriptors come with it.
WRONG: dict[str, tuple[Any, int]] = {
    "no number": ({"bytes": LANE_BYTES}, 1),
    "a number that is text": ({"lane": "1", "bytes": LANE_BYTES}, 1),
    "a number that is a truth": ({"lane": True, "bytes": LANE_BYTES}, 1),
    "the first lane": ({"lane": 0, "bytes": LANE_BYTES}, 1),
    "not the next one": ({"lane": 5, "bytes": LANE_BYTES}, 1),
    "beyond the limit": ({"lane": 16, "bytes": LANE_BYTES}, 1),
    "no size": ({"lane": 1}, 1),
    "a size that is text": ({"lane": 1, "bytes": "many"}, 1),
    "a size that is not the segment's": ({"lane": 1, "bytes": 1 << 40}, 1),
    "too small": ({"lane": 1, "bytes": 64}, 1),
    "an empty segment": ({"lane": 1, "bytes": LANE_BYTES}, 1),
    "two descriptors": ({"lane": 1, "bytes": LANE_BYTES}, 2),
}


def opened(host: HostileHost, body: Any, count: int) -> None:
    """Sends LANE with segments that say nothing of a lane."""
    fds = []
    for _ in range(count):
        fd, memory = memfd(LANE_BYTES)
        memory.close()
        fds.append(fd)
    host.peer.send(LANE, body, fds)
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize("how", WRONG)
def test_a_lane_that_cannot_be(host: HostileHost, how: str) -> None:
    host.hello()
    opened(host, *WRONG[how])
    assert host.plugin.wait(WATCHDOG_S) in (0, 1)
    said = host.said()
    assert "the control socket is not used any more" in said
    assert "Fatal Python error" not in said
    assert "Traceback" not in said


def test_a_lane_whose_descriptor_was_lost(host: HostileHost) -> None:
    """The plugin says that there is no such lane, and serves the others."""
    interface, method = places(host.hello())
    host.peer.send(LANE, {"lane": 1, "bytes": LANE_BYTES})
    kind, body, fds = host.peer.receive()
    assert (kind, body, fds) == (LANE, {"lane": 1}, [])
    host.peer.publish(b"\x01\0" + array_value(), call=7, kind=1, interface=interface, method=method)
    header = HEADER.unpack(host.peer.next_frame()[: HEADER.size])
    assert (header[1], header[3]) == (2, 7)
    assert "broke the protocol" not in host.said()
