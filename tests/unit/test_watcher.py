from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastplug.shm import watcher as module
from fastplug.shm.watcher import Watcher, wake_until_awake, watcher

SOON_S = 60.0
SOURCES = Path(__file__).parents[2] / "src"


class Pipe:
    """A descriptor to watch, and a way to make it readable."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        self.seen = threading.Event()
        self.threads: list[threading.Thread] = []

    def notice(self) -> None:
        os.read(self.reader, 100)
        self.threads.append(threading.current_thread())
        self.seen.set()

    def ring(self) -> None:
        self.seen.clear()
        os.write(self.writer, b".")
        assert self.seen.wait(SOON_S)

    def close(self) -> None:
        os.close(self.reader)
        os.close(self.writer)


@pytest.fixture
def pipes() -> Iterator[list[Pipe]]:
    made = [Pipe(), Pipe()]
    yield made
    for pipe in made:
        pipe.close()


def test_callbacks_run_on_one_thread_of_its_own(pipes: list[Pipe]) -> None:
    watching = Watcher()
    for pipe in pipes:
        watching.add(pipe.reader, pipe.notice)
    assert watching.watching == 2
    for _ in range(3):
        for pipe in pipes:
            pipe.ring()
    assert len({thread for pipe in pipes for thread in pipe.threads}) == 1
    assert pipes[0].threads[0] is not threading.current_thread()
    for pipe in pipes:
        watching.remove(pipe.reader)
    assert watching.watching == 0


def test_the_thread_ends_with_the_last_descriptor_and_starts_again(pipes: list[Pipe]) -> None:
    watching = Watcher()
    for _ in range(5):
        watching.add(pipes[0].reader, pipes[0].notice)
        pipes[0].ring()
        watching.remove(pipes[0].reader)
        assert not pipes[0].threads[-1].is_alive()
    assert len(set(pipes[0].threads)) == 5


def test_after_remove_no_callback_runs(pipes: list[Pipe]) -> None:
    watching = Watcher()
    entered, leave = threading.Event(), threading.Event()
    running = []

    def slow() -> None:
        running.append(1)
        entered.set()
        assert leave.wait(SOON_S)
        os.read(pipes[0].reader, 100)
        running.pop()

    watching.add(pipes[0].reader, slow)
    watching.add(pipes[1].reader, pipes[1].notice)
    os.write(pipes[0].writer, b".")
    assert entered.wait(SOON_S)
    threading.Timer(0.01, leave.set).start()
    watching.remove(pipes[0].reader)
    assert not running, "remove() waits for the callback that runs"
    pipes[1].ring()
    watching.remove(pipes[1].reader)


def test_a_callback_may_remove_its_own_descriptor(pipes: list[Pipe]) -> None:
    watching = Watcher()
    done = threading.Event()

    def once() -> None:
        watching.remove(pipes[0].reader)
        done.set()

    watching.add(pipes[0].reader, once)
    os.write(pipes[0].writer, b".")
    assert done.wait(SOON_S)
    watching.remove(pipes[0].reader)
    assert watching.watching == 0


def test_hang_up_is_noticed(pipes: list[Pipe]) -> None:
    watching = Watcher()
    reader, writer = os.pipe()
    done = threading.Event()

    def hung_up() -> None:
        assert os.read(reader, 1) == b""
        watching.remove(reader)
        done.set()

    watching.add(reader, hung_up)
    os.close(writer)
    assert done.wait(SOON_S)
    os.close(reader)


def test_a_process_that_ends_is_noticed() -> None:
    watching = Watcher()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    pidfd = os.pidfd_open(child.pid)
    ended = threading.Event()

    def exited() -> None:
        watching.remove(pidfd)
        ended.set()

    watching.add(pidfd, exited)
    child.communicate(b"\n")
    assert ended.wait(SOON_S)
    os.close(pidfd)


@pytest.mark.parametrize("alone", [True, False])
def test_a_broken_callback_is_not_called_again(pipes: list[Pipe], alone: bool, caplog: pytest.LogCaptureFixture) -> None:
    watching = Watcher()
    called = threading.Event()
    calls = []

    def broken() -> None:
        calls.append(threading.current_thread())
        called.set()
        raise ValueError("broken")

    if not alone:
        watching.add(pipes[1].reader, pipes[1].notice)
    watching.add(pipes[0].reader, broken)
    with caplog.at_level(logging.ERROR, "fastplug.watcher"):
        os.write(pipes[0].writer, b".")
        assert called.wait(SOON_S)
        if alone:
            calls[0].join(SOON_S)
            assert not calls[0].is_alive(), "the last one ends the thread"
        else:
            pipes[1].ring()
            pipes[1].ring()
            watching.remove(pipes[1].reader)
    assert len(calls) == 1
    assert "not watched any more" in caplog.text
    assert watching.watching == 0


def test_settle_waits_for_a_thread_whose_last_callback_removed_itself(pipes: list[Pipe]) -> None:
    watching, called, threads = Watcher(), threading.Event(), []

    def last() -> None:
        threads.append(threading.current_thread())
        watching.remove(pipes[0].reader)
        watching.settle()  # on the thread itself: nothing to wait for
        called.set()

    watching.add(pipes[0].reader, last)
    os.write(pipes[0].writer, b".")
    assert called.wait(SOON_S)
    watching.settle()
    assert not threads[0].is_alive()


def test_a_forked_child_has_a_watcher_of_its_own() -> None:
    program = (
        "import os, threading\n"
        "from fastplug.shm.watcher import watcher\n"
        "reader, writer = os.pipe()\n"
        "seen = threading.Event()\n"
        "watcher().add(reader, lambda: (os.read(reader, 1), seen.set()))\n"
        "pid = os.fork()\n"
        "if not pid:\n"
        "    assert watcher().watching == 0\n"
        "    watcher().remove(reader)\n"
        "    mine, other = os.pipe()\n"
        "    here = threading.Event()\n"
        "    watcher().add(mine, lambda: (os.read(mine, 1), here.set()))\n"
        "    os.write(other, b'.')\n"
        "    assert here.wait(60)\n"
        "    watcher().remove(mine)\n"
        "    os._exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
        "os.write(writer, b'.')\n"
        "assert seen.wait(60)\n"
        "watcher().remove(reader)\n"
        "print('fine')\n"
    )
    environment = os.environ | {"PYTHONPATH": str(SOURCES)}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], env=environment, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr


def test_one_per_process() -> None:
    assert watcher() is watcher()


class Sleeper:
    def __init__(self, times: int) -> None:
        self.times = times

    def wake(self) -> bool:
        self.times -= 1
        return self.times >= 0


def test_waking_goes_on_until_nobody_sleeps() -> None:
    sleeper = Sleeper(5)
    wake_until_awake(sleeper)
    assert sleeper.times == -1


def test_waking_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAKE_TIMEOUT_S", 0.02)
    sleeper = Sleeper(10**9)
    wake_until_awake(sleeper)
    assert sleeper.times > 0
