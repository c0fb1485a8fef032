"""Descriptors of arrays that lie: each is refused, whatever field it is that differs from the truth."""

from __future__ import annotations

import gc
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
from tests.unit.test_leases import Keeper, KeeperPlugin
from tests.unit.two_ends import Called, two_ends
from tests.unit.wires import ANY, FLOATS, HOME, INLINE, LENT, Array, Wires

from fastplug import dtypes
from fastplug._wire import Codec, Decoder
from fastplug.errors import RemoteProtocolError
from fastplug.interfaces import interface_of
from fastplug.shm import _ndarray

PLACE = struct.Struct("<IIQ")


@pytest.fixture
def wires() -> Iterator[Wires]:
    made = Wires(*two_ends())
    yield made
    for end in made:
        end.close()


class Descriptor(NamedTuple):
    """docs/wire.md, section 4."""

    form: int = LENT
    kind: int = ord("f")
    itemsize: int = 8
    ndim: int = 1
    order: int = 0
    zero: int = 0
    shape: tuple[int, ...] = (1000,)
    strides: tuple[int, ...] = ()
    segment: int = 0
    slot: int = 0
    offset: int = 0
    text: str | None = None

    def packed(self) -> bytes:
        head = struct.pack("<BBBBBBH", 0x13, self.form, self.kind, self.itemsize, self.ndim, self.order, self.zero)
        if self.text is not None:
            head += struct.pack("<I", len(self.text)) + self.text.encode("latin-1")
        numbers = struct.pack(f"<{len(self.shape)}Q{len(self.strides)}q", *(n % 2**64 for n in self.shape), *self.strides)
        return head + numbers + PLACE.pack(self.segment, self.slot, self.offset)


SEGMENT_BYTES = 1 << 20
TOP = 2**63 - 1


def test_a_true_descriptor_is_read(wires: Wires) -> None:
    """So that the refusals below are about the one field that differs."""
    assert wires.decoded(Descriptor().packed()).shape == (1000,)
    assert wires.decoded(Descriptor(order=2, strides=(8,)).packed()).shape == (1000,)
    assert wires.decoded(Descriptor(order=2, strides=(-8,), offset=7992).packed()).shape == (1000,)
    assert wires.decoded(Descriptor(offset=SEGMENT_BYTES - 8000).packed()).shape == (1000,)
    assert wires.decoded(Descriptor(shape=(0,), offset=SEGMENT_BYTES).packed()).shape == (0,)


