"""fastplug as a debug build, beside the tree: its named points stop the process, so that a test can signal exactly there."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
from pathlib import Path

__all__ = ["points", "tree"]

ROOT = Path(__file__).parents[2]
# From nothing it takes a minute on two busy cores; later runs compile what changed.
BUILD_TIMEOUT_S = 900.0


def points() -> list[str]:
    """The names of all points in the sources."""
    found = {name for path in (ROOT / "src").rglob("*.pyx") for name in re.findall(r'fp_point\("([^"]+)"\)', path.read_text())}
    return sorted(found)


def tree() -> Path:
    """A folder for PYTHONPATH with a debug build of this tree's sources, built when needed."""
    made = ROOT / "build" / f"debug-tree-{sys.implementation.cache_tag}"
    made.parent.mkdir(exist_ok=True)
    with (made.parent / "debug-tree.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        argv = [sys.executable, "setup.py", "--quiet", "build", "--build-lib", str(made)]
        done = subprocess.run(
            argv, cwd=ROOT, env={**os.environ, "FASTPLUG_BUILD": "debug"}, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S
        )
        assert done.returncode == 0, done.stderr[-4000:]
    return made
