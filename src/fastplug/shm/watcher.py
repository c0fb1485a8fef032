"""One thread per process that notices: control sockets with something to read, processes that ended (their pidfds).

It starts with the first descriptor and ends with the last. Callbacks run on its thread, one after another; they must not block for long.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable
from typing import Protocol

__all__ = ["Watcher", "wake_until_awake", "watcher"]

_log = logging.getLogger("fastplug.watcher")

# remove() waits for a callback that is running: callbacks take milliseconds, unless the machine swaps.
CALLBACK_TIMEOUT_S = 5.0
# A waiter sets its flag and then sleeps, which is not atomic: one more wake-up each millisecond, until the flag is down.
WAKE_INTERVAL_S = 0.001
WAKE_TIMEOUT_S = 2.0


class _Sleeper(Protocol):
    def wake(self) -> bool: ...


def wake_until_awake(link: _Sleeper) -> None:
    """Wakes whoever sleeps on ``link`` until nobody does, at most 2 s."""
    until = time.monotonic() + WAKE_TIMEOUT_S
    while link.wake() and time.monotonic() < until:
        time.sleep(WAKE_INTERVAL_S)


class Watcher:
    """Calls back when a descriptor is readable or hung up. Thread-safe; one per process, see ``watcher()``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._thread: threading.Thread | None = None
        self._ending: threading.Thread | None = None  # the last one, on its way out
        self._epoll: select.epoll | None = None
        self._wake_fd = -1
        self._pid = os.getpid()
        self._rounds: list[threading.Event] = []

    def add(self, fd: int, callback: Callable[[], None]) -> None:
        """From now on ``callback()`` runs on the watcher's thread whenever ``fd`` is readable or hung up (level-triggered)."""
        with self._lock:
            self._callbacks[fd] = callback
            if self._epoll is None:
                self._epoll = select.epoll()
                self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
                self._epoll.register(self._wake_fd, select.EPOLLIN)
                self._thread = threading.Thread(target=self._run, args=(self._epoll, self._wake_fd), name="fastplug watcher", daemon=True)
                self._thread.start()
            self._epoll.register(fd, select.EPOLLIN)

    def remove(self, fd: int) -> None:
        """No callback for ``fd`` runs after this returns (unless it is called by one). The caller closes ``fd`` afterwards. Idempotent."""
        with self._lock:
            if self._callbacks.pop(fd, None) is None or self._epoll is None:
                return
            self._epoll.unregister(fd)
            thread, last = self._thread, not self._callbacks
            os.eventfd_write(self._wake_fd, 1)
            if last:
                self._epoll, self._thread, self._ending = None, None, thread
        if thread is threading.current_thread() or thread is None:
            return
        if last:
            thread.join(CALLBACK_TIMEOUT_S)
        else:
            self._wait_for_round()

    def settle(self) -> None:
        """Returns when a thread that ends has ended and closed its descriptors: a callback may itself have removed the last descriptor."""
        ending = self._ending
        if ending is not None and ending is not threading.current_thread():
            ending.join(CALLBACK_TIMEOUT_S)

    def _wait_for_round(self) -> None:
        """A callback that was already chosen may still be running: wait for the end of the thread's round."""
        done = threading.Event()
        with self._lock:
            if self._epoll is None:
                return
            self._rounds.append(done)
            os.eventfd_write(self._wake_fd, 1)
        done.wait(CALLBACK_TIMEOUT_S)

    def _run(self, epoll: select.epoll, wake_fd: int) -> None:
        try:
            while True:
                for fd, _ in epoll.poll():
                    if fd == wake_fd:
                        os.eventfd_read(wake_fd)
                    else:
                        self._call(fd)
                with self._lock:
                    rounds, self._rounds = self._rounds, []
                    for done in rounds:
                        done.set()
                    if self._epoll is not epoll:
                        return
        finally:
            epoll.close()
            os.close(wake_fd)

    def _call(self, fd: int) -> None:
        with self._lock:
            callback = self._callbacks.get(fd)
        if callback is None:
            return
        try:
            callback()
        except Exception:  # noqa: BLE001  whatever it is
            # A broken callback must not end the thread that tells others of their plugins' deaths; nor may it spin.
            _log.exception("a watcher callback failed; its descriptor is not watched any more")
            self.remove(fd)

    @property
    def watching(self) -> int:
        """How many descriptors are watched."""
        with self._lock:
            return len(self._callbacks)


_current = Watcher()


def watcher() -> Watcher:
    """The watcher of this process. A forked child has one of its own: the thread and the epoll set stay the parent's."""
    global _current
    if _current._pid != os.getpid():
        _current = Watcher()
    return _current
