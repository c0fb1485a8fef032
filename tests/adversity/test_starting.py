"""How a plugin is started: pinned files, ports, sockets, environment, stdin, stderr; which of several plugins; and what it leaves."""

from __future__ import annotations

import contextlib
import grp
import hashlib
import io
import os
import shlex
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.adversity.hosts import environment as host_environment
from tests.adversity.hosts import source
from tests.adversity.processes import WATCHDOG_S, alive, gone, open_pidfds
from tests.conformance.conftest import plugin_environment
from tests.plugins.stay_api import Stay

import fastplug
from fastplug import SecureConfig, UnixSocketConfig
from fastplug.process.family import marked

COMMAND = [sys.executable, "-m", "tests.plugins.stay_plugin"]
SCRIPT = Path(__file__).parents[1] / "plugins" / "stay_plugin.py"
# A process that does nothing until it is killed.
FOREVER = "import time; time.sleep(1000)"
# Leaves such a process, in a session of its own, without a parent, and says its pid.
ORPHAN = f"""
import os, subprocess, sys
print("orphan", subprocess.Popen([sys.executable, "-I", "-S", "-c", {FOREVER!r}], start_new_session=True).pid, file=sys.stderr, flush=True)
"""
# docs/go-plugin.md promises go-plugin's 2 s after Shutdown, and a second for the rest; a loaded machine takes longer, but not for ever.
KILL_BOUND_S = 60.0


def started(*arguments: str, target: Any = None, **options: Any) -> fastplug.Client:
    options.setdefault("env", {})
    options["env"] = {**plugin_environment(), **options["env"]}
    return fastplug.start(target or [*COMMAND, *arguments], name="stay", **options)


def sha256(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


# -- pinned files


def test_a_pinned_script_runs_and_its_interpreter_can_be_pinned_too() -> None:
    secure = SecureConfig(sha256(SCRIPT), interpreter=sha256(sys.executable))
    with started(target=SCRIPT, secure=secure) as client:
        assert client.transport == "shm"  # the descriptors of the offer and of the pins do not get into each other's way
        assert client.dispense(Stay).doubled(4) == 8
        assert "/memfd:pinned" in os.readlink(f"/proc/{client.pid}/exe")


def test_what_is_executed_is_what_was_checked(tmp_path: Path) -> None:
    """The file changes between the check and the start: by another file of that name, and in place."""
    script = tmp_path / "honest.py"
    honest = SCRIPT.read_text()
    evil = "print('evil', flush=True)\n"

    class Late:
        """A runner that makes the swap just before it starts the process."""

        def __init__(self, argv: Any, /, **options: Any) -> None:
            from fastplug.process.command import CommandRunner

            script.write_text(evil)  # in place
            other = script.with_suffix(".other")
            other.write_text(evil)
            other.rename(script)
            self._runner = CommandRunner(argv, **options)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._runner, name)

    script.write_text(honest)
    secure = SecureConfig(hashlib.sha256(honest.encode()).digest())
    with started(target=script, secure=secure, runner=Late) as client:
        assert client.dispense(Stay).doubled(4) == 8
    with pytest.raises(fastplug.ChecksumMismatch, match=r"checksums did not match: .*honest\.py has sha256 .*The plugin was not started"):
        started(target=script, secure=secure)


def test_another_file_or_interpreter_is_refused(tmp_path: Path, fault_row: Callable[..., None]) -> None:
    with pytest.raises(fastplug.ChecksumMismatch, match=r"stay_plugin\.py"):
        started(target=SCRIPT, secure=SecureConfig("00" * 32))
    script = tmp_path / "acme.py"
    script.write_text("pass\n")
    with pytest.raises(fastplug.ChecksumMismatch) as mismatch:
        started(target=script, secure=SecureConfig("00" * 32))
    fault_row("its file is not the one that was pinned", mismatch.value, do="or it was updated and the pin was not")
    with pytest.raises(fastplug.ChecksumMismatch, match=Path(sys.executable).name):
        started(target=SCRIPT, secure=SecureConfig(sha256(SCRIPT), interpreter=b"\0" * 32))
    with pytest.raises(fastplug.ChecksumMismatch, match="sha1"):
        started(target=["/bin/sh", str(SCRIPT)], secure=SecureConfig(b"\0" * 20, hash=hashlib.sha1))


