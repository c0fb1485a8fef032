"""The processes that belong to a plugin, found in /proc, and their end.

What belongs to it: its descendants, the groups and sessions that any of them leads, and whoever has its *mark* in its environment. A
descendant that made a session of its own and whose parent has ended is known by the mark alone (FASTPLUG_FAMILY, inherited like any
variable; a program that is meant to outlive the plugin is started without it).

Imports only what a bare interpreter has loaded anyway: the warden, which has to start fast and stay small, uses it too.
"""

# pathlib, typing, signal or collections would double the warden's start-up
# ruff: noqa: PTH123

from __future__ import annotations

import os
import time

TYPE_CHECKING = False  # as typing.TYPE_CHECKING
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Collection
else:
    import _signal as signal

__all__ = ["family", "kill_family", "marked", "processes"]

# A process may fork between the reading of /proc and the signal. What is stopped cannot fork, so a few rounds of
# "read, stop what is new" find everything; the limit is for a fork bomb, which loses what the last round found.
FREEZE_ROUNDS = 6
# In the middle of exec a process has no environment, and its parent goes on already: descriptors are closed before (Linux,
# begin_new_exec). It is looked at again, so often and after so long: a program on a slow disk may take some milliseconds.
EXEC_LOOKS = 10
EXEC_LOOK_S = 0.002


def processes() -> dict[int, tuple[int, int, int]]:
    """pid -> (parent, process group, session) of all living processes; empty where there is no /proc."""
    try:
        names = os.listdir("/proc")
    except OSError:
        return {}
    found = {}
    for name in names:
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb", buffering=0) as file:
                stat = file.read(1024)
        except OSError:  # it ended meanwhile
            continue
        # proc(5): pid (comm) state ppid pgrp session ...; comm may hold blanks and parentheses
        fields = stat[stat.rfind(b")") + 1 :].split(None, 4)
        if len(fields) > 3 and fields[0] not in (b"Z", b"X"):
            found[int(name)] = (int(fields[1]), int(fields[2]), int(fields[3]))
    return found


def family(leaders: set[int], living: dict[int, tuple[int, int, int]]) -> set[int]:
    """The living among ``leaders``, their descendants, and the groups and sessions that any of them leads."""
    kin = set(leaders)
    while True:
        more = {pid for pid, ties in living.items() if pid not in kin and not kin.isdisjoint(ties)}
        if not more:
            return kin & living.keys()
        kin |= more


def marked(marks: Collection[bytes]) -> set[int]:
    """The processes with one of ``marks`` in the environment they were started with, as far as this user may see it."""
    found: set[int] = set()
    names = [name for name in os.listdir("/proc") if name.isdigit()] if marks and os.path.isdir("/proc") else []  # noqa: PTH112
    for _ in range(EXEC_LOOKS):
        starting = []
        for name in names:
            environment = _environment(name)
            if any(mark in environment for mark in marks):
                found.add(int(name))
            elif not environment and (_in_exec(name) or _environment(name)):
                starting.append(name)
        if not starting:
            break
        names = starting
        time.sleep(EXEC_LOOK_S)
    return found


def _environment(name: str) -> bytes:
    try:
        with open(f"/proc/{name}/environ", "rb", buffering=0) as file:
            return file.read()
    except OSError:  # it ended meanwhile, or is another user's
        return b""


def _in_exec(name: str) -> bool:
    """Whether this process has a program, which a kernel thread has not, but no arguments yet, which is earlier than its environment."""
    try:
        with open(f"/proc/{name}/cmdline", "rb", buffering=0) as file:
            return not file.read(1) and bool(os.readlink(f"/proc/{name}/exe"))
    except OSError:
        return False


def kill_family(leaders: set[int], marks: Collection[bytes] = ()) -> None:
    """SIGKILL ``leaders`` and all that belong to them or bear one of ``marks``. Returns without waiting for their end.

    The caller guarantees that the numbers still are those of the processes it means (it holds them unreaped, or watches
    their pidfds). Never signals the calling process.
    """
    leaders = {pid for pid in leaders if pid > 1}  # kill(0), kill(-1) and pid 1 would hit the whole machine
    kin = set(leaders)
    stopped = {os.getpid()}
    for _ in range(FREEZE_ROUNDS if leaders or marks else 0):
        kin |= marked(marks)
        kin |= family(kin, processes())
        new = kin - stopped
        if not new:
            break
        _signal_each(os.kill, new, signal.SIGSTOP)
        stopped |= new
    _signal_each(os.killpg, leaders, signal.SIGKILL)
    _signal_each(os.kill, kin - {os.getpid()}, signal.SIGKILL)
    late = (family(kin, processes()) if kin else set()) | marked(marks)  # born between the last look and its parent's end
    _signal_each(os.kill, late - {os.getpid()}, signal.SIGKILL)


def _signal_each(send: Callable[[int, int], None], pids: set[int], number: int) -> None:
    for pid in pids:
        try:
            send(pid, number)
        except (ProcessLookupError, PermissionError):
            pass  # ended meanwhile; or it runs as another user now, and nothing can be done about it from here
