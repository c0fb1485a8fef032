"""Files under arrays: named only as long as a name leads to the very file, opened only if they are it."""

from __future__ import annotations

import gc
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.two_ends import two_ends
from tests.unit.wires import ANY, Array, Wires

from fastplug._wire import Decoder, Encoder
from fastplug.errors import RemoteProtocolError
from fastplug.shm import files
from fastplug.shm._ndarray import InlineArrays
from fastplug.shm._segment import Segment

N = 20_000
FILE = 4


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "data é.bin"
    np.arange(N, dtype=np.float64).tofile(made)
    return made


def over(path: Path, mode: Any = "r") -> Array:
    return np.memmap(path, np.float64, mode)


def ends(array: Array) -> tuple[Any, int, int]:
    start = array.__array_interface__["data"][0]
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base, start, start + array.nbytes


@pytest.fixture
def wires() -> Iterator[Wires]:
    host, plugin = two_ends()
    host.port.naming = files.Naming()
    plugin.port.opens_files = True
    yield Wires(host, plugin)
    for end in (host, plugin):
        if vars(end):
            end.close()


VIEWS: dict[str, Callable[[Array], Array]] = {
    "whole": lambda x: x,
    "reversed": lambda x: x[::-1],
    "steps": lambda x: x[5:-5:2],
    "transposed": lambda x: x.reshape(100, -1).T,
    "another dtype": lambda x: x.view("M8[s]"),
    "not aligned": lambda x: x[1:].view(np.uint8)[4:],
}


@pytest.mark.parametrize("mode", ["r", "r+"])
@pytest.mark.parametrize("name", VIEWS)
def test_a_view_of_a_file_is_that_file(wires: Wires, path: Path, mode: str, name: str) -> None:
    sent = VIEWS[name](over(path, mode))
    data = wires.encoded(sent, ANY)
    assert data[1] == FILE
    assert os.fsencode(path) in data
    got = wires.decoded(data, ANY)
    assert got.tobytes() == sent.tobytes()
    assert (got.dtype, got.strides) == (sent.dtype, sent.strides)
    assert not got.flags.writeable
    assert wires.host.port.copies == 0
    assert Decoder(wires.plugin.port).decode(ANY, data).tobytes() == sent.tobytes()


def test_the_file_is_read_and_not_a_copy(wires: Wires, path: Path) -> None:
    sent = over(path, "r+")
    got = wires.decoded(wires.encoded(sent, ANY), ANY)
    sent[17] = -1.0
    assert got[17] == -1.0


def test_one_mapping_for_all_pieces_and_none_when_they_are_gone(wires: Wires, path: Path) -> None:
    sent = over(path)
    frames = [wires.encoded(part, ANY) for part in (sent, sent[5000:])]
    wires.host.close()  # what it has named stays mapped here until the frame is consumed
    del sent
    one, other = (wires.decoded(frame, ANY) for frame in frames)
    assert np.shares_memory(one, other)
    count = str(path)
    assert count in Path("/proc/self/maps").read_text()
    del one, other
    gc.collect()
    assert count not in Path("/proc/self/maps").read_text()


# What is copied: the content of the memory, or its name, is not that of the file.
def replaced(path: Path) -> Array:
    array = over(path)
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.rename(path)
    return array


def deleted(path: Path) -> Array:
    array = over(path)
    path.unlink()
    return array


def anonymous(path: Path) -> Array:
    return np.frombuffer(mmap.mmap(-1, 8 * N), np.float64)


