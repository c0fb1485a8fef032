"""Arrays: which travel and as what, how long they live, and which are refused."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conformance.conftest import started
from tests.plugins.arrays_api import Arrays
from tests.plugins.arrays_plugin import NumpyArrays
from tests.plugins.same import difference
from tests.unit import some_arrays

import fastplug
from fastplug.dtypes import describe, text_of

DTYPES = [
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "longdouble", "complex64", "complex128", "clongdouble"),
]
# Under 1 KiB an array travels inside the message, over it in shared memory where there is some.
COUNTS = [3, 5000]


def some(dtype: str, count: int) -> np.ndarray[Any, Any]:
    return (np.arange(count) % 120).astype(dtype)


GRID = np.arange(24.0).reshape(2, 3, 4)
LARGE = np.arange(6000.0).reshape(10, 12, 50)
SHAPES: dict[str, Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]] = {
    "C": lambda x: x,
    "Fortran": np.asfortranarray,
    "0-d": lambda x: x[:1, :1, :1].reshape(()),
    "empty": lambda x: x[:0],
    "empty inside": lambda x: x[:, 1:1],
    "one": lambda x: x[:1, :1, :1],
    "rows": lambda x: x[::2],
    "columns": lambda x: x[:, :, ::2],
    "column": lambda x: x[:, 1, 1],
    "reversed": lambda x: x[::-1, ::-1, ::-1],
    "reversed rows": lambda x: x[::-1],
    "transposed": lambda x: x.T,
    "swapped": lambda x: x.swapaxes(0, 1),
    "broadcast": lambda x: np.broadcast_to(x[:, :1], x.shape),
    "broadcast 0": lambda x: np.broadcast_to(x[0, 0, 0], (40, 50)),
    "new axes": lambda x: x[None, :, None],
    "windows": lambda x: np.lib.stride_tricks.sliding_window_view(x.ravel(), 5),
    "read-only": lambda x: np.frombuffer(x.tobytes()),
    "8 dimensions": lambda x: x.reshape(x.shape + (1,) * 5),
}


@pytest.fixture(scope="module")
def client(transport: str) -> Iterator[fastplug.Client]:
    with started(transport, NumpyArrays) as client:
        yield client


@pytest.fixture(scope="module")
def arrays(client: fastplug.Client) -> Arrays:
    return client.dispense(Arrays)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_travels_both_ways(arrays: Arrays, dtype: str) -> None:
    for count in COUNTS:
        sent = some(dtype, count)
        assert arrays.seen(sent).dtype == sent.dtype.str
        assert arrays.items(sent) == sent.tobytes()
        assert difference(sent, arrays.echo(sent)) is None


def test_every_dtype_in_every_layout_travels_both_ways(start: Callable[..., fastplug.Client]) -> None:
    """A connection of its own: what is large makes memory grow, and goes with it."""
    client = start(NumpyArrays)
    arrays = client.dispense(Arrays)

    @settings(max_examples=12)
    @given(st.lists(some_arrays.arrays(), max_size=20), st.lists(st.integers(0, 19), max_size=5))
    def travels(sent: list[Any], born: list[int]) -> None:
        for i in born[: len(sent)]:
            original = sent[i % len(sent)]
            sent[i % len(sent)] = client.empty(original.shape, original.dtype)
            sent[i % len(sent)][...] = original
        assert arrays.dtypes(sent) == [text_of(describe(x.dtype)) for x in sent]
        for one, other in zip(sent, arrays.echo_all(sent), strict=True):
            assert some_arrays.same_items(one, other)
            assert not other.flags.writeable

    travels()


@pytest.mark.skipif(not hasattr(np, "dtypes") or not hasattr(np.dtypes, "StringDType"), reason="StringDType came with numpy 2")
def test_strings_of_any_length_travel_both_ways(arrays: Arrays) -> None:
    for missing in ({}, {"na_object": None}):
        sent = np.array([["a", "é" * 500], ["", "\0"]] * 50, np.dtypes.StringDType(**missing))
        if missing:
            sent[0, 0] = None
        for one in (sent, sent[::-2], sent.T, sent[:0], sent[1, 1].reshape(()) if hasattr(sent[1, 1], "reshape") else sent[:1]):
            back = arrays.echo(one)
            assert back.dtype == one.dtype
            assert back.tolist() == one.tolist()


@pytest.mark.parametrize("form", SHAPES)
def test_every_form_travels_both_ways(client: fastplug.Client, arrays: Arrays, form: str) -> None:
    for ordinary in (GRID, LARGE):
        born = client.empty(ordinary.shape, ordinary.dtype)
        born[:] = ordinary
        for sent in (SHAPES[form](ordinary), SHAPES[form](born)):
            assert arrays.seen(sent).shape == sent.shape
            assert arrays.items(sent) == sent.tobytes()
            flipped = sent[(..., *[slice(None, None, -1)] * sent.ndim)]
            for back, expected in ((arrays.echo(sent), sent), (arrays.transposed(sent), sent.T), (arrays.flipped(sent), flipped)):
                assert back.shape == expected.shape
                assert np.array_equal(back, expected)
                assert not back.flags.writeable


@pytest.mark.parametrize("whole", [GRID, LARGE], ids=["inline", "shared"])
def test_fortran_order_arrives_as_fortran_order(arrays: Arrays, whole: np.ndarray[Any, Any]) -> None:
    sent = np.asfortranarray(whole)
    assert arrays.seen(sent).f_contiguous
    assert arrays.echo(sent).flags.f_contiguous


@pytest.mark.parametrize("n", COUNTS)
def test_what_a_handler_gets_is_read_only(client: fastplug.Client, arrays: Arrays, n: int) -> None:
    assert not arrays.seen(np.zeros(n)).writeable
    assert "read-only" in arrays.write(np.zeros(n))
    shared = client.empty(n)
    shared[:] = 0
    assert "read-only" in arrays.write(shared)
    assert shared[0] == 0
    assert shared.flags.writeable


@pytest.mark.parametrize("n", COUNTS)
def test_what_a_host_gets_is_read_only(arrays: Arrays, transport: str, n: int) -> None:
    for back in (arrays.made(n, 2.0), arrays.born(n, 2.0), arrays.echo(np.full(n, 2.0))):
        assert np.array_equal(back, np.full(n, 2.0))
        with pytest.raises(ValueError, match="read-only"):
            back[0] = 1.0
        if transport == "shm" and n > 1000:  # memory that is shared cannot be made writable, either
            with pytest.raises(ValueError, match="WRITEABLE"):
                back.flags.writeable = True


def test_a_part_of_what_was_born_in_a_handler_is_that_part(arrays: Arrays) -> None:
    assert np.array_equal(arrays.born_part(1000), np.full(1000, 2.0))


@pytest.mark.parametrize("n", COUNTS)
def test_views_of_what_the_host_sent_come_back(client: fastplug.Client, arrays: Arrays, n: int) -> None:
    shared = client.empty(n)
    shared[:] = np.arange(n)
    for sent in (shared, np.arange(float(n))):
        assert np.array_equal(arrays.view(sent, 0, n, 1), sent)
        assert np.array_equal(arrays.view(sent, n - 1, 0, -2), sent[n - 1 : 0 : -2])
        one, other = arrays.twice(sent)
        assert np.array_equal(one, sent)
        assert np.array_equal(other, sent[1:])
        kept = arrays.view(sent, 1, 3, 1)
        assert np.array_equal(arrays.echo(kept), sent[1:3])


def test_an_array_that_a_handler_kept_is_still_that_array(arrays: Arrays) -> None:
    for i in range(3):
        arrays.keep(np.full(5000, float(i)))
        for _ in range(5):
            assert arrays.total(np.ones(5000)) == 5000.0
        assert np.array_equal(arrays.kept(), np.full(5000, float(i)))
    arrays.drop()


def test_one_array_in_several_places(arrays: Arrays) -> None:
    x = np.arange(4000.0)
    assert arrays.total(x, weights=x) == float(x @ x)


def test_received_arrays_outlive_the_plugin(start: Callable[..., fastplug.Client]) -> None:
    client = start(NumpyArrays)
    arrays = client.dispense(Arrays)
    sent = client.empty(5000)
    sent[:] = 3.0
    alive = [arrays.born(5000, 1.0), arrays.made(100_000, 2.0), arrays.echo(sent), arrays.made(4, 4.0), sent]
    client.kill()
    gc.collect()
    assert [float(x[-1]) for x in alive] == [1.0, 2.0, 3.0, 4.0, 3.0]
    assert [float(x.sum()) for x in alive] == [5000.0, 200_000.0, 15_000.0, 16.0, 15_000.0]


def test_an_array_of_one_plugin_travels_to_another(start: Callable[..., fastplug.Client]) -> None:
    first, second = start(NumpyArrays), start(NumpyArrays)
    x = first.dispense(Arrays).born(5000, 1.5)
    assert second.dispense(Arrays).total(x) == 7500.0
    mine = first.empty(5000)
    mine[:] = 2.0
    assert second.dispense(Arrays).total(mine) == 10_000.0
    first.kill()
    assert second.dispense(Arrays).total(x) == 7500.0


SWAPPED = np.arange(300).astype(np.dtype("f8").newbyteorder("S"))
# value for a parameter of float64, what the error says of it
REFUSED = {
    "a list": ([1.0, 2.0], "list"),
    "a scalar": (1.5, "float"),
    "None": (None, "None"),
    "float32": (np.zeros(300, np.float32), "float32"),
    "int64": (np.zeros(300, np.int64), "int64"),
    "complex128": (np.zeros(3, np.complex128), "complex128"),
    "objects": (np.array([1, None]), "object"),
    "masked": (np.ma.masked_array(np.zeros(300), mask=True), "mask"),
    "foreign byte order": (SWAPPED, "byte order|>f8"),
    "datetime64": (np.zeros(3, "M8[s]"), "datetime64"),
    "text": (np.array(["a"]), "<U1"),
    "records": (np.zeros(3, [("a", "f8")]), "a"),
    "titles": (np.zeros(3, [(("title", "a"), "f8")]), "titles"),
    "objects inside": (np.zeros(3, [("a", "O")]), "objects"),
    "nothing": (np.zeros(3, []), "bytes|itemsize|; 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_array_that_does_not_fit_is_refused_by_name(arrays: Arrays, case: str) -> None:
    value, said = REFUSED[case]
    with pytest.raises(fastplug.ArgumentError) as caught:
        arrays.total(np.zeros(3), weights=value) if value is not None else arrays.total(value)
    assert caught.value.parameter == ("weights" if value is not None else "x")
    assert re.search(said, caught.value.got)
    assert "float64" in caught.value.expected
    assert arrays.total(np.ones(5)) == 5.0


@pytest.mark.parametrize("case", ["objects", "masked", "titles", "objects inside", "nothing"])
def test_any_dtype_means_any_that_travels(arrays: Arrays, case: str) -> None:
    with pytest.raises(fastplug.ArgumentError) as caught:
        arrays.echo(REFUSED[case][0])
    assert caught.value.parameter == "x"
    assert re.search(REFUSED[case][1], caught.value.got)


@pytest.mark.parametrize(("method", "said"), [("wrong_dtype", "float32"), ("no_array", "list"), ("objects", "object")])
def test_a_result_that_does_not_fit_is_the_handlers_fault(arrays: Arrays, method: str, said: str) -> None:
    with pytest.raises(fastplug.ResultError, match=said) as caught:
        getattr(arrays, method)()
    assert f"test.arrays/1.{method}" in str(caught.value)
    assert arrays.total(np.ones(5)) == 5.0


def test_subclasses_of_ndarray_arrive_as_plain_arrays(arrays: Arrays) -> None:
    class Mine(np.ndarray[Any, Any]):
        pass

    sent = np.arange(5000.0).view(Mine)
    assert type(arrays.echo(sent)) is np.ndarray
    assert np.array_equal(arrays.echo(sent), np.arange(5000.0))


def test_empty_takes_what_numpy_takes(client: fastplug.Client) -> None:
    assert client.empty(7).shape == (7,)
    assert client.empty((2, 600), "i4").dtype == np.int32
    assert client.empty((), np.complex64).shape == ()
    assert client.empty((0, 5)).size == 0
    assert client.empty(np.int64(5000)).shape == (5000,)
    assert fastplug.empty((3, 4)).shape == (3, 4)  # outside of a handler: an ordinary array
    with pytest.raises(ValueError, match="negative"):
        client.empty((-1, 5))