@pytest.mark.parametrize("argv", [[*COMMAND], ["/bin/sh", "-c", "exec true"], ["env", "python3", str(SCRIPT)], [sys.executable, "-c", "1"]])
def test_a_checksum_that_would_pin_only_an_interpreter_is_refused(argv: list[str]) -> None:
    with pytest.raises(fastplug.ConfigError, match="a checksum pins a file"):
        started(target=argv, secure=SecureConfig(sha256("/bin/sh")))


def test_a_pinned_program_runs_from_memory(tmp_path: Path) -> None:
    """A program that is no script: a copy of the interpreter itself, which then can be told apart by its checksum."""
    program = tmp_path / "program"
    program.write_bytes(Path("/bin/cat").read_bytes())
    program.chmod(0o700)
    with _line_on_stdin(b"9|garbage\n") as stdin, pytest.raises(fastplug.HandshakeError, match=r"remote plugin message: '9\|"):
        started(target=program, secure=SecureConfig(sha256(program)), stdin=stdin)
    with pytest.raises(fastplug.ConfigError, match="is a program of its own"):
        started(target=program, secure=SecureConfig(sha256(program), interpreter=sha256(program)))


@contextlib.contextmanager
def _line_on_stdin(data: bytes) -> Any:
    read, write = os.pipe()
    os.write(write, data)
    try:
        yield read
    finally:
        os.close(read)
        os.close(write)


# -- environment, stdin, stderr


def test_the_plugin_gets_stdin_and_environment_as_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAY_HOST", "host's")
    monkeypatch.setenv("STAY_BOTH", "host's")
    with _line_on_stdin(b"hello") as stdin, started(stdin=stdin, env={"STAY_BOTH": "user's"}, inherit_env=True) as client:
        stay = client.dispense(Stay)
        assert stay.read_stdin(5) == b"hello"
        assert (stay.environment("STAY_HOST"), stay.environment("STAY_BOTH")) == ("host's", "user's")
        assert stay.environment("FASTPLUG_OFFER") is None
        marks = stay.environment("FASTPLUG_FAMILY")
        assert marks
    with started(inherit_env=False, env={"STAY_BOTH": "user's"}) as client:
        stay = client.dispense(Stay)
        assert (stay.environment("STAY_HOST"), stay.environment("STAY_BOTH")) == (None, "user's")
        assert stay.environment("FASTPLUG_FAMILY") != marks


def test_stdin_is_inherited_unless_given() -> None:
    code = """
        from tests.adversity.test_starting import started, Stay
        with started() as client:
            print(client.dispense(Stay).read_stdin(5))
        """
    done = subprocess.run(source(code), input=b"hello", capture_output=True, env=host_environment(), timeout=WATCHDOG_S)
    assert done.stdout == b"b'hello'\n", done.stderr.decode()


def test_a_copy_of_stderr_and_long_lines_in_pieces(caplog: pytest.LogCaptureFixture) -> None:
    copy = io.BytesIO()
    with caplog.at_level("INFO", "fastplug.plugin.stay"):
        script = "import sys; sys.stderr.write('x' * 700 + '\\n'); sys.stderr.flush(); print('no line', flush=True)"
        with pytest.raises(fastplug.StartError):
            started(target=[sys.executable, "-c", script], stderr=copy, log_buffer_bytes=256)
    assert copy.getvalue() == b"x" * 700 + b"\n"
    assert [len(record.message) for record in caplog.records if record.message.startswith("x")] == [256, 256, 188]


def test_a_sink_that_fails_does_not_hold_up_the_plugin(caplog: pytest.LogCaptureFixture) -> None:
    closed = io.BytesIO()
    closed.close()
    with caplog.at_level("WARNING"), started(stderr=closed) as client:
        client.dispense(Stay).log("one")
        client.dispense(Stay).log("two")
    messages = [record.message for record in caplog.records]
    assert "two" in messages
    assert sum("gets no more of it" in message for message in messages) == 1


