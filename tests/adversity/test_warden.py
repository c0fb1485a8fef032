"""Whatever becomes of the host, its plugins end, with all that they started. Hosts, plugins and wardens are real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.adversity.processes import FAMILY, GIL_HOLDER, WATCHDOG_S, alive, gone, open_pidfds, read_pids

from fastplug.errors import StartError
from fastplug.process.command import CommandRunner
from fastplug.process.warden import Warden, warden

SLEEPER = ["/bin/sh", "-c", "echo $$; exec sleep 1000"]
GROUP = ["/bin/sh", "-c", "sleep 1000 & echo $$ $!; wait"]
SOURCE = Path(__file__).parents[2] / "src"


@dataclass
class Host:
    """A running host and pidfds of what it made."""

    process: subprocess.Popen[bytes]
    plugins: list[int]
    warden: int
    warden_pid: int
    forked: int | None

    def end(self) -> None:
        self.process.kill()
        self.process.wait(WATCHDOG_S)

    def go_on(self) -> None:
        """Let it do what comes last in its plan."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()


@contextmanager
def host(*plugins: list[str], then: str = "pause", replace: bool = False, fork: bool = False) -> Iterator[Host]:
    plan = json.dumps({"plugins": plugins, "then": then, "replace": replace, "fork": fork})
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("warden_host.py")), plan],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with process.stdin, process.stdout:
            told = json.loads(process.stdout.readline())
            forked = [] if told["forked"] is None else [told["forked"]]
            with open_pidfds([told["warden"], *told["plugins"], *forked]) as [its_warden, *others]:
                assert all(alive(pidfd) for pidfd in others)
                last = others.pop() if forked else None
                yield Host(process, others, its_warden, told["warden"], last)
    finally:
        process.kill()
        process.wait(WATCHDOG_S)


@pytest.mark.parametrize("plugin", [SLEEPER, FAMILY, GIL_HOLDER], ids=["unaware program", "family", "GIL held"])
def test_plugins_of_a_killed_host_end(plugin: list[str]) -> None:
    with host(plugin) as it:
        it.end()
        assert all(gone(pidfd) for pidfd in it.plugins)
        assert gone(it.warden)


def test_several_plugins_end() -> None:
    with host(SLEEPER, FAMILY, SLEEPER) as it:
        assert len(it.plugins) == 5
        it.end()
        assert all(gone(pidfd) for pidfd in it.plugins)


def test_stopped_plugins_end() -> None:
    """Without a grandchild in another session: the kernel itself ends a stopped group whose parent is gone (SIGHUP, at times
    before the warden looks), and then nothing tells any more whose grandchild that was."""
    with host(GROUP) as it:
        for pidfd in it.plugins:
            signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
        it.end()
        assert all(gone(pidfd) for pidfd in it.plugins)


def test_a_forked_child_of_the_host_does_not_keep_plugins_alive() -> None:
    with host(FAMILY, fork=True) as it:
        assert it.forked is not None
        it.end()
        assert all(gone(pidfd) for pidfd in it.plugins)
        assert gone(it.warden)
        assert alive(it.forked)
        signal.pidfd_send_signal(it.forked, signal.SIGKILL)
        assert gone(it.forked)


def test_plugins_end_with_a_host_that_exits_without_ending_them() -> None:
    with host(FAMILY, then="exit") as it:
        it.go_on()
        assert it.process.wait(WATCHDOG_S) == 0
        assert all(gone(pidfd) for pidfd in it.plugins)
        assert gone(it.warden)


def test_plugins_end_with_a_host_that_becomes_another_program() -> None:
    with host(FAMILY, then="exec") as it:
        it.go_on()
        assert all(gone(pidfd) for pidfd in it.plugins)
        assert gone(it.warden)
        assert it.process.poll() is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_polite_signals_do_not_end_the_warden(number: signal.Signals) -> None:
    with host(SLEEPER) as it:
        signal.pidfd_send_signal(it.warden, number)
        it.end()
        assert all(gone(pidfd) for pidfd in it.plugins)


def test_the_warden_is_in_a_session_of_its_own() -> None:
    with host(SLEEPER) as it:
        assert os.getsid(it.warden_pid) == it.warden_pid


def test_a_killed_warden_is_replaced_by_one_that_knows_all_plugins() -> None:
    with host(SLEEPER, FAMILY, SLEEPER, replace=True) as it:
        it.end()
        assert all(gone(pidfd) for pidfd in it.plugins)


