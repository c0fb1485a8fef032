"""Arrays through two ports: every dtype, form and layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit import some_arrays
from tests.unit.two_ends import two_ends
from tests.unit.wires import ANY, HOME, INLINE, Array, Wires

from fastplug import dtypes
from fastplug._wire import Decoder, Encoder, compile_node
from fastplug.annotation import Kind, TypeNode, resolve
from fastplug.errors import ArgumentError, CopyRequired, RemoteProtocolError
from fastplug.shm import _ndarray
from fastplug.shm._ndarray import InlineArrays
from fastplug.shm._ndarray_dtype import CACHED_MAX

DTYPES = ["?", "b", "h", "i", "q", "B", "H", "I", "Q", "e", "f", "d", "g", "F", "D", "G"]


@pytest.fixture
def wires() -> Iterator[Wires]:
    made = Wires(*two_ends())
    yield made
    for end in made:
        end.close()


def both_ways(array: Array) -> None:
    wires = Wires(*two_ends())
    data = wires.encoded(array, ANY)
    got = wires.decoded(data, ANY)
    assert got.dtype == array.dtype
    assert got.shape == array.shape
    assert got.tobytes() == array.tobytes()
    assert not got.flags.writeable
    assert got.flags.aligned
    assert (data[1] == INLINE) == (array.nbytes < _ndarray.INLINE_BYTES)
    if array.flags.f_contiguous and not array.flags.c_contiguous:
        assert got.flags.f_contiguous


@pytest.mark.parametrize("code", DTYPES)
@pytest.mark.parametrize("size", [0, 1, 5, 5000])
def test_dtypes(code: str, size: int) -> None:
    both_ways((np.arange(size) % 100).astype(code))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,) * 32, (40, 50), (2, 3, 400), (1000,)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_shapes(shape: tuple[int, ...], order: Any) -> None:
    both_ways(np.asarray(np.arange(np.prod(shape, dtype=int), dtype=np.float64).reshape(shape), order=order))


@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=4),
    st.lists(st.sampled_from([1, -1, 2, -3, 5]), min_size=4, max_size=4),
    st.booleans(),
)
def test_views(shape: list[int], steps: list[int], shared: bool) -> None:
    """Of ordinary arrays: copied. Of arrays in shared memory: by reference, strides and all."""
    wires = Wires(*two_ends())
    whole = np.arange(4096.0).reshape(8, 8, 8, 8)
    base: Array = _ndarray.empty(wires.host.arena, whole.shape, np.float64) if shared else np.empty(whole.shape)
    base[...] = whole
    view = base.transpose(3, 1, 0, 2)[tuple(slice(None, None, step) for step in steps)][tuple(slice(0, n) for n in shape)]
    before = wires.host.port.copies
    data = wires.encoded(view)
    got = wires.decoded(data)
    assert np.array_equal(got, view)
    assert wires.host.port.copies == before + (not shared or view.nbytes < _ndarray.INLINE_BYTES)
    if shared and view.nbytes >= _ndarray.INLINE_BYTES:
        assert got.strides == view.strides


def test_a_broadcast_array_travels_as_it_is(wires: Wires) -> None:
    row: Array = _ndarray.empty(wires.host.arena, 200, np.float64)
    row[:] = np.arange(200)
    got = wires.decoded(wires.encoded(np.broadcast_to(row, (10**6, 200))))
    assert got.shape == (10**6, 200)
    assert got.strides == (0, 8)
    assert np.array_equal(got[-1], row)


def test_a_block_comes_home_as_the_same_memory(wires: Wires) -> None:
    mine: Array = _ndarray.empty(wires.host.arena, (50, 50), np.float64)
    mine[...] = 7
    theirs = wires.decoded(wires.encoded(mine))
    data = wires.home(theirs[::2, 5:])
    assert data[1] == HOME


class Refused(NamedTuple):
    value: Any
    why: str


@pytest.mark.parametrize(
    "refused",
    [
        Refused([1.0, 2.0], "list"),
        Refused(None, "None"),
        Refused(memoryview(b"12345678"), "memoryview"),
        Refused(np.array([object()]), "Python objects"),
        Refused(np.array(["text"]), r"numpy.ndarray\[<U4\]"),
        Refused(np.array([1], "M8[s]"), r"datetime64\[s\]"),
        Refused(np.zeros(3, [("a", "f8")]), r"\{a: float64 @0; 8 bytes\}"),
        Refused(np.zeros(3, [(("title", "a"), "f8")]), "titles do not travel"),
        Refused(np.zeros(3, ">f8"), "foreign byte order"),
        Refused(np.ma.masked_array([1.0], [True]), "mask would be lost"),
        Refused(np.zeros(3, "f4"), "nothing is cast"),
        Refused(np.float64(3), "float64"),
    ],
    ids=lambda refused: refused.why,
)
def test_what_does_not_travel(wires: Wires, refused: Refused) -> None:
    with pytest.raises(ArgumentError, match=refused.why):
        wires.encoded(refused.value)


@pytest.mark.parametrize(
    "refused",
    [
        Refused(np.array([object()]), "Python objects"),
        Refused(np.zeros(3, [("a", "f8"), ("b", "O")]), "Python objects"),
        Refused(np.zeros(3, [(("title", "a"), "f8")]), "titles do not travel"),
        Refused(np.zeros(3, []), "no bytes"),
        Refused(np.ma.masked_array([1.0], [True]), "mask would be lost"),
    ],
    ids=lambda refused: refused.why,
)
def test_what_does_not_travel_where_any_dtype_is_declared(wires: Wires, refused: Refused) -> None:
    with pytest.raises(ArgumentError, match=refused.why):
        wires.encoded(refused.value, ANY)


@given(some_arrays.arrays(), st.booleans())
def test_every_dtype_in_every_layout(array: Array, shared: bool) -> None:
    """By reference, by copy, inline; where any dtype is declared, and where this one is."""
    wires = Wires(*two_ends())
    if shared:
        born: Array = _ndarray.empty(wires.host.arena, array.shape, array.dtype)
        born[...] = array
        array = born[::-1] if born.ndim else born
    exact = compile_node(TypeNode(Kind.ARRAY, dtype=dtypes.text_of(dtypes.describe(array.dtype))))
    for codec in (ANY, exact):
        copies = wires.host.port.copies
        data = wires.encoded(array, codec)
        got = wires.decoded(data, codec)
        assert some_arrays.same_items(got, array)
        assert type(got) is np.ndarray
        assert not got.flags.writeable
        by_reference = shared and array.nbytes >= _ndarray.INLINE_BYTES
        assert wires.host.port.copies == copies + (not by_reference)
        if by_reference:
            assert got.strides == array.strides
        inline = Encoder(InlineArrays()).encode(codec, array)
        assert some_arrays.same_items(Decoder(InlineArrays()).decode(codec, inline), array)
        decoder = Decoder(wires.plugin.port)
        assert decoder.decode(OF_A_STRUCT, b"\x12\x02\0\0\0" + b"\x00" + data) == Known()  # passed over, and given back
    wires.host.close()
    wires.plugin.close()


@dataclasses.dataclass
class Known:
    """What an older peer knows of a newer one's struct."""

    nothing: None = None