COPIED: dict[str, Callable[[Path], Array]] = {
    "copy on write": lambda path: over(path, "c"),
    "small": lambda path: over(path)[: files.FILE_BYTES // 8 - 1],
    "replaced": replaced,
    "deleted": deleted,
    "anonymous": anonymous,
    "its own": lambda path: np.array(over(path)),
}


@pytest.mark.parametrize("case", COPIED)
def test_what_is_copied(wires: Wires, path: Path, case: str) -> None:
    sent = COPIED[case](path)
    data = wires.encoded(sent, ANY)
    assert data[1] != FILE
    assert wires.decoded(data, ANY).tobytes() == sent.tobytes()


def test_a_name_is_asked_for_again_each_time(wires: Wires, path: Path) -> None:
    sent = over(path)
    assert wires.encoded(sent, ANY)[1] == FILE
    path.unlink()
    assert wires.encoded(sent, ANY)[1] != FILE


def test_a_shortened_file_is_not_named(path: Path) -> None:
    array = over(path)
    owner, low, high = ends(array)
    assert files.named(owner, low, high) is not None
    os.truncate(path, 8 * N - 1)
    assert files.named(owner, low, high) is None
    assert files.named(owner, low, high - 8) is not None


def test_only_who_may_names_and_opens(wires: Wires, path: Path) -> None:
    data = wires.encoded(over(path), ANY)
    wires.host.port.naming = None
    assert wires.encoded(over(path), ANY)[1] != FILE
    with pytest.raises(RemoteProtocolError, match="none may be named"):  # the plugin to the host
        Decoder(wires.host.port).decode(ANY, data)
    with pytest.raises(RemoteProtocolError, match="no shared memory"):
        Decoder(InlineArrays()).decode(ANY, data)
    assert Encoder(InlineArrays()).encode(ANY, over(path))[1] != FILE


def test_every_truncation_and_many_lies(wires: Wires, path: Path) -> None:
    data = wires.encoded(over(path), ANY)
    for end in range(len(data)):
        with pytest.raises(RemoteProtocolError):
            wires.decoded(data[:end], ANY)
    place = data.index(os.fsencode(path)) - 28
    for at, lie in ((0, 1), (8, 1), (16, 8), (16, 2**63), (16, 2**64 - 8), (24, 2**31)):
        changed = bytearray(data)
        changed[place + at : place + at + (4 if at == 24 else 8)] = lie.to_bytes(4 if at == 24 else 8, "little")
        with pytest.raises(RemoteProtocolError):
            wires.decoded(bytes(changed), ANY)
    changed = bytearray(data)
    changed[8:16] = (2**40).to_bytes(8, "little")  # the shape
    with pytest.raises(RemoteProtocolError, match="bytes up to"):
        wires.decoded(bytes(changed), ANY)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def swapped(path: Path) -> None:
    path.unlink()
    path.write_bytes(bytes(8 * N))


def shortened(path: Path) -> None:
    os.truncate(path, 100)


def forbidden(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("change", [Path.unlink, fifo, swapped, shortened, forbidden, lambda path: path.rename(path.with_name("x"))])
def test_what_changed_on_the_way_is_not_opened(wires: Wires, path: Path, change: Callable[[Path], Any]) -> None:
    keeper = path.open("rb")  # the inode's number is not given to a new file
    data = wires.encoded(over(path), ANY)
    gc.collect()
    change(path)
    with keeper, pytest.raises(RemoteProtocolError, match="the host names") as caught:
        wires.decoded(data, ANY)
    assert len(str(caught.value)) < 1000


class Asked:
    """What a plugin that cannot open a file asks, answered by the host's own hand."""

    def __init__(self, naming: files.Naming, part_bytes: int) -> None:
        self.naming, self.part_bytes = naming, part_bytes
        self.answers: list[bytes | None] = []

    def __call__(self, device: int, inode: int, start: int, end: int, why: Exception) -> Segment:
        found = Segment.private(end - start)
        for offset in range(start, end, self.part_bytes):
            data = self.naming.part(device, inode, offset, min(self.part_bytes, end - offset))
            self.answers.append(data)
            found.write(offset - start, data or b"")
        return found


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("change", [Path.unlink, swapped])
def test_what_cannot_be_opened_is_fetched(wires: Wires, path: Path, name: str, change: Callable[[Path], Any]) -> None:
    naming = wires.host.port.naming
    assert naming is not None
    wires.plugin.borrowed.fetch_file = Asked(naming, 50_000)
    sent = VIEWS[name](over(path))
    data = wires.encoded(sent, ANY)
    with path.open("rb"):  # the inode's number is not given to a new file
        change(path)
        got = wires.decoded(data, ANY)
    assert got.tobytes() == sent.tobytes()
    assert (got.dtype, got.strides) == (sent.dtype, sent.strides)
    assert not got.flags.writeable
    assert (wires.plugin.port.copies, wires.plugin.port.copied_bytes) == (1, sent.nbytes)


def test_only_what_was_named_is_given(wires: Wires, path: Path) -> None:
    naming = wires.host.port.naming
    assert naming is not None
    sent = over(path)
    data = wires.encoded(sent[1000:9500], ANY)
    status = path.stat()
    start = 8000
    assert data[1] == FILE
    assert naming.part(status.st_dev, status.st_ino, start, 68_000) == sent[1000:9500].tobytes()
    for device, inode, offset, count in (
        (status.st_dev, status.st_ino, start - 1, 10),
        (status.st_dev, status.st_ino, start, 68_001),
        (status.st_dev, status.st_ino + 1, start, 10),
        (status.st_dev + 1, status.st_ino, start, 10),
    ):
        assert naming.part(device, inode, offset, count) is None
    wires.host.close()  # nothing is under way any more
    assert naming.part(status.st_dev, status.st_ino, start, 10) is None


def test_a_file_shortened_meanwhile_ends_nobody(wires: Wires, path: Path) -> None:
    naming = wires.host.port.naming
    assert naming is not None
    asked = wires.plugin.borrowed.fetch_file = Asked(naming, 64 * 1024)
    data = wires.encoded(over(path), ANY)
    os.truncate(path, 0)
    wires.decoded(data, ANY)
    assert not any(asked.answers)


def test_a_refused_file_is_copied_and_after_many_every_one(wires: Wires, path: Path) -> None:
    naming = wires.host.port.naming
    assert naming is not None
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    naming.refuse(path.stat().st_dev, path.stat().st_ino)
    assert wires.encoded(over(path), ANY)[1] != FILE
    assert wires.encoded(over(other), ANY)[1] == FILE
    for number in range(files.REFUSED_MAX):
        naming.refuse(1, number)
    assert wires.encoded(over(other), ANY)[1] != FILE


def test_asking_for_one_mapping_finds_what_the_whole_map_says(path: Path) -> None:
    arrays = [over(path, "r"), over(path, "r+"), over(path, "c"), np.ones(N), anonymous(path)]
    for array in arrays:
        address = array.__array_interface__["data"][0]
        try:
            found = files.queried(address)
        except NotImplementedError:
            pytest.skip("this kernel cannot be asked for one mapping")
        assert found == files.read_in_maps(address)
    assert files.queried(arrays[0].__array_interface__["data"][0]) is not None
    assert files.queried(4096) is None  # nothing is mapped there


def test_a_place_is_the_same_for_processes_that_see_the_same_files() -> None:
    place = files.place()
    assert place == files.place()
    assert place is not None
    assert place["root"] == Path("/").stat().st_ino
