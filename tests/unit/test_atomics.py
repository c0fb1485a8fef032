"""The C header alone, from plain C: under ThreadSanitizer, and under stress. tests/unit/atomics has the programs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.twin import lane_twin as twin

PROGRAMS = Path(__file__).parent / "atomics"
HEADER = Path(__file__).parents[2] / "src" / "fastplug" / "shm"
COMPILER = os.environ.get("CC", "gcc")
# A watchdog: the slowest program takes some seconds on a busy machine.
TIMEOUT_S = 300.0
# What ThreadSanitizer ends a program with after a report.
REPORTED = 66
TSAN_OPTIONS = f"halt_on_error=1:exitcode={REPORTED}:report_signal_unsafe=0"

pytestmark = pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"there is no C compiler {COMPILER!r}")


def build(name: str, folder: Path, *flags: str) -> Path:
    program = folder / name
    command = [
        COMPILER,
        "-std=gnu11",
        "-Wall",
        "-Wextra",
        "-Werror",
        *flags,
        f"-I{HEADER}",
        str(PROGRAMS / f"{name}.c"),
        "-o",
        str(program),
    ]
    subprocess.run([*command, "-pthread"], check=True, timeout=TIMEOUT_S)
    return program


def run(program: Path, *args: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"TSAN_OPTIONS": TSAN_OPTIONS}
    # ThreadSanitizer wants a layout of the address space that a kernel with much randomisation does not give it.
    fixed = ["setarch", "-R"] if shutil.which("setarch") else []
    return subprocess.run([*fixed, str(program), *args], env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)


@pytest.fixture(scope="module")
def sanitizer(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    folder = tmp_path_factory.mktemp("tsan")
    (folder / "empty.c").write_text("int main(void) { return 0; }\n")
    flags = ("-fsanitize=thread", "-O1", "-g")
    command = [COMPILER, *flags, str(folder / "empty.c"), "-o", str(folder / "empty")]
    built = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    if built.returncode:
        pytest.skip(f"{COMPILER} has no ThreadSanitizer here: {built.stderr.strip().splitlines()[-1]}")
    tried = run(folder / "empty")
    if tried.returncode:
        pytest.skip(f"ThreadSanitizer does not start here: {tried.stderr.strip()[:200]}")
    return flags


def test_messages_and_blocks_under_the_thread_sanitizer(sanitizer: tuple[str, ...], tmp_path: Path) -> None:
    done = run(build("ring", tmp_path, *sanitizer))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "whole" in done.stdout


def test_a_planted_relaxed_store_is_reported(sanitizer: tuple[str, ...], tmp_path: Path) -> None:
    done = run(build("ring", tmp_path, *sanitizer, "-DFP_PUBLISH_ORDER=__ATOMIC_RELAXED"))
    assert done.returncode == REPORTED, done.stdout + done.stderr
    assert "data race" in done.stderr


@pytest.mark.parametrize("level", ["-O0", "-O2", "-O3"])
def test_every_byte_arrives(level: str, tmp_path: Path) -> None:
    done = run(build("ring", tmp_path, level))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("cpus", [1, 2])
def test_no_wake_up_is_lost(cpus: int, tmp_path: Path) -> None:
    """On one CPU each round is two switches; on two, flag and word cross on their way."""
    usable = sorted(os.sched_getaffinity(0))[:cpus]
    if len(usable) < cpus:
        pytest.skip(f"this machine lets the test use {len(usable)} CPU")
    program = build("wake", tmp_path, "-O2")
    command = ["taskset", "--cpu-list", ",".join(map(str, usable)), str(program), "50000"]
    if shutil.which("taskset") is None:
        command = command[3:]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stdout
    assert "no wake-up lost" in done.stdout


def test_one_reader_of_many_lanes_under_the_thread_sanitizer(sanitizer: tuple[str, ...], tmp_path: Path) -> None:
    done = run(build("doorbell", tmp_path, *sanitizer), "300")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no ring lost" in done.stdout


def test_a_planted_relaxed_store_is_reported_there_too(sanitizer: tuple[str, ...], tmp_path: Path) -> None:
    done = run(build("doorbell", tmp_path, *sanitizer, "-DFP_PUBLISH_ORDER=__ATOMIC_RELAXED"), "300")
    assert done.returncode == REPORTED, done.stdout + done.stderr
    assert "data race" in done.stderr


def test_no_ring_is_lost(tmp_path: Path) -> None:
    done = run(build("doorbell", tmp_path, "-O2"), "10000")
    assert done.returncode == 0, done.stdout
    assert "no ring lost" in done.stdout


def test_layout_and_fork_mark(tmp_path: Path) -> None:
    done = run(build("layout", tmp_path, "-O2"))
    assert done.returncode == 0, f"the fork mark failed at {done.returncode}"
    offsets = {name: int(offset) for name, offset in re.findall(r"(\w+) (\d+)", done.stdout)}
    assert offsets.pop("size") <= twin.RING_OFFSET
    assert offsets == twin.OFFSETS
    polled = [offsets[name] for name in ("tail", "head", "waiting_data", "waiting_space", "doorbell", "waiting_doorbell")]
    assert all(offset % 128 == 0 for offset in polled), "each on a line pair of its own"
