"""The runner for an ordinary program: a process group of its own, pipes for its output, a pidfd for its end."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from fastplug.errors import Closed, ConfigError, StartError
from fastplug.process.child import Child
from fastplug.shm.watcher import watcher

__all__ = ["CommandRunner"]

# SIGKILL takes effect within milliseconds, unless the process sits in the kernel (a dead NFS server, a driver, a core dump being
# written). Nothing can end it then, so the host goes on without it rather than hang with it.
KILL_TIMEOUT_S = 5.0


class CommandRunner:
    """Runs ``argv``. See `fastplug.process.runner.Runner` for the order of calls and for ownership. Thread-safe.

    The process leads a process group of its own (so that Ctrl-C at the terminal and signals to the host's group do not
    reach it, and all of it can be signalled), but stays in the host's session: a debugger in it can open /dev/tty.

    Args:
        argv: program and arguments; the program is looked for on the PATH of ``env`` unless it contains a slash.
        env: its complete environment; None inherits this process's.
        cwd: its working directory; None inherits.
        pass_fds: descriptors it inherits under the same numbers; they stay the caller's. All others are closed in it.
        stdin: a descriptor for its stdin, or None to inherit this process's, as in go-plugin.
        executable: the file to execute when that is not ``argv[0]``, which stays what the program is told (a pinned one, by descriptor).
        name: what it is called in logs and errors; by default the program's file name.
        vouches: see `Runner.vouches`.

    Raises: ConfigError when ``argv`` is empty or holds NUL characters.
    """

    def __init__(
        self,
        argv: Sequence[str | os.PathLike[str]],
        /,
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        pass_fds: Sequence[int] = (),
        stdin: int | None = None,
        executable: str | None = None,
        name: str | None = None,
        vouches: bool = False,
    ) -> None:
        if isinstance(argv, str) or not argv:
            raise ConfigError(f"argv must be a sequence of at least a program, got {argv!r}: write [program, argument, ...]")
        self.argv = tuple(os.fspath(part) for part in argv)
        if any("\0" in part for part in self.argv):
            raise ConfigError(f"no argument of a program can hold a NUL character: {self.argv!r}")
        self.name = name or Path(self.argv[0]).name
        self.pass_fds = tuple(pass_fds)
        self.vouches = vouches
        self._env = None if env is None else dict(env)
        self._cwd = None if cwd is None else os.fspath(cwd)
        self._stdin = stdin
        self._executable = executable
        self._marks = tuple(os.fsencode(mark) for mark in [(env or {}).get("FASTPLUG_FAMILY", "").rpartition(":")[2]] if mark)
        self._detached = False
        self._lock = threading.Lock()
        self._child: Child | None = None
        self._streams: tuple[io.FileIO, ...] = ()
        self._start_error: Exception | None = None
        self._closed = False

    def __repr__(self) -> str:
        child = self._child
        state = "not started" if child is None else "ended" if child.exited else "running"
        return f"<CommandRunner {self.name!r} pid={self.pid} {state}>"

    @property
    def pid(self) -> int | None:
        """Its process id, also of its process group; None before `start`."""
        return None if self._child is None else self._child.pid

    @property
    def id(self) -> str:
        """The pid as text; empty before `start`."""
        return "" if self._child is None else str(self._child.pid)

    @property
    def pidfd(self) -> int | None:
        """Polls readable when the process has ended; None before `start`, after `close`, and where there are no pidfds."""
        return None if self._child is None else self._child.pidfd

    @property
    def returncode(self) -> int | None:
        """As `subprocess.Popen.returncode`, as of the last `wait`; None also when somebody else reaped the process."""
        return None if self._child is None else self._child.returncode

    @property
    def stdout(self) -> io.FileIO:
        """Its stdout, unbuffered; poll it and read, until `close`. Raises: Closed before `start`."""
        return self._stream(0)

    @property
    def stderr(self) -> io.FileIO:
        """Its stderr, as `stdout`. Raises: Closed before `start`."""
        return self._stream(1)

    def start(self) -> None:
        """Start the process and return as soon as the program is running.

        Raises: StartError, with the system's error as its cause and a diagnosis; ConfigError for an environment that no
        process can have; Closed when it is used twice.
        """
        with self._lock:
            if self._child is not None or self._closed:
                raise Closed(f"runner {self.name!r} was started already: a runner starts one process, once. Make a new one")
            try:
                self._start()
            except (OSError, subprocess.SubprocessError) as error:
                self._start_error = error
                raise StartError(f"plugin {self.name!r} could not be started: {error}\n{self.diagnose()}") from error
            except ValueError as error:
                raise ConfigError(f"plugin {self.name!r} could not be started with this environment: {error}") from error

    def _start(self) -> None:
        with contextlib.ExitStack() as on_failure:
            (stdout, its_stdout), (stderr, its_stderr) = (_pipe(on_failure) for _ in range(2))
            with its_stdout, its_stderr:
                self._child = Child(self._popen(stdout=its_stdout.fileno(), stderr=its_stderr.fileno()))
            self._streams = (stdout, stderr)
            on_failure.pop_all()

    def _popen(self, *, stdout: int, stderr: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.argv,
            executable=self._executable,
            stdin=self._stdin,
            stdout=stdout,
            stderr=stderr,
            env=self._env,
            cwd=self._cwd,
            pass_fds=self.pass_fds,
            close_fds=True,
            process_group=0,
        )

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the end of the process, not of its streams, at most ``timeout_s`` seconds; returns whether it has ended.

        Raises: Closed before `start` and in a forked copy of the host.
        """
        return self._started().wait(timeout_s)

    def signal_group(self, number: int) -> None:
        """Send a signal to the process group. Nothing happens if it has ended."""
        if self._child is not None:
            self._child.signal_group(number)

    def terminate(self) -> None:
        """SIGTERM to the process group."""
        self.signal_group(signal.SIGTERM)

    def kill_group(self) -> bool:
        """SIGKILL to the process, its group, its descendants and the sessions they lead; reaps the process.

        Also reaches what is stopped, and a grandchild in a session of its own, by its mark (see `family`). Waits for the end
        of the process only, at most 5 s. Idempotent; does nothing in a forked copy of the host.

        Returns: whether the process is gone.
        """
        child = self._child
        if child is None or not child.owned:
            return True
        child.kill_family(self._marks)
        gone = child.wait(KILL_TIMEOUT_S)
        child.reap()
        return gone

    def kill(self) -> bool:
        """The same as `kill_group`."""
        return self.kill_group()

    def detach(self) -> None:
        """Let the process go on: `close` then gives the streams back and nothing else.

        When it ends while this process lives, it is reaped.
        """
        self._detached = True

    def diagnose(self) -> str:
        """What is known about the program and its end, one finding a line, for the text of an error."""
        from fastplug.process.diagnosis import diagnose  # with its imports 5 ms, and most plugins start

        returncode = self._child.returncode if self._child is not None else None
        return diagnose(self.argv, env=self._env, cwd=self._cwd, error=self._start_error, returncode=returncode)

    def close(self) -> None:
        """Kill what still runs and give all descriptors back. Idempotent, bounded.

        Nobody may be in a read of the streams any more: where a daemon that the plugin left holds its pipe, it would not return.

        In a forked copy of the host it only closes the copy's descriptors.
        """
        if self._child is not None and not self._child.owned:
            self._lock = threading.Lock()  # another thread may have held it when the host forked
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._child is None:
                return
            if not self._detached:
                self.kill_group()
            for stream in self._streams:
                stream.close()  # cannot block, unlike a buffered file, whose close waits for a read in progress
            if not (self._detached and self._leave_to_watcher()):
                self._child.release()

    def _leave_to_watcher(self) -> bool:
        """Whether the watcher reaps the process when it ends: nobody else may wait for a child of ours."""
        child = self._child
        if child is None or child.pidfd is None or child.exited:
            return False
        try:
            watcher().add(child.pidfd, self._reap_detached)
        except RuntimeError:
            return False  # the interpreter is about to exit and starts no thread any more; then init reaps
        return True

    def _reap_detached(self) -> None:
        """On the watcher's thread, when a detached process ended."""
        child = self._child
        if child is not None and child.pidfd is not None:
            watcher().remove(child.pidfd)
            child.reap()
            child.release()

    def _started(self) -> Child:
        if self._child is None:
            raise Closed(f"runner {self.name!r} was not started: call start() first")
        return self._child

    def _stream(self, index: int) -> io.FileIO:
        self._started()
        return self._streams[index]


def _pipe(on_failure: contextlib.ExitStack) -> tuple[io.FileIO, io.FileIO]:
    """Both ends of a pipe, closed on failure."""
    reader, writer = os.pipe()
    return on_failure.enter_context(io.FileIO(reader, "rb")), on_failure.enter_context(io.FileIO(writer, "wb"))