OF_A_STRUCT = compile_node(resolve(Known, where="test"))


@pytest.mark.parametrize(
    ("family", "fits", "others"),
    [
        ("datetime64", "M8[25s]", ["m8[s]", "i8", "U3"]),
        ("timedelta64", ">m8", ["M8", "f8"]),
        ("str", "U7", ["S7", "V7"]),
        ("bytes", "S7", ["U7", "V7", "u1"]),
        ("void", [("a", "f8")], ["S8", "u1"]),
        ("void", "V9", ["S9", "f8"]),
    ],
)
def test_a_family_is_any_of_its_kind_and_no_other(wires: Wires, family: str, fits: Any, others: list[str]) -> None:
    codec = compile_node(TypeNode(Kind.ARRAY, dtype=family))
    array = np.zeros(5, fits)
    assert wires.decoded(wires.encoded(array, codec), codec).dtype == array.dtype
    for other in others:
        with pytest.raises(ArgumentError, match="nothing is cast"):
            wires.encoded(np.zeros(5, other), codec)
        with pytest.raises(RemoteProtocolError, match=f"wanted {family}"):
            wires.decoded(wires.encoded(np.zeros(5, other), ANY), codec)


def test_a_dtype_spelt_in_two_ways_is_one(wires: Wires) -> None:
    """Alignment, records and metadata change no byte; the receiver has the dtype that it declared."""
    aligned = np.dtype([("a", "i1"), ("b", "f8")], align=True)
    packed = np.dtype({"names": ["a", "b"], "formats": ["i1", "f8"], "offsets": [0, 8], "itemsize": 16})
    codecs = [compile_node(TypeNode(Kind.ARRAY, dtype=dtypes.text_of(dtypes.describe(dtype)))) for dtype in (aligned, packed)]
    told = np.dtype(aligned, metadata={"of": "no matter"})
    for array in (np.ones(200, aligned), np.ones(200, packed), np.ones(200, told), np.ones(200, aligned).view(np.recarray)):
        for one in codecs:
            for other in codecs:
                got = wires.decoded(wires.encoded(array, one), other)
                assert some_arrays.same_items(got, np.ones(200, packed))
                assert got.dtype.isalignedstruct == (other is codecs[0])


