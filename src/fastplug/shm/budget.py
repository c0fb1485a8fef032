"""How much shared memory one arena may use by default: half of what the cgroup, or the machine, allows.

The kernel kills a process of a memory cgroup that is full; it does not refuse the allocation. So the budget is checked before.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["budget_bytes"]

# When nothing can be read (no /proc): what any machine that runs numpy has.
UNKNOWN_BYTES = 1 << 30
# An arena smaller than its first segment would be of no use.
MIN_BYTES = 4 << 20


def _number(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    return int(text) if text.isdigit() else None


def _machine_bytes(proc: Path) -> int:
    try:
        for line in (proc / "meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemTotal:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return UNKNOWN_BYTES
    return UNKNOWN_BYTES


def _cgroup_limits(proc: Path, cgroups: Path) -> list[int]:
    """Every limit from the process's cgroup up to the root: v2's memory.max, v1's memory.limit_in_bytes."""
    try:
        lines = (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found: list[int] = []
    for line in lines:
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy == "0":
            root, name = cgroups, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = cgroups / "memory", "memory.limit_in_bytes"
        else:
            continue
        folder = root / path.lstrip("/")
        for place in (folder, *folder.parents):
            limit = _number(place / name)
            if limit is not None:
                found.append(limit)
            if place == root:
                break
    return found


def budget_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Half of the smallest limit that applies to this process, in bytes."""
    return max(MIN_BYTES, min([_machine_bytes(proc), *_cgroup_limits(proc, cgroups)]) // 2)
