"""Starting and ending real processes: nothing survives a kill, nothing makes it hang, and an error says why a start failed."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.adversity.processes import FAMILY, GIL_HOLDER, WATCHDOG_S, alive, gone, open_pidfds, read_pids

from fastplug.errors import Closed, ConfigError, StartError
from fastplug.process import child
from fastplug.process.command import CommandRunner
from fastplug.process.runner import Runner

SLEEPER = [sys.executable, "-I", "-S", "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(1000)"]


@pytest.fixture(params=["pidfd", "without pidfds"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that waits must also work on a kernel, or in a sandbox, that has no pidfds."""
    if request.param != "pidfd":
        monkeypatch.setattr(child, "pidfd_of", lambda pid: None)


@pytest.fixture
def runner() -> Iterator[CommandRunner]:
    runner = CommandRunner(FAMILY)
    runner.start()
    yield runner
    runner.close()


def run(*argv: str) -> CommandRunner:
    runner = CommandRunner(argv)
    runner.start()
    assert runner.wait(WATCHDOG_S)
    return runner


def test_it_is_a_runner() -> None:
    runner: Runner = CommandRunner(["x"])
    assert (runner.name, runner.id, runner.pid, runner.pidfd, runner.returncode) == ("x", "", None, None, None)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize(("code", "returncode"), [("", 0), ("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 15)", -15)])
def test_returncode(code: str, returncode: int) -> None:
    runner = run(sys.executable, "-I", "-S", "-c", code)
    assert runner.returncode == returncode
    runner.close()
    assert runner.returncode == returncode


@pytest.mark.usefixtures("kernel")
def test_wait_is_bounded() -> None:
    runner = CommandRunner(SLEEPER)
    runner.start()
    assert not runner.wait(0)
    assert not runner.wait(0.01)
    assert runner.returncode is None
    assert runner.kill()
    assert runner.wait(0)
    assert runner.returncode == -signal.SIGKILL
    runner.close()


def test_output_of_both_streams() -> None:
    runner = run("/bin/sh", "-c", "echo out; echo err >&2")
    assert runner.stdout.read() == b"out\n"
    assert runner.stderr.read() == b"err\n"
    runner.close()


def test_the_plugin_leads_a_group_in_the_session_of_the_host(runner: CommandRunner) -> None:
    pid = read_pids(runner.stdout.fileno())[0]
    assert pid == runner.pid
    assert os.getpgid(pid) == pid
    assert os.getsid(pid) == os.getsid(0)


def test_only_what_is_passed_is_open_in_the_plugin() -> None:
    reader, writer = os.pipe()
    os.set_inheritable(reader, True)
    code = "import os; print(*sorted(int(fd) for fd in os.listdir('/proc/self/fd')))"
    runner = CommandRunner([sys.executable, "-I", "-S", "-c", code], pass_fds=[writer])
    runner.start()
    assert runner.wait(WATCHDOG_S)
    *inherited, listing = (int(word) for word in runner.stdout.read().split())
    assert {*inherited, listing} - {0, 1, 2, writer} <= {listing, 3}
    os.write(writer, b"still the caller's")
    for fd in (reader, writer):
        os.close(fd)
    runner.close()


def test_environment_and_working_directory(tmp_path: Path) -> None:
    runner = CommandRunner(["/bin/sh", "-c", "echo $ONLY $HOME; pwd"], env={"ONLY": "this"}, cwd=tmp_path)
    runner.start()
    assert runner.wait(WATCHDOG_S)
    assert runner.stdout.read() == f"this\n{tmp_path}\n".encode()
    runner.close()


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("stopped", [False, True])
def test_kill_ends_the_family_even_when_it_is_stopped(stopped: bool) -> None:
    runner = CommandRunner(FAMILY)
    runner.start()
    pids = read_pids(runner.stdout.fileno())
    with open_pidfds(pids) as pidfds:
        if stopped:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
        assert runner.kill()
        assert all(gone(pidfd) for pidfd in pidfds)
    runner.close()


