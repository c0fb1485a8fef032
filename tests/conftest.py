"""What holds for every test that is not about the source text: it leaves nothing behind.

The fixture ``nothing_left_behind`` compares what this process holds before and after each test: child processes and their
descendants, descriptors, threads, files of ours in the temporary directory, mapped segments. What is new must go away within
SETTLE_S; a test that failed already is not judged, because its own traceback keeps its objects alive.
"""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# The slowest thing that may still be under way when a test returns is the warden's own bound of 2 s; the rest is for a loaded machine.
SETTLE_S = 8.0
# Between two looks. Nothing announces "this process holds one descriptor less", so the fixture has to look again.
LOOK_AGAIN_S = 0.01
# In the environment of every descendant of this test run, so that orphans are recognised as ours after their parent is gone.
MARK = "FASTPLUG_TEST_RUN"
OUR_FILES = ("fastplug-", "plugin")
OUR_MAPPINGS = "/memfd:fastplug"

failed = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    item.stash[failed] = item.stash.get(failed, False) or report.failed
    return report


def _read(path: str) -> str:
    """The text of a file in /proc; empty when what it describes is gone by now."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _descriptors() -> set[str]:
    """``number -> what it is``, so that a number that was reused for something else counts as new."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add(f"descriptor {number} -> {os.readlink(f'/proc/self/fd/{number}')}")
        except FileNotFoundError:
            continue  # the descriptor of this very listing
    return found


def _children() -> set[str]:
    """Direct children, zombies included: they are the ones that nobody waited for."""
    pids = {pid for task in os.listdir("/proc/self/task") for pid in _read(f"/proc/self/task/{task}/children").split()}
    return {f"child process {pid}: {_command_line(pid)}" for pid in pids}


def _orphans() -> set[str]:
    """Descendants whose parent is not this process any more, recognised by their environment."""
    mark = f"{MARK}={os.environ[MARK]}"
    own = str(os.getpid())
    return {
        f"process {pid}: {_command_line(pid)}"
        for pid in os.listdir("/proc")
        if pid.isdecimal() and pid != own and mark in _read(f"/proc/{pid}/environ").split("\0")
    }


def _command_line(pid: str) -> str:
    return _read(f"/proc/{pid}/cmdline").replace("\0", " ").strip() or "(zombie)"


def _threads() -> set[str]:
    return {f"thread {thread.name} ({thread.ident})" for thread in threading.enumerate()}


def _files() -> set[str]:
    return {f"temporary file {entry.path}" for entry in os.scandir(tempfile.gettempdir()) if entry.name.startswith(OUR_FILES)}


def _mappings() -> set[str]:
    return {f"mapping {line}" for line in _read("/proc/self/maps").splitlines() if OUR_MAPPINGS in line}


LOOKS: tuple[Callable[[], set[str]], ...] = (_children, _orphans, _descriptors, _threads, _files, _mappings)


def _held() -> set[str]:
    return set().union(*(look() for look in LOOKS))


def _left_behind(before: set[str]) -> list[str]:
    """What is held now and was not before, once it has had its time to go."""
    end = time.monotonic() + SETTLE_S
    while new := _held() - before:
        gc.collect()
        new &= _held()
        if not new or time.monotonic() > end:
            return sorted(new)
        time.sleep(LOOK_AGAIN_S)
    return []


@pytest.fixture(scope="session", autouse=True)
def _whole_session_leaves_nothing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A temporary directory of our own, so that other programs' files are not taken for ours, and the check at the end of the run.

    Its path is short: a Unix socket in it must fit into 108 bytes.
    """
    tmp_path_factory.getbasetemp()  # pytest's own directory stays where it always is
    os.environ[MARK] = f"{os.getpid()}-{time.time_ns()}"
    usual = os.environ.get("TMPDIR")
    own = tempfile.mkdtemp(prefix="fpt-")
    os.environ["TMPDIR"] = tempfile.tempdir = own
    before = _held()
    yield
    left = _left_behind(before)
    shutil.rmtree(own, ignore_errors=True)
    os.environ.pop("TMPDIR")
    if usual is not None:
        os.environ["TMPDIR"] = usual
    tempfile.tempdir = None
    assert not left, "left behind by the whole run (a fixture of wider scope?):\n" + "\n".join(left)


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test outside tests/source ends with what it began with."""
    if "source" in request.path.relative_to(Path(__file__).parent).parts:
        yield
        return
    before = _held()
    yield
    if request.node.stash.get(failed, False):
        return
    left = _left_behind(before)
    assert not left, "left behind by this test:\n" + "\n".join(left)
