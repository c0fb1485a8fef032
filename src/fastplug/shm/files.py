"""Arrays over mapped files (numpy.memmap, memory-mapped Arrow): named by their file instead of copied.

The host names, the plugin opens: docs/wire.md, "Arrays", form FILE. Both look at the same mount namespace and root as the same user, which
HELLO establishes (``place``). The host says of a file what its own process map says: device, inode and the offset; a file that has another
name by now, or none, is not named. The plugin opens it read-only, with its own rights, and checks that it is that file.
"""

from __future__ import annotations

import mmap
import os
import stat
import weakref
from pathlib import Path
from typing import Any, NamedTuple

from fastplug.errors import RemoteProtocolError

__all__ = ["FILE_BYTES", "PATH_BYTES_MAX", "FileRange", "mapped", "named", "place"]

# Smaller arrays are copied: to open and map a file takes about as long as to copy so much.
FILE_BYTES = 64 * 1024
PATH_BYTES_MAX = 4096  # the kernel's PATH_MAX


class FileRange(NamedTuple):
    """Bytes of a file: ``offset`` is where the byte at ``address`` of this process lies in it."""

    device: int
    inode: int
    path: bytes
    address: int
    bytes: int
    offset: int

    def holds(self, low: int, high: int) -> bool:
        """Whether the addresses [low, high) lie in it."""
        return self.address <= low and high <= self.address + self.bytes


def place() -> dict[str, int] | None:
    """What two processes must have in common so that a path means the same file to both, and may be read by both; None where /proc is
    missing, and in a program that runs with more rights than its user has (a path that such a one opens is a question of rights)."""
    if os.geteuid() != os.getuid() or os.getegid() != os.getgid():
        return None
    try:
        root, mounts = Path("/").stat(), Path("/proc/self/ns/mnt").stat()
    except OSError:
        return None
    return {"uid": os.getuid(), "gid": os.getgid(), "root_device": root.st_dev, "root": root.st_ino, "mounts": mounts.st_ino}


# What was found for a mapping, as long as that lives. A mapping with an array over it can be neither moved nor resized.
_found: weakref.WeakKeyDictionary[Any, FileRange | None] = weakref.WeakKeyDictionary()


def named(owner: Any, low: int, high: int) -> FileRange | None:
    """The file under the addresses [low, high), which ``owner`` keeps mapped; None: there is none, or none that can be named."""
    known = _found.get(owner) if isinstance(owner, mmap.mmap) else None
    if known is None or not known.holds(low, high):
        known = _in_maps(low, high)
        if known is not None and isinstance(owner, mmap.mmap):
            _found[owner] = known
    return known if known is not None and _is_still(known, high) else None


def _in_maps(low: int, high: int) -> FileRange | None:
    """The one line of /proc/self/maps that holds the range, if what lies there is what is in the file: shared, or private and read-only."""
    try:
        lines = Path("/proc/self/maps").read_bytes().splitlines()
    except OSError:
        return None
    for line in lines:
        span, rights, offset, device, inode, *rest = line.split(None, 5)
        start, _, end = span.partition(b"-")
        if not int(start, 16) <= low < int(end, 16):
            continue
        path = rest[0] if rest else b""
        major, _, minor = device.partition(b":")
        nameable = path.startswith(b"/") and b"\\" not in path and len(path) <= PATH_BYTES_MAX
        if high > int(end, 16) or not nameable or not (rights.startswith(b"r") and (rights.endswith(b"s") or b"w" not in rights)):
            return None
        number = os.makedev(int(major, 16), int(minor, 16))
        return FileRange(number, int(inode), path, int(start, 16), int(end, 16) - int(start, 16), int(offset, 16))
    return None


def _is_still(known: FileRange, high: int) -> bool:
    """Its name leads to it, and it is long enough: a deleted, replaced or shortened file is not named."""
    try:
        found = Path(os.fsdecode(known.path)).lstat()
    except OSError:
        return False
    end = known.offset + high - known.address
    return stat.S_ISREG(found.st_mode) and (found.st_dev, found.st_ino) == (known.device, known.inode) and found.st_size >= end


# Mappings that some array uses: a file that is sent in many pieces is mapped once. A mapping keeps its inode: nothing else gets the number.
_mapped: weakref.WeakValueDictionary[tuple[int, int], mmap.mmap] = weakref.WeakValueDictionary()


def mapped(device: int, inode: int, path: bytes, end: int) -> mmap.mmap:
    """A file that the host names, mapped read-only and at least ``end`` bytes long.

    Raises RemoteProtocolError: it cannot be opened here, is not that file, no regular file, or too short. A file that is shortened later
    ends whoever reads behind its end with SIGBUS, as with every mapped file.
    """
    known = _mapped.get((device, inode))
    if known is not None and len(known) >= end:
        return known
    shown = os.fsdecode(path[:200])
    try:
        # Not blocking: a path may have become a FIFO meanwhile.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        raise RemoteProtocolError(f"the host names the file {shown!r}, which cannot be opened here: {error}") from error
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or (found.st_dev, found.st_ino) != (device, inode):
            raise RemoteProtocolError(f"the host names the file {shown!r}, which is another one here")
        if found.st_size < end:
            raise RemoteProtocolError(f"the host names bytes up to {end} of the file {shown!r}, which has {found.st_size}")
        made = mmap.mmap(fd, found.st_size, mmap.MAP_SHARED, mmap.PROT_READ)
    except (OSError, ValueError, OverflowError) as error:
        raise RemoteProtocolError(f"the file {shown!r} cannot be mapped: {error}") from error
    finally:
        os.close(fd)
    _mapped[device, inode] = made
    return made