def test_kill_ends_what_holds_the_gil() -> None:
    runner = CommandRunner(GIL_HOLDER)
    runner.start()
    read_pids(runner.stdout.fileno())
    assert runner.kill()
    assert runner.returncode == -signal.SIGKILL
    runner.close()


def test_the_group_of_a_dead_leader_is_killed() -> None:
    runner = CommandRunner(["/bin/sh", "-c", "sleep 1000 & echo $!"])
    runner.start()
    with open_pidfds(read_pids(runner.stdout.fileno())) as [grandchild]:
        assert runner.wait(WATCHDOG_S)
        assert alive(grandchild)
        assert runner.kill()
        assert gone(grandchild)
    runner.close()


def test_a_daemon_that_escaped_and_holds_the_pipes_delays_nobody() -> None:
    """A session of its own, and its parent gone: nothing tells that it belongs to the plugin. go-plugin's Kill would hang."""
    daemon = f"{sys.executable} -I -S -c 'import os, time; os.setsid(); print(os.getpid(), flush=True); time.sleep(1000)'"
    runner = CommandRunner(["/bin/sh", "-c", f"({daemon} &)"])
    runner.start()
    [pid] = read_pids(runner.stdout.fileno())
    with open_pidfds([pid]) as [pidfd]:
        assert runner.wait(WATCHDOG_S)
        assert runner.kill()
        runner.close()
        assert alive(pidfd)
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        assert gone(pidfd)


def test_terminate_is_sigterm_to_the_group() -> None:
    runner = CommandRunner(["/bin/sh", "-c", "sleep 1000 & echo $!; wait"])
    runner.start()
    with open_pidfds(read_pids(runner.stdout.fileno())) as [grandchild]:
        runner.terminate()
        assert runner.wait(WATCHDOG_S)
        assert gone(grandchild)
    assert runner.returncode == -signal.SIGTERM
    runner.close()


def test_everything_is_idempotent_after_the_end() -> None:
    runner = run("/bin/true")
    for _ in range(2):
        runner.terminate()
        assert runner.kill()
        runner.close()
        assert runner.wait(0)
    assert runner.pidfd is None
    assert runner.returncode == 0


def test_a_process_reaped_by_the_host_is_gone_with_an_unknown_status(runner: CommandRunner) -> None:
    assert runner.pid is not None
    os.kill(runner.pid, signal.SIGKILL)
    os.waitpid(runner.pid, 0)
    assert runner.wait(0)
    assert runner.returncode is None
    runner.terminate()
    assert runner.kill()


@pytest.mark.usefixtures("kernel")
def test_many_threads_may_wait_while_another_kills() -> None:
    runner = CommandRunner(SLEEPER)
    runner.start()
    ended: list[bool] = []
    threads = [threading.Thread(target=lambda: ended.append(runner.wait(WATCHDOG_S))) for _ in range(8)]
    for thread in threads:
        thread.start()
    runner.close()
    for thread in threads:
        thread.join(WATCHDOG_S)
    assert ended == [True] * 8


def test_a_plugin_outlives_the_thread_that_started_it() -> None:
    runner = CommandRunner(SLEEPER)
    thread = threading.Thread(target=runner.start)
    thread.start()
    thread.join(WATCHDOG_S)
    read_pids(runner.stdout.fileno())  # it was running after the thread had ended ...
    assert not runner.wait(0.1)  # ... and is not being killed for that
    runner.close()


def test_a_forked_copy_touches_nothing(runner: CommandRunner) -> None:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            runner.terminate()
            runner.kill()
            runner.close()
            runner.wait(0)
        except Closed as error:
            status = 0 if str(os.getpid()) in str(error) else 2
        finally:
            os._exit(status)
    _, encoded = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(encoded) == 0
    assert not runner.wait(0)
    assert len(read_pids(runner.stdout.fileno())) == 3


