"""Every peer of the benchmarks answers what it was asked, and its processes are gone afterwards.

In an interpreter of its own: multiprocessing and gRPC keep threads and helper processes until theirs ends.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from benchmarks.peers import MODULES
from tests.source import tree

RUN_S = 120  # a watchdog: it takes a second or two


@pytest.mark.parametrize("name", MODULES)
def test_a_peer_answers_and_ends(name: str) -> None:
    path = os.pathsep.join([str(tree.SOURCES), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers", name],
        cwd=tree.ROOT,
        # grpcio tells of forks and slow peers on stderr when the machine is busy; what the peers say themselves must be nothing
        env=os.environ | {"PYTHONPATH": path, "GRPC_VERBOSITY": "NONE"},
        capture_output=True,
        text=True,
        timeout=RUN_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if "not installed" in done.stdout:
        pytest.skip(done.stdout.strip())
    assert done.stdout == f"{name}: ok\n"
    assert done.stderr == ""