# -- where it listens


def test_a_tcp_plugin_takes_the_first_free_port_of_the_range() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        most = min(port + 40, 65535)
        with started("--tcp", transport="grpc", min_port=port, max_port=most) as client:
            config = client.reattach_config()
            assert config is not None
            assert config.network == "tcp"
            assert port < int(config.address.rpartition(":")[2]) <= most
            assert client.dispense(Stay).doubled(1) == 2
        with pytest.raises(fastplug.StartError, match="couldn't bind plugin TCP listener: no port from"):
            started("--tcp", transport="grpc", min_port=port, max_port=port)


def test_the_sockets_of_a_plugin_belong_to_the_group(tmp_path: Path) -> None:
    group = os.getgroups()[0] if os.getgroups() else os.getgid()
    short = UnixSocketConfig(group=str(group), temp_dir=os.environ["TMPDIR"])
    with started(transport="grpc", unix_socket=short) as client:
        config = client.reattach_config()
        assert config is not None
        path = Path(config.address)
        assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_gid) == (0o660, group)
        assert (stat.S_IMODE(path.parent.stat().st_mode), path.parent.stat().st_gid) == (0o770, group)
        assert path.parent.parent == Path(os.environ["TMPDIR"])
    assert not path.parent.exists()
    with pytest.raises(fastplug.ConfigError, match="group 'no-such-group'"):
        started(transport="grpc", unix_socket=UnixSocketConfig(group="no-such-group"))
    with pytest.raises(fastplug.ConfigError, match="no directory for the plugin's sockets"):
        started(transport="grpc", unix_socket=UnixSocketConfig(temp_dir=tmp_path / "missing"))
    assert grp.getgrgid(os.getgid())


# -- versions


@pytest.mark.parametrize(("offered", "chosen"), [((1, 2), 2), ((2, 9), 2), ((1,), 1), ((5, 1), 5)])
def test_host_and_plugin_take_their_highest_shared_version(offered: tuple[int, ...], chosen: int) -> None:
    versions = {number: {"stay": fastplug.InterfacePlugin(Stay)} for number in offered}
    with started("--versions", versioned_plugins=versions) as client:
        assert client.negotiated_version == chosen
        assert client.dispense("stay").version() == chosen  # type: ignore[attr-defined]


def test_without_a_shared_version_the_plugin_names_its_lowest() -> None:
    versions = {number: {"stay": fastplug.InterfacePlugin(Stay)} for number in (3, 7)}
    with pytest.raises(fastplug.IncompatibleVersion, match=r"Plugin version: 1, Client versions: \[3, 7\]"):
        started("--versions", versioned_plugins=versions)


# -- several in one program, and by their names


MUX = """
import fastplug, sys
from tests.plugins.stay_plugin import Stay, Staying
def five(): fastplug.serve(Staying(5))
one = fastplug.ServeConfig(plugins={"stay": fastplug.InterfacePlugin(Stay, Staying(1))})
fastplug.serve_mux({"one": one, "five": five})
"""


@pytest.mark.parametrize(("name", "version"), [("one", 1), ("five", 5)])
def test_the_first_argument_chooses_the_plugin(name: str, version: int, tmp_path: Path) -> None:
    script = tmp_path / "mux.py"
    script.write_text(MUX)
    with started(target=[sys.executable, str(script), name]) as client:
        assert client.dispense(Stay).version() == version


def test_an_argument_that_names_no_plugin(tmp_path: Path) -> None:
    script = tmp_path / "mux.py"
    script.write_text(MUX)
    with pytest.raises(fastplug.StartError, match="Unknown plugin: two"):
        started(target=[sys.executable, str(script), "two"])
    with pytest.raises(fastplug.StartError, match="Invoked improperly"):
        started(target=[sys.executable, str(script)])


def test_discover_finds_files_by_their_names(tmp_path: Path) -> None:
    for name in ("acme-b", "acme-a.py", "other"):
        (tmp_path / name).touch()
    (tmp_path / "acme-folder").mkdir()
    assert fastplug.discover("acme-*", tmp_path) == [tmp_path / "acme-a.py", tmp_path / "acme-b"]
    assert fastplug.discover("*", tmp_path / "missing") == []
    with pytest.raises(fastplug.ConfigError, match="a pattern below a directory"):
        fastplug.discover("/absolute/*", tmp_path)


