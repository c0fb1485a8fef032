"""Memory and forks: arrays in a forked child, a worker that opens plugins of its own, a plugin that forks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HOST = Path(__file__).with_name("fork_host.py")
TIMEOUT_S = 120.0


@pytest.mark.parametrize("transport", ["shm", "socket"])
def test_a_forked_host(transport: str) -> None:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", str(HOST), transport]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    assert "only the plugin itself answers" in done.stderr, "the log of the plugin says why its child ended"
    seen: dict[str, Any] = json.loads(done.stdout)
    child = seen["child"]
    assert isinstance(child, dict), child
    assert (child["sum"], child["own"]) == (sum(range(100_000)), 200_000.0)
    assert child["call"][0] == "Closed"
    assert str(seen["host"]) in child["call"][1]
    assert str(child["pid"]) in child["call"][1]
    assert child["ping"][0] == "Closed"
    assert seen["again"][0] == "Closed"
    assert seen["worker"][0] == sum(range(100_000)), seen["worker"]
    assert seen["worker"][1] <= 1, "leases of a worker come back"
    assert seen["worker"][2] <= 4
    assert seen["total"] == sum(range(100_000)), "the parent goes on"
    assert seen["plugin_fork"] == 0
    assert seen["came_back"] == [7, 1, 1], "only the plugin itself answers"
    assert seen["total_after"] == seen["total"]
    assert seen["lent"] == seen["lent_before"]
    assert seen["in_use"] in (0, None)