# From here on this process is the host.


@pytest.fixture
def start() -> Iterator[Callable[[], CommandRunner]]:
    runners: list[CommandRunner] = []

    def start_one() -> CommandRunner:
        runner = CommandRunner(SLEEPER)
        runner.start()
        runners.append(runner)
        return runner

    yield start_one
    for runner in runners:
        warden.forget(runner)
        runner.close()


def test_one_warden_from_the_first_plugin_to_the_last(start: Callable[[], CommandRunner]) -> None:
    assert warden.pid is None
    first, second = start(), start()
    warden.watch(first)
    pid = warden.pid
    assert pid is not None
    warden.watch(second)
    warden.forget(first)
    assert warden.pid == pid
    with open_pidfds([pid]) as [pidfd]:
        warden.forget(second)
        assert gone(pidfd)
    assert warden.pid is None
    warden.forget(second)
    warden.watch(first)
    assert warden.pid not in (None, pid)


def test_what_was_forgotten_is_left_alone(start: Callable[[], CommandRunner]) -> None:
    kept, watched = start(), start()
    warden.watch(kept)
    warden.watch(watched)
    warden.forget(kept)
    warden.forget(watched)
    assert not kept.wait(0)
    assert not watched.wait(0)


def test_a_hung_warden_is_ended_without_harm(start: Callable[[], CommandRunner]) -> None:
    runner = start()
    warden.watch(runner)
    assert warden.pid is not None
    os.kill(warden.pid, signal.SIGSTOP)
    warden.forget(runner)
    assert warden.pid is None
    assert not runner.wait(0)


def test_a_warden_that_takes_no_messages_is_replaced_without_harm(start: Callable[[], CommandRunner]) -> None:
    own = Warden()
    runner = start()
    own.watch(runner)
    assert own.pid is not None
    hung = own.pid
    os.kill(hung, signal.SIGSTOP)
    while own.pid == hung:  # until its socket is full
        own.watch(runner)
    assert not runner.wait(0)
    own.forget(runner)
    assert not runner.wait(0)


def test_threads_start_and_end_plugins_at_once() -> None:
    failures: list[BaseException] = []

    def life() -> None:
        try:
            for _ in range(3):
                runner = CommandRunner(SLEEPER)
                runner.start()
                warden.watch(runner)
                runner.kill()
                warden.forget(runner)
                runner.close()
        except BaseException as error:  # noqa: BLE001  reported by the main thread
            failures.append(error)

    threads = [threading.Thread(target=life) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WATCHDOG_S)
    assert not failures
    assert warden.pid is None


def in_forked_child(body: Callable[[], bool]) -> bool:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = 0 if body() else 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_forked_child_has_a_warden_of_its_own(start: Callable[[], CommandRunner]) -> None:
    runner = start()
    warden.watch(runner)
    pid = warden.pid
    assert pid is not None

    def body() -> bool:
        assert warden.pid is None
        warden.forget(runner)
        runner.close()
        mine = CommandRunner(SLEEPER)
        mine.start()
        warden.watch(mine)
        own = warden.pid
        mine.kill()
        warden.forget(mine)
        mine.close()
        return own not in (None, pid) and warden.pid is None

    with open_pidfds([pid]) as [pidfd]:
        assert in_forked_child(body)
        assert alive(pidfd)
        assert warden.pid == pid
        assert not runner.wait(0)


def test_no_warden_to_be_had_is_an_error(start: Callable[[], CommandRunner], monkeypatch: pytest.MonkeyPatch) -> None:
    runner = start()
    for executable, text in [("/bin/false", "did not start"), ("/no/such/python", "could not be started"), ("", "is empty")]:
        monkeypatch.setattr(sys, "executable", executable)
        with pytest.raises(StartError, match=text):
            warden.watch(runner)
        assert warden.pid is None
    monkeypatch.undo()
    warden.watch(runner)
    assert not runner.wait(0)


def test_a_runner_without_a_process_here_is_not_watched() -> None:
    warden.watch(CommandRunner(SLEEPER))
    assert warden.pid is None


def test_pids_of_the_family_are_read() -> None:
    """The other tests rely on it: three different processes, of which the last is in a session of its own."""
    runner = CommandRunner(FAMILY)
    runner.start()
    leader, child, stranger = read_pids(runner.stdout.fileno())
    assert leader == runner.pid
    assert os.getpgid(child) == leader
    assert os.getsid(stranger) == stranger
    runner.close()
