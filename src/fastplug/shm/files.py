"""Arrays over mapped files (numpy.memmap, memory-mapped Arrow): named by their file instead of copied.

The host names, the plugin opens: docs/wire.md, "Arrays", form FILE. Both look at the same mount namespace and root as the same user, which
HELLO establishes (``place``). The host says of a file what its own process map says: device, inode and the offset; a file that has another
name by now, or none, is not named. The plugin opens it read-only, with its own rights, and checks that it is that file. When it cannot, it
asks for the bytes instead, and the host does not name that file to it again.
"""

from __future__ import annotations

import array
import errno
import fcntl
import mmap
import os
import stat
import struct
import weakref
from pathlib import Path
from typing import Any, NamedTuple

from fastplug.errors import RemoteProtocolError

__all__ = ["FILE_BYTES", "PATH_BYTES_MAX", "FileRange", "Naming", "Reading", "mapped", "named", "place", "queried", "read_in_maps"]

# Smaller arrays are copied: to open and map a file takes about as long as to copy so much.
FILE_BYTES = 64 * 1024
PATH_BYTES_MAX = 4096  # the kernel's PATH_MAX
# Before Linux 6.11 the whole process map is read to learn what lies under an address: up to a millisecond, the time of copying this.
READ_MAPS_BYTES = 8 << 20
# A plugin that could not open so many files will open no other one: they are all copied from then on.
REFUSED_MAX = 64


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
        known = _looked_up(low, high, read=isinstance(owner, mmap.mmap) or high - low >= READ_MAPS_BYTES)
        if known is not None and isinstance(owner, mmap.mmap):
            _found[owner] = known
    return known if known is not None and _is_still(known, high) else None


def _looked_up(low: int, high: int, *, read: bool) -> FileRange | None:
    try:
        found = queried(low)
    except NotImplementedError:
        found = read_in_maps(low) if read else None
    return found if found is not None and found.holds(low, high) and len(found.path) <= PATH_BYTES_MAX else None


# struct procmap_query of <linux/fs.h>: size, flags, address; the mapping's start, end, flags, page size, offset and inode; the device's
# major and minor number; room for the name and for the build id, and where they go.
_QUERY = struct.Struct("=9Q4I2Q")
_PROCMAP_QUERY = 3 << 30 | _QUERY.size << 16 | ord("f") << 8 | 17
_READABLE, _WRITABLE, _SHARED = 1, 2, 8


def queried(address: int) -> FileRange | None:
    """The mapping at an address, if what lies there is what is in a file: shared, or private and read-only. Asks the kernel for the one.

    Raises NotImplementedError: it cannot tell, being older than Linux 6.11, or in a sandbox.
    """
    name = array.array("B", bytes(PATH_BYTES_MAX + 1))
    asked = bytearray(_QUERY.pack(_QUERY.size, 0, address, 0, 0, 0, 0, 0, 0, 0, 0, len(name), 0, name.buffer_info()[0], 0))
    try:
        fd = os.open("/proc/self/maps", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.ioctl(fd, _PROCMAP_QUERY, asked)
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EACCES):
            raise NotImplementedError from error
        return None  # nothing is mapped there, or its name is too long
    finally:
        os.close(fd)
    _, _, _, start, end, flags, _, offset, inode, major, minor, name_bytes, _, _, _ = _QUERY.unpack(asked)
    path = name.tobytes()[: max(0, name_bytes - 1)]
    if not path.startswith(b"/") or not flags & _READABLE or not (flags & _SHARED or not flags & _WRITABLE):
        return None
    return FileRange(os.makedev(major, minor), inode, path, start, end - start, offset)


def read_in_maps(address: int) -> FileRange | None:
    """The same, from the text of /proc/self/maps."""
    try:
        lines = Path("/proc/self/maps").read_bytes().splitlines()
    except OSError:
        return None
    for line in lines:
        span, rights, offset, device, inode, *rest = line.split(None, 5)
        start, _, end = span.partition(b"-")
        if not int(start, 16) <= address < int(end, 16):
            continue
        path = rest[0] if rest else b""
        major, _, minor = device.partition(b":")
        nameable = path.startswith(b"/") and b"\\" not in path
        if not nameable or not (rights.startswith(b"r") and (rights.endswith(b"s") or b"w" not in rights)):
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


class Reading:
    """Bytes of a file that a frame under way names: its sender keeps them mapped until the frame is consumed."""

    __slots__ = ("__weakref__", "device", "inode", "offset", "owner", "view")

    def __init__(self, device: int, inode: int, offset: int, view: memoryview, owner: Any) -> None:
        self.device, self.inode, self.offset, self.view, self.owner = device, inode, offset, view, owner

    def part(self, offset: int, count: int) -> bytes:
        """A copy, made by the kernel: it answers EFAULT where reading a file that was shortened would end this process. Short then."""
        fd = os.memfd_create("fastplug-part", os.MFD_CLOEXEC)
        try:
            return os.pread(fd, os.write(fd, self.view[offset - self.offset :][:count]), 0)
        except OSError:
            return b""
        finally:
            os.close(fd)


class Naming:
    """What a host names to one plugin: which files not, because it could not open them, and what it may ask for instead."""

    def __init__(self) -> None:
        self._refused: set[tuple[int, int]] = set()
        self._readings: weakref.WeakSet[Reading] = weakref.WeakSet()

    def named(self, owner: Any, low: int, high: int) -> FileRange | None:
        """As ``named`` of the module, but for files that the plugin cannot open."""
        if len(self._refused) >= REFUSED_MAX:
            return None
        found = named(owner, low, high)
        return found if found is not None and (found.device, found.inode) not in self._refused else None

    def reading(self, found: FileRange, offset: int, view: memoryview, owner: Any) -> Reading:
        """Of ``view``, which begins at ``offset`` of the file: to be kept until the frame that names it is consumed."""
        made = Reading(found.device, found.inode, offset, view, owner)
        self._readings.add(made)
        return made

    def part(self, device: int, inode: int, offset: int, count: int) -> bytes | None:
        """Bytes of what a frame under way names; None: it names none such."""
        for one in list(self._readings):
            if (one.device, one.inode) == (device, inode) and one.offset <= offset and offset + count <= one.offset + len(one.view):
                return one.part(offset, count)
        return None

    def refuse(self, device: int, inode: int) -> None:
        """The plugin cannot open this file: it is copied from now on."""
        if len(self._refused) < REFUSED_MAX:
            self._refused.add((device, inode))


# Mappings that some array uses: a file that is sent in many pieces is mapped once. A mapping keeps its inode: nothing else gets the number.
_mapped: weakref.WeakValueDictionary[tuple[int, int], mmap.mmap] = weakref.WeakValueDictionary()


def mapped(device: int, inode: int, path: bytes, end: int) -> mmap.mmap:
    """A file that the host names, mapped read-only and at least ``end`` bytes long.

    Raises RemoteProtocolError: it cannot be opened here, is not that file, no regular file, or too short (by now: files come and go, so
    this says nothing of the host). A file that is shortened later ends whoever reads behind its end with SIGBUS, as with every mapped file.
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
