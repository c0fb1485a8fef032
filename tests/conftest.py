"""What holds for every test that is not about the source text: it leaves nothing behind.

The fixture ``nothing_left_behind`` compares what this process holds before and after each test: child processes and their
descendants, descriptors, threads, files of ours in the temporary directory, mapped segments. What is new must go away within
SETTLE_S; a test that failed already is not judged, because its own traceback keeps its objects alive.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from fastplug.net.relay import Relay

ROOT = Path(__file__).parents[1]
# The slowest thing that may still be under way when a test returns is the warden's own bound of 2 s; the rest is for a loaded machine.
SETTLE_S = 30.0
# Between two looks. Nothing announces "this process holds one descriptor less", so the fixture has to look again.
LOOK_AGAIN_S = 0.01
# In the environment of every descendant of this test run, so that orphans are recognised as ours after their parent is gone.
MARK = "FASTPLUG_TEST_RUN"
# Those that ran before us are not ours: to read what each one's environment says took most of a look (1.9 of 2.7 ms, twice for every test).
EARLIER = frozenset(os.listdir("/proc"))
OUR_FILES = ("fastplug-", "plugin")
OUR_MAPPINGS = "/memfd:fastplug"

failed = pytest.StashKey[bool]()

# A run that a shell started in the background has SIGINT ignored, and so would all that it starts: tests of Ctrl-C would wait in vain.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in every run of `make test`; `make fuzz` draws new ones, and many. No example has a time limit.
hypothesis.settings.register_profile("test", deadline=None, derandomize=True)
# On a further interpreter, which shows what is of an interpreter; the main one has them all.
hypothesis.settings.register_profile("fewer", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.register_profile(
    "fuzz", deadline=None, max_examples=int(os.environ.get("FUZZ_EXAMPLES", "20000")), suppress_health_check=list(hypothesis.HealthCheck)
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "test"))


def pytest_collection_finish() -> None:
    """What is there by now stays: a test that collects garbage need not go through all tests and libraries for it (0.1 s each time)."""
    gc.collect()
    gc.freeze()


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


def _descriptors() -> Iterator[str]:
    """Number and target, so that a number that was reused for something else counts as new."""
    for number in set(os.listdir("/proc/self/fd")) - {"0", "1", "2"}:  # pytest redirects these as it likes
        try:
            yield f"descriptor {number} -> {os.readlink(f'/proc/self/fd/{number}')}"
        except FileNotFoundError:
            continue  # the descriptor of this very listing


def _processes() -> Iterator[str]:
    """Children, zombies included (nobody waited for them), and descendants that have lost their parent, known by their environment."""
    for task in os.listdir("/proc/self/task"):
        yield from (f"process {pid}" for pid in _read(f"/proc/self/task/{task}/children").split())
    mark = f"{MARK}={os.environ[MARK]}"
    others = (pid for pid in os.listdir("/proc") if pid.isdecimal() and pid not in EARLIER)
    yield from (f"process {pid}" for pid in others if mark in _read(f"/proc/{pid}/environ").split("\0"))


def _threads() -> Iterator[str]:
    return (f"thread {thread.name} ({thread.ident})" for thread in threading.enumerate())


def _files() -> Iterator[str]:
    return (f"temporary file {entry.path}" for entry in os.scandir(tempfile.gettempdir()) if entry.name.startswith(OUR_FILES))


def _mappings() -> Iterator[str]:
    return (f"mapping {line}" for line in _read("/proc/self/maps").splitlines() if OUR_MAPPINGS in line)


LOOKS: tuple[Callable[[], Iterator[str]], ...] = (_processes, _descriptors, _threads, _files, _mappings)


def _held() -> set[str]:
    return {thing for look in LOOKS for thing in look()}


def _in_full(thing: str) -> str:
    """With the command line of a process: it may change while it starts and ends, so it is no part of what is compared."""
    kind, _, pid = thing.partition(" ")
    if kind != "process":
        return thing
    command = _read(f"/proc/{pid}/cmdline").replace("\0", " ").strip()
    return f"{thing}: {command or 'ended, but nobody has waited for it'}"


def _left_behind(before: set[str], allowed: tuple[str, ...] = ()) -> list[str]:
    """What is held now and was not before, once it has had its time to go; except what has one of ``allowed`` in its text."""
    end = time.monotonic() + SETTLE_S
    while new := {thing for thing in _held() - before if not any(text in thing for text in allowed)}:
        if time.monotonic() > end:
            return sorted(map(_in_full, new))
        gc.collect()
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
    # A connection that is a fixture of wider scope opens lanes when it needs them; the check at the end of the run is for these.
    left = _left_behind(before, allowed=("/memfd:fastplug-lane", "anon_inode:[eventfd]"))
    assert not left, "left behind by this test:\n" + "\n".join(left)


@pytest.fixture(scope="module")
def relay() -> Iterator[Relay]:
    """A relay process for the tests of a module."""
    from fastplug.net.relay import Relay  # not above: tests of the source text need nothing of it

    made = Relay()
    hold = made.hold()
    yield made
    hold.release()


@pytest.fixture(scope="session")
def go() -> str:
    """The path of a go tool. Tests that use it are marked ``go`` and skipped, with the reason, where there is none."""
    given = os.environ.get("FASTPLUG_GO")
    if given:
        return given
    found = subprocess.run([str(ROOT / "ci" / "find_go")], capture_output=True, text=True, check=False)
    if found.returncode != 0:
        pytest.skip(found.stderr.strip().splitlines()[-1])
    return found.stdout.strip()
