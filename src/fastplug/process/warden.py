"""The host's side of the warden, the process that ends plugins whose host was killed.

`warden` is the one of this process: it starts the process (`warden_main`) with the first plugin and ends it after the last.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Protocol

from fastplug.errors import StartError
from fastplug.process.child import Child

__all__ = ["Warden", "warden"]

# The warden is an interpreter without site, ready within 15 ms; the bound is for a machine that is swapping.
START_TIMEOUT_S = 10.0
# It answers no message but reads each at once; when the socket's buffer (some 250 messages) stays full this long, it hangs.
SEND_TIMEOUT_S = 2.0
# After the host closed its end there is nothing left to do but to leave.
EXIT_TIMEOUT_S = 2.0

_MAIN = Path(__file__).with_name("warden_main.py")


class _Watched(Protocol):
    """What the warden needs of a runner."""

    @property
    def pid(self) -> int | None: ...

    @property
    def pidfd(self) -> int | None: ...


class Warden:
    """Keeps a warden process while there are plugins. Thread-safe; a forked copy of the host starts with none of its own.

    Where there are no pidfds (everywhere but on Linux 5.3 and later) it does nothing: plugins then outlive a killed host.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._plugins: dict[int, tuple[_Watched, str, str]] = {}
        self._process: Child | None = None
        self._lifeline: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        """The pid of the warden process; None while there is none."""
        return None if self._process is None else self._process.pid

    def watch(self, runner: _Watched, directory: str = "", mark: str = "") -> None:
        """Have ``runner``'s process and all that belongs to it killed within 2 s after this process was, and ``directory`` removed.

        ``mark`` is in the environment of the process and of what it starts (see `family`).

        A warden that somebody killed is replaced here, and the new one told of all plugins.

        Raises: StartError when there is no warden to be had; ``runner`` is not watched then.
        """
        if runner.pid is None or runner.pidfd is None:
            return
        with self._lock:
            watched = self._plugins[runner.pid] = (runner, directory, mark)
            try:
                if self._process is None or self._process.wait(0) or not self._send_watch(*watched):
                    self._replace()
            except BaseException:
                self._drop(runner.pid)
                raise

    def forget(self, runner: _Watched) -> None:
        """``runner``'s process is ended, or about to be closed: do not kill it. With the last one the warden ends."""
        with self._lock:
            if runner.pid in self._plugins:
                self._drop(runner.pid)

    def _drop(self, pid: int) -> None:
        del self._plugins[pid]
        told = self._send(f"forget {pid}")
        if not self._plugins:
            self._stop(by_force=not told)

    def _replace(self) -> None:
        self._stop(by_force=True)
        self._start()
        if not all(self._send_watch(*watched) for watched in self._plugins.values()) or not self._is_ready():
            self._stop(by_force=True)
            raise StartError(
                "the warden process, which ends plugins when their host is killed, did not start: "
                f"try it by hand: {sys.executable} -I -S {_MAIN} 0 0"
            )

    def _start(self) -> None:
        """Started without waiting: what is sent before it is ready waits in the socket, and outlives this process."""
        if not sys.executable:
            raise StartError("sys.executable is empty (an embedded Python?), so no warden can be started: set it to a Python interpreter")
        mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        host_pidfd = os.pidfd_open(os.getpid())
        try:
            argv = [sys.executable, "-I", "-S", str(_MAIN), str(its.fileno()), str(host_pidfd)]
            nowhere = subprocess.DEVNULL  # a warden must not keep anybody's pipe open
            popen = subprocess.Popen(
                argv,
                stdin=nowhere,
                stdout=nowhere,
                stderr=nowhere,
                cwd="/",
                pass_fds=(its.fileno(), host_pidfd),
                start_new_session=True,
            )
            self._process = Child(popen)
            mine.settimeout(SEND_TIMEOUT_S)
            self._lifeline = mine
        except OSError as error:
            mine.close()
            raise StartError(f"the warden process could not be started with {sys.executable}: {error}") from error
        finally:
            its.close()
            os.close(host_pidfd)

    def _is_ready(self) -> bool:
        assert self._lifeline is not None
        self._lifeline.settimeout(START_TIMEOUT_S)
        try:
            return self._lifeline.recv(16) == b"ready"
        except OSError:  # it ended, or a time-out
            return False
        finally:
            self._lifeline.settimeout(SEND_TIMEOUT_S)

    def _send_watch(self, runner: _Watched, directory: str, mark: str) -> bool:
        return self._send(f"watch {runner.pid} {mark or '-'} {directory}".rstrip(" "), runner.pidfd)

    def _send(self, message: str, fd: int | None = None) -> bool:
        """Returns False when the warden does not take messages any more."""
        if self._lifeline is None:
            return False
        try:
            socket.send_fds(self._lifeline, [os.fsencode(message)], [] if fd is None else [fd])
        except OSError:  # it was killed, or is stopped and takes nothing
            return False
        return True

    def _stop(self, *, by_force: bool) -> None:
        """End the warden process, if there is one. It leaves by itself when its lifeline hangs up and it watches nothing.

        What still watches something, or may not have been told that it does not, kills on a hang-up: that one gets no chance to.
        """
        lifeline, self._lifeline = self._lifeline, None
        process, self._process = self._process, None
        if lifeline is None or process is None:
            return
        if by_force:
            process.signal_group(signal.SIGKILL)
            process.wait(EXIT_TIMEOUT_S)
        try:
            lifeline.shutdown(socket.SHUT_RDWR)  # reaches it even if a process forked in C holds a copy of the descriptor
        except OSError:
            pass  # it was killed
        lifeline.close()
        if not process.wait(EXIT_TIMEOUT_S):
            process.signal_group(signal.SIGKILL)
            process.wait(EXIT_TIMEOUT_S)
        process.reap()
        process.release()

    def _after_fork_in_child(self) -> None:
        """The plugins and the warden belong to the parent: drop the copies, tell nobody."""
        self._lock = threading.Lock()  # another thread may have held it
        self._plugins = {}
        lifeline, self._lifeline = self._lifeline, None
        process, self._process = self._process, None
        if lifeline is not None:
            lifeline.close()
        if process is not None:
            process.release()


warden = Warden()
"""The warden of this process."""

if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=warden._after_fork_in_child)