@pytest.mark.parametrize(
    "lie",
    [
        Descriptor(form=4),
        Descriptor(form=5),
        Descriptor(form=255),
        Descriptor(form=INLINE, order=2, strides=(8,)),
        Descriptor(kind=ord("O")),
        Descriptor(kind=ord("V")),
        Descriptor(kind=ord("U")),
        Descriptor(kind=0),
        Descriptor(kind=ord("i")),
        Descriptor(itemsize=0),
        Descriptor(itemsize=4),
        Descriptor(itemsize=255),
        Descriptor(ndim=0),
        Descriptor(ndim=2),
        Descriptor(ndim=65),
        Descriptor(ndim=255),
        Descriptor(order=3),
        Descriptor(order=255),
        Descriptor(order=2),
        Descriptor(zero=1),
        Descriptor(zero=256),
        Descriptor(shape=(-1,)),
        Descriptor(shape=(-(2**63),)),
        Descriptor(shape=(TOP,)),
        Descriptor(shape=(2**61,)),
        Descriptor(shape=(SEGMENT_BYTES // 8 + 1,)),
        Descriptor(ndim=2, shape=(2**32, 2**32)),
        Descriptor(ndim=3, shape=(2**22, 2**22, 2**22)),
        Descriptor(ndim=3, shape=(0, 2**62, 2**62)),
        Descriptor(ndim=2, shape=(TOP, 0)),
        Descriptor(order=2, strides=(9 * 1024,)),
        Descriptor(order=2, strides=(-8,)),
        Descriptor(order=2, strides=(TOP,)),
        Descriptor(order=2, strides=(-TOP,)),
        Descriptor(order=2, strides=(-TOP - 1,)),
        Descriptor(order=2, ndim=2, shape=(2, 2), strides=(TOP // 2, TOP // 2)),
        Descriptor(order=2, ndim=2, shape=(2, 2), strides=(-TOP // 2, -TOP // 2)),
        Descriptor(segment=1),
        Descriptor(segment=2**31),
        Descriptor(segment=2**32 - 1),
        Descriptor(slot=8192),
        Descriptor(slot=2**32 - 1),
        Descriptor(offset=SEGMENT_BYTES - 7999),
        Descriptor(offset=SEGMENT_BYTES + 1),
        Descriptor(offset=2**63),
        Descriptor(offset=2**64 - 1),
        Descriptor(offset=2**64 - 8000),
        Descriptor(shape=(0,), offset=SEGMENT_BYTES + 1),
        Descriptor(form=HOME),
        Descriptor(form=HOME, slot=5),
        Descriptor(form=HOME, slot=2**32 - 1),
    ],
    ids=lambda lie: ",".join(f"{name}={value}" for name, value in lie._asdict().items() if value != getattr(Descriptor(), name)),
)
@pytest.mark.parametrize("codec", [FLOATS, ANY], ids=["float64", "any"])
def test_a_field_that_lies(wires: Wires, lie: Descriptor, codec: Codec) -> None:
    if codec is ANY and lie in (Descriptor(kind=ord("i")), Descriptor(itemsize=4)):
        assert wires.decoded(lie.packed(), codec).shape == (1000,), "true where any dtype is declared"
        return
    with pytest.raises(RemoteProtocolError):
        wires.decoded(lie.packed(), codec)


WORDED = Descriptor(kind=ord("*"), itemsize=0)


@pytest.mark.parametrize("text", ["<M8[ns]", ">f8", "|V8", '{"itemsize":8,"fields":[["a","<U1",4]]}'])
def test_a_true_text_is_read(wires: Wires, text: str) -> None:
    got = wires.decoded(WORDED._replace(text=text).packed(), ANY)
    assert got.shape == (1000,)
    assert got.dtype == dtypes.built(dtypes.parsed(text))
    with pytest.raises(RemoteProtocolError, match="wanted float64"):
        wires.decoded(WORDED._replace(text=text).packed())


@pytest.mark.parametrize(
    "lie",
    [
        WORDED,
        WORDED._replace(text=""),
        WORDED._replace(text="float64"),
        WORDED._replace(text="object"),
        WORDED._replace(text="f8,O"),
        WORDED._replace(text="datetime64"),
        WORDED._replace(text="<M8[ns]", itemsize=8),
        WORDED._replace(text="|S0"),
        WORDED._replace(text="<M8[\xff]"),
        WORDED._replace(text="|V2147483647", shape=(2**40,)),
        WORDED._replace(text="|V2147483647", shape=(2**32, 2**32), ndim=2),
        WORDED._replace(text="|V1048577", shape=(1,)),
        WORDED._replace(text="|V1024", shape=(1025,)),
        WORDED._replace(text="StringDType"),
        WORDED._replace(text="StringDType", form=INLINE),
        WORDED._replace(text="{" * 100_000),
        WORDED._replace(text='{"itemsize":8,"fields":[["a","float64",8]]}'),
        WORDED._replace(text='{"itemsize":8,"fields":[["a","object",0]]}'),
        WORDED._replace(text='{"itemsize":3,"fields":[["a","float32",0]],"aligned":true}'),
        WORDED._replace(text='{"itemsize":9,"fields":[["a","float64",1]],"aligned":true}'),
        Descriptor(text="<M8[ns]"),
    ],
    ids=lambda lie: f"{lie.text}"[:40],
)
def test_a_text_that_lies(wires: Wires, lie: Descriptor) -> None:
    for codec in (FLOATS, ANY):
        with pytest.raises(RemoteProtocolError) as caught:
            wires.decoded(lie.packed(), codec)
        assert len(str(caught.value)) < 1000


def test_every_truncation(wires: Wires) -> None:
    for data in (Descriptor(order=2, strides=(8,)).packed(), WORDED._replace(text="|V8", order=2, strides=(8,)).packed()):
        wires.decoded(data, ANY)
        for end in range(len(data)):
            with pytest.raises(RemoteProtocolError):
                wires.decoded(data[:end], ANY)


@pytest.mark.parametrize("count", [0, 7999, 8001, 2**32, 2**63, 2**64 - 1])
def test_inline_with_another_size(wires: Wires, count: int) -> None:
    head = Descriptor(form=INLINE).packed()[: -PLACE.size]
    with pytest.raises(RemoteProtocolError):
        wires.decoded(head + struct.pack("<Q", count) + bytes(8000))


class Lent:
    """A block of the host that the plugin has, as a frame would name it on its way home."""

    def __init__(self, wires: Wires, array: Array, implementation: KeeperPlugin) -> None:
        self.wires = wires
        self.array = array
        self.implementation = implementation
        self.home = wires.home(implementation.kept[1])

    def decoded(self, **lie: int) -> Array:
        segment, slot, offset = PLACE.unpack(self.home[-PLACE.size :])
        place = {"segment": segment, "slot": slot, "offset": offset} | lie
        data = self.home[: -PLACE.size] + PLACE.pack(*place.values())
        got: Array = Decoder(self.wires.host.port).decode(FLOATS, data)
        return got


@pytest.fixture
def lent(wires: Wires) -> Iterator[Lent]:
    implementation = KeeperPlugin(wires.plugin)
    call = Called(wires.host, wires.plugin, interface_of(Keeper), implementation)
    blocks: list[Array] = [_ndarray.empty(wires.host.arena, 1000, np.float64) for _ in range(3)]
    for block in blocks:
        block[:] = 1
    call.keep(1, blocks[1])
    call.end()
    made = Lent(wires, blocks[1], implementation)
    blocks.clear()
    yield made
    implementation.kept.clear()
    vars(made).clear()


def test_home_is_the_owner_s_memory(lent: Lent) -> None:
    got = lent.decoded()
    assert np.shares_memory(got, lent.array)
    assert not got.flags.writeable
    assert _ndarray.readers_of(lent.array) == 2
    del got
    gc.collect()
    assert _ndarray.readers_of(lent.array) == 1


def test_home_that_lies(lent: Lent) -> None:
    _, slot, offset = PLACE.unpack(lent.home[-PLACE.size :])
    for lie in (
        {"segment": 1},
        {"slot": slot + 1},
        {"slot": 2**32 - 1},
        {"offset": offset - 8},
        {"offset": offset + 8192},
        {"offset": 0},
        {"offset": 2**64 - 1},
    ):
        with pytest.raises(RemoteProtocolError):
            lent.decoded(**lie)


def test_home_of_what_was_given_back(lent: Lent) -> None:
    lent.wires.host.ledger.close()
    with pytest.raises(RemoteProtocolError, match="no block is lent"):
        lent.decoded()
