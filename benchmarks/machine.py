"""What a result must name to mean anything: commit, date, machine, versions, settings."""

from __future__ import annotations

import datetime as dt
import importlib
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["ROOT", "describe", "load", "spin_settings"]

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("numpy", "grpcio", "pyzmq", "protobuf", "Cython")
GIT_TIMEOUT_S = 10  # a watchdog


def describe() -> dict[str, Any]:
    return {
        "commit": commit(),
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": cpu_model(),
            "cpus": len(os.sched_getaffinity(0)),
            "memory_GiB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "kernel": f"{platform.system()} {platform.release()}",
            "python": f"{platform.python_implementation()} {platform.python_version()}",
            "compiler": platform.python_compiler(),
            "packages": {name: version(name) for name in PACKAGES},
        },
        "settings": {"spin": spin_settings(), "build": os.environ.get("FASTPLUG_BUILD", "release"), "argv": sys.argv[1:]},
    }


def commit() -> str:
    """The commit that is checked out, with "+" behind it when tracked files differ from it."""

    def git(*arguments: str) -> str:
        argv = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(argv, check=False, capture_output=True, text=True, timeout=GIT_TIMEOUT_S).stdout.strip()

    head = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", "src", "benchmarks", "setup.py")
    return (head or "unknown") + ("+" if changed else "")


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def load() -> list[float]:
    return [round(value, 2) for value in os.getloadavg()]


def spin_settings() -> dict[str, Any]:
    """The two stages of the wait as the compiled lane has them; empty when it does not tell."""
    try:
        lane = importlib.import_module("fastplug.shm._lane")
    except ImportError:
        return {}
    return {name: getattr(lane, name) for name in dir(lane) if "SPIN" in name.upper() and isinstance(getattr(lane, name), int)}
