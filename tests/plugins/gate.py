"""The plugin's side of a gate: two FIFOs that a test made and holds open. A handler waits for the test, never for a time."""

from __future__ import annotations

import os
import select
from pathlib import Path

__all__ = ["pass_gate"]

# The test's own watchdog is longer; a plugin whose test is gone must not wait for ever.
TIMEOUT_S = 120.0


def pass_gate(path: str) -> None:
    """Say that we are here, and wait until the test opens."""
    waiting = os.open(Path(path) / "opened", os.O_RDONLY | os.O_NONBLOCK)
    try:
        saying = os.open(Path(path) / "entered", os.O_WRONLY)
        os.write(saying, b".")
        os.close(saying)
        if not select.select([waiting], [], [], TIMEOUT_S)[0]:
            raise TimeoutError("the test never opened the gate")
        os.read(waiting, 1)
    finally:
        os.close(waiting)
