"""The benchmark of calls between Go and Python runs, with every pair in every cell."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from tests.interop.go_tool import built
from tests.source import tree

RUN_S = 600  # a watchdog


@pytest.mark.go
@pytest.mark.long
def test_every_pair_is_measured() -> None:
    built("peer")  # or skip
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.interop", "--rounds", "1", "--seconds", "0.01", "--print"],
        cwd=tree.ROOT,
        env=os.environ | {"GRPC_VERBOSITY": "NONE"},
        capture_output=True,
        text=True,
        timeout=RUN_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    cells = [line for line in done.stdout.splitlines() if line.endswith(":")]
    assert cells == [f"{size}, {callers}:" for size in ("64B", "4KiB", "1MiB") for callers in ("1 caller", "16 callers")]
    for pair in ("bare grpcio", "Go host, Go plugin", "Python host, Go plugin", "Go host, Python plugin", "Python host, Python plugin"):
        assert done.stdout.count(f"  {pair}, plain ") == 6
    assert done.stdout.count("AutoMTLS") == 24
