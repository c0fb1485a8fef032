"""A process that somebody else started, known by its pid: waited for and signalled, never reaped (go-plugin: ReattachConfig)."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time

from fastplug.errors import ProcessNotFound
from fastplug.process.child import pidfd_of

__all__ = ["AttachedProcess"]

# Without pidfds the process is looked for, as often as go-plugin does it.
LOOK_INTERVAL_S = 1.0
# poll(2) takes at most 24 days; the loop around it goes on, so this bounds nothing but one system call.
LONGEST_POLL_S = 3600.0
# SIGKILL takes effect within milliseconds, unless the process sits in the kernel.
KILL_TIMEOUT_S = 5.0


class AttachedProcess:
    """The `AttachedRunner` for a process of this machine. Thread-safe.

    Its group and its children are not ours: signals go to the process alone, and never to this process itself (a plugin in test mode may
    be served by a thread of its host). Its exit code is known to its parent only, so ``returncode`` stays None.

    Args: ``borrowed``: it belongs to whoever started it (test mode); nothing is sent to it, and after `kill` it counts as ended.
    """

    def __init__(self, pid: int, *, name: str, borrowed: bool = False) -> None:
        self.name = name
        self.pid: int | None = pid
        self.pidfd: int | None = None
        self.returncode: int | None = None
        self._lock = threading.Lock()
        self._untouchable = borrowed or pid == os.getpid()
        self._given_up = threading.Event()
        self._closed = False

    @property
    def id(self) -> str:
        """Its pid."""
        return str(self.pid)

    def start(self) -> None:
        """Takes hold of the process. Raises: ProcessNotFound."""
        assert self.pid is not None
        self.pidfd = pidfd_of(self.pid)
        if not self._lives():
            self.close()
            raise ProcessNotFound(
                f"reattachment process not found: there is no process {self.pid}, so plugin {self.name!r} has ended. Start it again."
            )

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for its end, at most ``timeout_s`` seconds (None: for ever); returns whether it has ended, or was given up by `kill`."""
        until_s = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._given_up.is_set() and self._lives():
            left_s = LONGEST_POLL_S if until_s is None else until_s - time.monotonic()
            if left_s <= 0:
                return False
            self._sleep(min(left_s, LONGEST_POLL_S))
        return True

    def terminate(self) -> None:
        """SIGTERM to the process."""
        self._signal(signal.SIGTERM)

    def kill(self) -> bool:
        """SIGKILL to the process; returns whether it is gone, or counts as gone because it is not ours to end."""
        if self._untouchable:
            self._given_up.set()
            return True
        self._signal(signal.SIGKILL)
        return self.wait(KILL_TIMEOUT_S)

    def detach(self) -> None:
        """The process goes on, whatever comes; nothing is sent to it any more."""
        with self._lock:
            self._untouchable = True
        self._given_up.set()

    def diagnose(self) -> str:
        """What is known about the process."""
        return f"Process {self.pid} {'runs' if self._lives() else 'has ended'}; another process started it and knows how it ends."

    def close(self) -> None:
        """Lets go of the process, which goes on if it still runs. Idempotent."""
        with self._lock:
            self._closed = True
            self._given_up.set()
            if self.pidfd is not None:
                os.close(self.pidfd)
                self.pidfd = None

    def _signal(self, number: int) -> None:
        with self._lock:
            if self._untouchable or self._closed or self.pid is None:
                return
            try:
                if self.pidfd is not None and sys.platform == "linux":
                    signal.pidfd_send_signal(self.pidfd, number)  # cannot hit a stranger that got the number
                else:
                    os.kill(self.pid, number)
            except (ProcessLookupError, PermissionError):
                pass  # it has ended, or runs as another user now

    def _lives(self) -> bool:
        with self._lock:
            if self._closed:
                return False
            if self.pidfd is not None:
                poller = select.poll()
                poller.register(self.pidfd, select.POLLIN)
                return not poller.poll(0)
        assert self.pid is not None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # it lives, as another user
        return True

    def _sleep(self, left_s: float) -> None:
        """Until it has ended, or ``left_s`` seconds are over, or earlier."""
        with self._lock:
            pidfd = None if self.pidfd is None else os.dup(self.pidfd)  # close() may close ours while we poll
        if pidfd is None:
            self._given_up.wait(min(left_s, LOOK_INTERVAL_S))
            return
        try:
            poller = select.poll()
            poller.register(pidfd, select.POLLIN)
            poller.poll(min(left_s, LOOK_INTERVAL_S) * 1000)  # and not longer: kill() in test mode is no event of the process
        finally:
            os.close(pidfd)
