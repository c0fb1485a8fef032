"""A child process held by its pidfd: wait with a bound, read its exit status without giving its number away, reap it."""

from __future__ import annotations

import errno
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Collection

from fastplug.errors import Closed
from fastplug.process.family import kill_family

__all__ = ["Child", "pidfd_of"]

# Without pidfds (macOS, Linux before 5.3, some sandboxes) an end is noticed by looking. 100 times a second costs < 0.1 % CPU.
POLL_INTERVAL_S = 0.01

# poll(2) takes at most 24 days; the loop around it goes on, so this bounds nothing but one system call.
LONGEST_POLL_S = 3600.0

_NO_DESCRIPTOR_LEFT = frozenset({errno.EMFILE, errno.ENFILE})


def pidfd_of(pid: int) -> int | None:
    """A pidfd (CLOEXEC, the caller's to close), or None where the system has none."""
    if sys.platform != "linux":
        return None
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno in _NO_DESCRIPTOR_LEFT:
            raise
        return None  # ENOSYS, EPERM: an old kernel, a sandbox; ESRCH: the host ignores SIGCHLD and it has ended already


class Child:
    """A process that ``popen`` has just started and that nobody else waits for. Thread-safe.

    The process is not reaped when it ends but in `reap`: until then the kernel keeps its number, so its group can be
    signalled without hitting a stranger. In a forked copy of the parent every operation but `release` does nothing.
    """

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self.pid = popen.pid
        self.pidfd: int | None = None
        self.returncode: int | None = None
        self.exited = False
        self._reaped = False
        self._owner_pid = os.getpid()
        self._lock = threading.Lock()
        try:
            self.pidfd = pidfd_of(popen.pid)
        except OSError:
            popen.kill()
            popen.wait()
            raise
        popen.returncode = 0  # from here on the process is ours: keeps Popen from waiting, and from warning in forked copies

    @property
    def owned(self) -> bool:
        """Whether this is the process that started it, and not a forked copy."""
        return os.getpid() == self._owner_pid

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for its end, at most ``timeout_s`` seconds (None: for ever); returns whether it has ended.

        Raises: Closed in a forked copy of the parent, which cannot wait for its sibling.
        """
        if not self.owned:
            raise Closed(
                f"process {self.pid} was started by process {self._owner_pid}; process {os.getpid()} is a fork of it and cannot wait"
            )
        until_s = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._look():
            left_s = LONGEST_POLL_S if until_s is None else until_s - time.monotonic()
            if left_s <= 0:
                return False
            self._sleep(min(left_s, LONGEST_POLL_S))
        return True

    def signal_group(self, number: int) -> None:
        """Send a signal to its process group, unless it is reaped."""
        if not self.owned:
            return
        with self._lock:
            self._look_locked()
            if not self._reaped:
                try:
                    os.killpg(self.pid, number)
                except (ProcessLookupError, PermissionError):
                    pass  # everybody in it has ended, or runs as another user

    def kill_family(self, marks: Collection[bytes] = ()) -> None:
        """SIGKILL it, its group, its descendants, their sessions and whoever bears a mark, unless it is reaped. Returns at once."""
        if not self.owned:
            return
        with self._lock:
            self._look_locked()
            if not self._reaped:
                kill_family({self.pid}, marks)

    def reap(self) -> None:
        """Give its number back to the kernel if it has ended. Afterwards it is not signalled any more."""
        if not self.owned:
            return
        with self._lock:
            if not self._look_locked() or self._reaped:
                return
            self._reaped = True
            try:
                os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                pass  # somebody in this process waits for every child and was faster

    def release(self) -> None:
        """Close the pidfd. The last call."""
        if not self.owned:
            self._lock = threading.Lock()  # another thread may have held it when the parent forked
        with self._lock:
            if self.pidfd is not None:
                os.close(self.pidfd)
                self.pidfd = None

    def _look(self) -> bool:
        with self._lock:
            return self._look_locked()

    def _look_locked(self) -> bool:
        if self.exited:
            return True
        try:
            if sys.platform == "linux":
                kind, number = (os.P_PID, self.pid) if self.pidfd is None else (os.P_PIDFD, self.pidfd)
                status = os.waitid(kind, number, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if status is None:
                    return False
                self.returncode = status.si_status if status.si_code == os.CLD_EXITED else -status.si_status
            else:  # looking is reaping where waitid is missing (macOS before Python 3.13)
                pid, encoded = os.waitpid(self.pid, os.WNOHANG)
                if pid == 0:
                    return False
                self._reaped = True
                self.returncode = os.waitstatus_to_exitcode(encoded)
        except ChildProcessError:
            self._reaped = True  # the host ignores SIGCHLD, or somebody in it waits for every child: the exit status is lost
        self.exited = True
        return True

    def _sleep(self, left_s: float) -> None:
        """Until it has ended, or ``left_s`` seconds are over, or earlier."""
        with self._lock:
            pidfd = None if self.pidfd is None else os.dup(self.pidfd)  # release() may close ours while we poll
        if pidfd is None:
            time.sleep(min(left_s, POLL_INTERVAL_S))
            return
        try:
            poller = select.poll()
            poller.register(pidfd, select.POLLIN)
            poller.poll(left_s * 1000)
        finally:
            os.close(pidfd)