def test_order_of_calls() -> None:
    runner = CommandRunner(SLEEPER)
    with pytest.raises(Closed, match="call start"):
        runner.wait(0)
    with pytest.raises(Closed, match="call start"):
        _ = runner.stdout
    assert runner.kill()
    runner.start()
    with pytest.raises(Closed, match="Make a new one"):
        runner.start()
    runner.close()


@pytest.mark.parametrize("argv", [[], "prog", ["a\0b"]])
def test_an_impossible_argv_is_refused(argv: list[str]) -> None:
    with pytest.raises(ConfigError):
        CommandRunner(argv)


def test_an_impossible_environment_is_refused() -> None:
    with pytest.raises(ConfigError):
        CommandRunner(["/bin/true"], env={"A": "\0"}).start()


def refused(*argv: str, cwd: Path | None = None) -> str:
    runner = CommandRunner(argv, cwd=cwd)
    with pytest.raises(StartError) as caught:
        runner.start()
    assert isinstance(caught.value.__cause__, OSError)
    runner.close()
    return str(caught.value)


def program(path: Path, content: bytes, mode: int = 0o755) -> str:
    path.write_bytes(content)
    path.chmod(mode)
    return str(path)


def test_why_a_program_does_not_start(tmp_path: Path) -> None:
    assert "There is no program 'no-such-program' in the folders of PATH" in refused("no-such-program")
    assert f"There is no file {tmp_path}/a/b (its folder is missing too: nothing below {tmp_path})" in refused(f"{tmp_path}/a/b")
    assert "is a directory" in refused(str(tmp_path))
    assert "is not executable (mode -rw-r--r--): chmod +x" in refused(program(tmp_path / "inert.py", b"", 0o644))
    assert "script without a '#!' line" in refused(program(tmp_path / "script", b"echo hello\n"))
    assert "is to be run by /no/such/python" in refused(program(tmp_path / "shebang", b"#!/no/such/python\n"))
    assert "carriage return" in refused(program(tmp_path / "dos", b"#!/bin/sh\r\n"))
    assert "is empty" in refused(program(tmp_path / "empty", b""))
    assert "is a Windows program" in refused(program(tmp_path / "dsp.exe", b"MZ\x90\0"))
    assert "working directory" in refused("/bin/true", cwd=tmp_path / "missing")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    assert "It is a link to" in refused(str(tmp_path / "link"))


def test_an_elf_file_for_another_machine_is_named(tmp_path: Path) -> None:
    head = bytearray(Path(sys.executable).resolve().read_bytes()[:4096])
    head[18:20] = (22).to_bytes(2, sys.byteorder)  # e_machine: s390x
    assert "was built for s390x; this machine is" in refused(program(tmp_path / "foreign", bytes(head)))


def test_a_missing_dynamic_loader_is_named(tmp_path: Path) -> None:
    whole = Path("/bin/sh").resolve().read_bytes()
    loader = whole[whole.index(b"/lib") :].split(b"\0")[0]
    broken = whole.replace(loader, b"/libX" + loader[5:])
    assert "needs the dynamic loader /libX" in refused(program(tmp_path / "musl", broken))


@pytest.mark.parametrize(
    ("argv", "finding"),
    [
        ([sys.executable, "/no/such/plugin.py"], "is to run the script /no/such/plugin.py, which does not exist"),
        (["/bin/sh", "-c", "exit 127"], "exit code 127: a shell did not find a command"),
        (["/bin/sh", "-c", "kill -SEGV $$"], "ended by signal 11 (SIGSEGV): it crashed in native code"),
        (["/bin/true"], "does it call fastplug.serve()"),
        (["/bin/sh", "-c", "exit 7"], "exit code 7."),
    ],
)
def test_how_a_program_ended_is_explained(argv: list[str], finding: str) -> None:
    runner = run(*argv)
    assert finding in runner.diagnose()
    runner.close()
