"""The warden: a small process that ends plugins whose host is gone. Run by path: ``python -I -S warden_main.py LIFELINE HOST``.

LIFELINE is a SOCK_SEQPACKET socket, the other end of which the host holds; HOST a pidfd of the host. Messages of the host:

    watch <pid> <mark> [<directory>]
                                a plugin and leader of its process group, with a pidfd of it (SCM_RIGHTS) unless none was to be had;
                                the mark is in the environment of all that it starts ("-" without one); its sockets are in the
                                directory, and go with it
    forget <pid>                the host has ended this one itself

The warden answers once, ``ready``. When HOST fires, or the lifeline hangs up, what is still watched is killed, with all that
belongs to it (see `family`). HOST is needed because a
forked child of the host keeps the lifeline open; the lifeline, because a host that replaces itself by execve keeps its pid.
"""

# pathlib, socket, signal or typing would double its start-up: 10 ms and 8 MB without them.
# ruff: noqa: PTH100, PTH106, PTH118, PTH120

from __future__ import annotations

import os
import select
import sys

TYPE_CHECKING = False  # as typing.TYPE_CHECKING
if TYPE_CHECKING:
    import signal
    import socket

    Watched = tuple[int | None, bytes, bytes]
    """A pidfd, the mark, the directory."""
else:
    import _signal as signal
    import _socket as socket

if TYPE_CHECKING or __name__ != "__main__":
    from fastplug.process.family import kill_family
else:  # by path, without the package, whose imports the warden has no use for; -I leaves even the script's own folder out
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from family import kill_family

    del sys.path[0]

__all__ = ["main"]

# "watch ", a pid of 20 digits at most, a mark, and a path (PATH_MAX)
MESSAGE_BYTES = 128 + 4096


def main(lifeline_fd: int, host_pidfd: int) -> None:
    """Watch until the host is gone or closes its end; then kill what it left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # what ends a host politely must not end its warden first
    lifeline = socket.socket(fileno=lifeline_fd)
    lifeline.send(b"ready")
    plugins: dict[int, Watched] = {}
    poller = select.poll()
    poller.register(lifeline_fd, select.POLLIN)
    poller.register(host_pidfd, select.POLLIN)
    connected = host_lives = True
    while connected and host_lives:
        ready = {fd for fd, _ in poller.poll()}
        host_lives = host_pidfd not in ready
        connected = read_messages(lifeline, plugins)  # also after the host's end: it may have registered one just before
    leaders = {pid for pid, (pidfd, _, _) in plugins.items() if pidfd is None or is_the_same(pid, pidfd)}
    kill_family(leaders, [mark for _, mark, _ in plugins.values() if mark != b"-"])
    for _, _, directory in plugins.values():
        if directory:
            remove(directory)


def read_messages(lifeline: socket.socket, plugins: dict[int, Watched]) -> bool:
    """Take in what the host has sent; returns whether it may send more."""
    while True:
        try:
            message, ancillary, _, _ = lifeline.recvmsg(MESSAGE_BYTES, socket.CMSG_SPACE(4), socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return True
        except OSError:  # ECONNRESET: the host ended with our answer unread
            return False
        if not message:
            return False
        word, pid, *more = message.split(b" ", 3)
        fds = [int.from_bytes(data[:4], sys.byteorder) for _, _, data in ancillary if len(data) >= 4]
        old = plugins.pop(int(pid), None)
        if old is not None and old[0] is not None:
            os.close(old[0])
        if word == b"watch":
            mark, directory = (more + [b"-", b""][len(more) :])[:2]
            plugins[int(pid)] = (fds[0] if fds else None, mark, directory)


def is_the_same(pid: int, pidfd: int) -> bool:
    """Whether ``pid`` still is the process of ``pidfd``, or the group that it led; not a stranger that got its number."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    if not poller.poll(0):
        return True  # it lives
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:  # noqa: PTH123
            stat = file.read(1024)
    except OSError:
        return True  # nobody has the number: a group of that number is its own
    return stat[stat.rfind(b")") + 1 :].split(None, 1)[0] in (b"Z", b"X")


def remove(directory: bytes) -> None:
    """What a killed plugin could not remove itself."""
    for folder, folders, files in os.walk(directory, topdown=False):
        for act, names in ((os.unlink, files), (os.rmdir, folders)):
            for name in names:
                try:
                    act(os.path.join(folder, name))
                except OSError:
                    pass  # somebody else was faster
    try:
        os.rmdir(directory)
    except OSError:
        pass  # it is gone already


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