def test_many_dtypes_do_not_fill_memory(wires: Wires) -> None:
    """Texts are kept translated, so many of them."""
    for i in range(2 * CACHED_MAX + 5):
        dtype = np.dtype([(f"field {i}", "f8")])
        assert wires.decoded(wires.encoded(np.zeros(2, dtype), ANY), ANY).dtype == dtype


@pytest.mark.skipif(not hasattr(np, "dtypes") or not hasattr(np.dtypes, "StringDType"), reason="StringDType came with numpy 2")
def test_strings_of_any_length_are_copied(wires: Wires) -> None:
    rows = [["a", "b" * 3000, None], ["", "é", "x"]]
    array, many = (
        np.array(rows * times, np.dtypes.StringDType(na_object=None)) for times in (1, 100)
    )  # np.repeat of numpy 2.1 breaks them
    for codec in (ANY, compile_node(TypeNode(Kind.ARRAY, dtype="StringDType[None]"))):
        for sent in (array, array.T, array[:0], many):
            for port in (wires.host.port, InlineArrays()):
                got = Decoder(wires.plugin.port).decode(codec, Encoder(port).encode(codec, sent))
                assert got.dtype == sent.dtype
                assert got.tolist() == sent.tolist()
                assert not got.flags.writeable
    with pytest.raises(ArgumentError, match="StringDType"):
        wires.encoded(array)
    with pytest.raises(TypeError, match="no place in shared memory"):
        _ndarray.empty(wires.host.arena, 3, np.dtypes.StringDType())
    strict, _ = two_ends(strict=True)
    with pytest.raises(CopyRequired):
        Encoder(strict.port).encode(ANY, many)
    assert Encoder(strict.port).encode(ANY, array[:1])


def test_subclasses_travel_as_arrays(wires: Wires) -> None:
    class Own(np.ndarray):
        pass

    for value in (np.arange(300.0).view(Own), np.ones((30, 30)).view(np.matrix), np.zeros(300).view(np.recarray)):
        got = wires.decoded(wires.encoded(value))
        assert type(got) is np.ndarray
        assert got.shape == value.shape


def test_empty() -> None:
    host, _ = two_ends()
    assert _ndarray.empty(host.arena, (2, 3), "f4").shape == (2, 3)
    assert _ndarray.empty(host.arena, np.int64(300), np.complex128).shape == (300,)
    assert _ndarray.empty(host.arena, (), "f8").shape == ()
    made = _ndarray.empty(host.arena, (1024, 2), "f4")
    assert made.flags.writeable
    assert made.flags.c_contiguous
    for shape, error in (
        ((-1,), ValueError),
        ((1,) * 65, ValueError),
        ((2**70,), (OverflowError, ValueError, MemoryError)),
        ("abc", TypeError),
    ):
        with pytest.raises(error):
            _ndarray.empty(host.arena, shape, "f8")  # type: ignore[arg-type]
    for dtype in ("U3", ">f8", "M8[s]", [("a", "f8"), ("b", "i1")], ("f8", (2, 3)), "V7", *("(3,)f8", np.float32, float) * 2):
        made = _ndarray.empty(host.arena, 500, dtype)
        assert made.dtype == np.empty(500, dtype).dtype
        assert made.shape == np.empty(500, dtype).shape
        made[...] = np.zeros((), made.dtype)
        assert _ndarray.readers_of(made) == 0
    for dtype in ("O", [("a", "O")], "U", "V0", []):
        with pytest.raises(TypeError, match=r"do not travel|no bytes"):
            _ndarray.empty(host.arena, 3, dtype)


def test_readers_of_what_is_not_in_the_arena() -> None:
    assert _ndarray.readers_of(np.zeros(3)) == 0
    assert _ndarray.borrowers_of(np.zeros(3)) == []
