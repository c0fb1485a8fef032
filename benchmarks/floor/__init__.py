"""The floor: what the machine allows, measured in C. Compiled on demand into build/floor."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["compile_floor", "measure_memcpy", "measure_pingpong", "measure_unix_socket"]

SOURCES = Path(__file__).resolve().parent
PROGRAMS = SOURCES.parents[1] / "build" / "floor"
RUN_TIMEOUT_S = 120  # a watchdog: the slowest cell takes some seconds on a busy machine


def compile_floor() -> None:
    """Builds what is missing or out of date. Raises CalledProcessError with the compiler's words."""
    subprocess.run(["make", "-s", "-C", str(SOURCES), f"OUT={PROGRAMS}"], check=True)


def measure_pingpong(calls: int, warmup: int, cpus: tuple[int, int]) -> dict[str, Any]:
    """64 B there and back over shared memory; ``cpus`` of caller and callee, -1 where the kernel chooses."""
    return _run("pingpong", calls, warmup, *cpus)[0]


def measure_unix_socket(size_bytes: int, calls: int, warmup: int, cpus: tuple[int, int]) -> dict[str, Any]:
    """A blocking Unix socket in C."""
    return _run("unix_socket", size_bytes, calls, warmup, *cpus)[0]


def measure_memcpy(sizes_bytes: Sequence[int], cpu: int) -> list[dict[str, Any]]:
    """Per size one row ``c_memcpy_first_touch`` and one row ``c_memcpy``."""
    return _run("memcpy", cpu, *sizes_bytes)


def _run(program: str, *arguments: int) -> list[dict[str, Any]]:
    argv = [str(PROGRAMS / program), *map(str, arguments)]
    done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=RUN_TIMEOUT_S)
    return [json.loads(line) for line in done.stdout.splitlines()]
