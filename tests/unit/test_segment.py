from __future__ import annotations

import errno
import fcntl
import gc
import mmap
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.two_ends import attached

from fastplug.errors import ArenaExhausted, RemoteProtocolError
from fastplug.shm import _segment
from fastplug.shm._segment import PAGE_BYTES, SEALS, Segment

BYTES = 4 * PAGE_BYTES
F_SEAL_EXEC = 0x20
SOURCES = Path(__file__).parents[2] / "src"


@pytest.fixture(autouse=True)
def _none_left() -> Iterator[None]:
    gc.collect()
    before = _segment.live()
    yield
    gc.collect()
    assert _segment.live() == before


def memfd(size: int = BYTES, *, seals: int = SEALS, allocate: bool = True) -> int:
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    if allocate:
        os.posix_fallocate(fd, 0, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def refused(fd: int, size: int, why: str) -> None:
    with pytest.raises(RemoteProtocolError, match=why):
        Segment.attach(fd, size)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_made_here_and_attached_there() -> None:
    mine = Segment.create(BYTES - 1)
    assert (mine.bytes, mine.writable) == (BYTES, True)
    theirs = attached(mine)
    assert not theirs.writable
    mine.write(100, b"seen")
    assert theirs.read(100, 4) == b"seen"
    assert mine.address != theirs.address
    assert _segment.live() >= 2


def test_a_peer_can_neither_write_nor_resize() -> None:
    mine = Segment.create(BYTES)
    theirs = attached(mine)
    with pytest.raises(ValueError, match="not ours"):
        theirs.write(0, b"x")
    with pytest.raises(PermissionError):
        mmap.mmap(theirs.fd, BYTES)
    for size in (0, 2 * BYTES):
        with pytest.raises(PermissionError):
            os.ftruncate(theirs.fd, size)
    with pytest.raises(PermissionError):
        os.pwrite(theirs.fd, b"x", 0)
    with pytest.raises(PermissionError):
        fcntl.fcntl(theirs.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def test_descriptors_do_not_survive_exec() -> None:
    mine = Segment.create(BYTES)
    assert fcntl.fcntl(mine.fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC


@pytest.mark.parametrize("missing", [fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW, 0x10, fcntl.F_SEAL_SEAL, SEALS])
def test_without_a_seal(missing: int) -> None:
    refused(memfd(seals=SEALS & ~missing), BYTES, "not sealed")


def test_seals_of_newer_kernels_do_not_matter() -> None:
    fd = memfd(seals=0)
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, F_SEAL_EXEC)
    except OSError as error:
        os.close(fd)
        if error.errno != errno.EINVAL:
            raise
        pytest.skip("this kernel has no F_SEAL_EXEC")
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    assert Segment.attach(fd, BYTES).bytes == BYTES


@pytest.mark.parametrize("announced", [0, -1, 1, BYTES - PAGE_BYTES, BYTES + PAGE_BYTES, BYTES - 1, 1 << 41, 1 << 70])
def test_another_size_than_announced(announced: int) -> None:
    refused(memfd(), announced, "announced")


def test_a_size_that_is_no_multiple_of_a_page() -> None:
    refused(memfd(BYTES + 1), BYTES + 1, "announced")


def test_sparse() -> None:
    refused(memfd(allocate=False), BYTES, "sparse")


def test_one_page_missing() -> None:
    fd = memfd(seals=0)
    os.ftruncate(fd, BYTES - PAGE_BYTES)
    os.ftruncate(fd, BYTES)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    refused(fd, BYTES, "sparse")


def test_no_memfd() -> None:
    with tempfile.TemporaryFile() as file:
        file.truncate(BYTES)
        refused(os.dup(file.fileno()), BYTES, "no memfd|not sealed")
    reader, writer = os.pipe()
    os.close(writer)
    refused(reader, BYTES, "no memfd")


def test_a_closed_descriptor() -> None:
    fd = memfd()
    os.close(fd)
    with pytest.raises(RemoteProtocolError, match="no memfd"):
        Segment.attach(fd, BYTES)


@pytest.mark.parametrize("size", [0, -1, (1 << 40) + 1])
def test_sizes_that_cannot_be(size: int) -> None:
    with pytest.raises(ValueError, match="cannot be made"):
        Segment.create(size)


@pytest.mark.parametrize(("offset", "count"), [(0, BYTES + 1), (BYTES, 1), (-1, 1), (BYTES + 1, 0), (0, -1), (1 << 63, 1)])
def test_outside(offset: int, count: int) -> None:
    mine = Segment.create(BYTES)
    with pytest.raises(ValueError, match="outside"):
        mine.read(offset, count)


def test_writing_outside() -> None:
    mine = Segment.create(BYTES)
    with pytest.raises(ValueError, match="outside"):
        mine.write(BYTES - 1, b"xx")
    mine.write(BYTES - 1, b"x")
    mine.write(BYTES, b"")


def test_is_made_by_its_two_ways_only() -> None:
    with pytest.raises(TypeError, match="create"):
        Segment()


def test_no_descriptor_left_is_an_error_of_memory() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        with pytest.raises(ArenaExhausted, match="RLIMIT_NOFILE") as failed:
            Segment.create(BYTES)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert isinstance(failed.value.__cause__, OSError)
    assert failed.value.__cause__.errno == errno.EMFILE


def test_no_address_space_left_is_an_error_of_memory() -> None:
    """In a process of its own: the limit would hold for pytest, too."""
    program = (
        "import resource\n"
        "from fastplug.errors import ArenaExhausted\n"
        "from fastplug.shm._segment import Segment, live\n"
        "small = Segment.create(4096)\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (8 << 20),) * 2)\n"
        "try:\n    Segment.create(32 << 20)\nexcept ArenaExhausted as error:\n    print(live(), 'mmap' in str(error))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": str(SOURCES)}, capture_output=True, text=True)
    assert done.stdout == "1 True\n", done.stderr


def test_signals_while_memory_is_allocated() -> None:
    """fallocate ends with EINTR at every signal; a handler that raises ends it for good."""
    calls = []
    before = signal.signal(signal.SIGALRM, lambda *_: calls.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
    try:
        made = Segment.create(64 << 20)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert calls
    assert os.fstat(made.fd).st_blocks * 512 == 64 << 20