# -- what it leaves


@pytest.mark.parametrize("transport", ["shm", "grpc"])
def test_a_grandchild_in_a_session_of_its_own_ends_with_an_orderly_kill(transport: str) -> None:
    """It holds stdout and stderr of the plugin, its parent ends in order, and nothing leads from it to the plugin any more."""
    with started(transport=transport) as client:
        stay = client.dispense(Stay)
        child = stay.spawn(FOREVER)
        # one that has lost its parent before the plugin ends
        orphan_of = f"import os, subprocess, sys; subprocess.Popen([sys.executable, '-I', '-S', '-c', {FOREVER!r}], start_new_session=True)"
        middle = stay.spawn(orphan_of)
        with open_pidfds([child]) as pidfds:
            with open_pidfds([middle]) as [ended]:
                assert gone(ended)
            assert alive(pidfds[0])
            client.kill()
            assert gone(pidfds[0])
    # nothing_left_behind sees the orphan


def test_an_orphan_ends_with_a_host_that_is_killed() -> None:
    """The warden finds it by its mark: it has a session of its own, and its parent is gone."""
    code = f"""
        from tests.adversity.test_starting import started, Stay
        import io
        stay = started(stderr=io.FileIO(2, "wb", closefd=False)).dispense(Stay)
        stay.spawn({ORPHAN!r})
        print(os.read(0, 1), flush=True)       # until the orphan has said its pid
        os.kill(os.getpid(), signal.SIGKILL)
        """
    with subprocess.Popen(
        source(code), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=host_environment()
    ) as host:
        assert host.stderr is not None
        assert host.stdin is not None
        line = next(line for line in iter(host.stderr.readline, b"") if b"orphan" in line)
        with open_pidfds([int(line.split(b"orphan")[1].split()[0])]) as [pidfd]:
            assert alive(pidfd)
            host.communicate(b"x", timeout=WATCHDOG_S)
            assert gone(pidfd)


def test_a_process_in_the_middle_of_exec_is_found_by_its_mark(tmp_path: Path) -> None:
    """It has no environment at that moment. This one is there most of the time."""
    again = tmp_path / "again"
    again.write_text('#!/bin/sh\nexec "$0"\n')
    again.chmod(0o700)
    with subprocess.Popen([again], env={"MARK": "of this test"}) as process:
        try:
            assert all(process.pid in marked([b"MARK=of this test"]) for _ in range(100))
        finally:
            process.kill()


@pytest.mark.parametrize("transport", ["shm", "grpc"])
def test_a_kill_with_a_grandchild_that_holds_the_pipes_is_bounded(transport: str) -> None:
    """go-plugin waits for ever there: its SIGKILL reaches the plugin alone, and then it waits for the end of the pipes."""
    with started(transport=transport) as client:
        with open_pidfds([client.dispense(Stay).spawn(FOREVER)]) as [pidfd]:
            begun = time.monotonic()
            client.kill()
            assert time.monotonic() - begun < KILL_BOUND_S
            assert gone(pidfd)
        assert client.exited


def test_a_kill_of_a_plugin_whose_shell_goes_on_is_bounded() -> None:
    """Shutdown ends the plugin, and not the shell around it, which goes on with something else."""
    shell = ["/bin/sh", "-c", f"{shlex.join(COMMAND)}; exec sleep 1000"]
    with started(target=shell, transport="grpc") as client:
        assert client.dispense(Stay).doubled(1) == 2
        begun = time.monotonic()
        client.kill()
        assert time.monotonic() - begun < KILL_BOUND_S


def test_cleanup_clients_ends_those_that_are_managed() -> None:
    managed = [started() for _ in range(2)]
    unmanaged = started(managed=False)
    fastplug.cleanup_clients()
    assert [client.exited for client in managed] == [True, True]
    assert unmanaged.dispense(Stay).doubled(1) == 2
    unmanaged.kill()
