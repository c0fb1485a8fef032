from __future__ import annotations

from pathlib import Path

import pytest

from fastplug.shm.budget import MIN_BYTES, UNKNOWN_BYTES, budget_bytes

GIB = 1 << 30
MEMINFO = "MemTotal:       16777216 kB\nMemFree:         1234 kB\n"


class Machine:
    """A /proc and a /sys/fs/cgroup in a folder."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.cgroups = folder / "proc", folder / "cgroup"
        (self.proc / "self").mkdir(parents=True)
        self.cgroups.mkdir()
        self.write(self.proc / "meminfo", MEMINFO)

    def write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def cgroup(self, lines: str) -> None:
        self.write(self.proc / "self" / "cgroup", lines)

    def budget(self) -> int:
        return budget_bytes(self.proc, self.cgroups)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_half_of_the_machine(machine: Machine) -> None:
    assert machine.budget() == 8 * GIB


def test_no_limit(machine: Machine) -> None:
    machine.cgroup("0::/user.slice\n")
    machine.write(machine.cgroups / "user.slice" / "memory.max", "max\n")
    assert machine.budget() == 8 * GIB


@pytest.mark.parametrize("limited", ["a/b", "a", ""])
def test_v2_the_smallest_limit_up_to_the_root(machine: Machine, limited: str) -> None:
    machine.cgroup("0::/a/b\n")
    for folder in ("a/b", "a", ""):
        machine.write(machine.cgroups / folder / "memory.max", str(2 * GIB) if folder == limited else "max")
    assert machine.budget() == GIB


def test_v1(machine: Machine) -> None:
    machine.cgroup("11:pids:/x\n4:cpu,memory:/docker/abc\n1:name=systemd:/x\n")
    machine.write(machine.cgroups / "memory" / "docker" / "abc" / "memory.limit_in_bytes", str(4 * GIB))
    machine.write(machine.cgroups / "memory" / "memory.limit_in_bytes", "9223372036854771712\n")
    assert machine.budget() == 2 * GIB


def test_both(machine: Machine) -> None:
    machine.cgroup("4:memory:/a\n0::/b\n")
    machine.write(machine.cgroups / "memory" / "a" / "memory.limit_in_bytes", str(4 * GIB))
    machine.write(machine.cgroups / "b" / "memory.max", str(3 * GIB))
    assert machine.budget() == 3 * GIB // 2


def test_a_cgroup_outside_of_the_namespace(machine: Machine) -> None:
    machine.cgroup("0::/../../other\n")
    assert machine.budget() == 8 * GIB


def test_never_less_than_the_first_segment(machine: Machine) -> None:
    machine.cgroup("0::/a\n")
    machine.write(machine.cgroups / "a" / "memory.max", "4096")
    assert machine.budget() == MIN_BYTES


@pytest.mark.parametrize("meminfo", ["", "MemFree: 1 kB\n", "MemTotal:\n", "MemTotal: lots kB\n", "MemTotal: \xff\n"])
def test_what_cannot_be_read(machine: Machine, meminfo: str) -> None:
    (machine.proc / "meminfo").write_bytes(meminfo.encode("latin-1"))
    machine.cgroup("nonsense\n0::/a\n")
    machine.write(machine.cgroups / "a" / "memory.max", "nonsense")
    assert machine.budget() == UNKNOWN_BYTES // 2


def test_no_proc_at_all(tmp_path: Path) -> None:
    assert budget_bytes(tmp_path / "proc", tmp_path / "cgroup") == UNKNOWN_BYTES // 2


def test_this_machine() -> None:
    assert budget_bytes() >= MIN_BYTES
