"""Descriptions of dtypes: what numpy makes of one is the dtype it was made of, and what no dtype can be is refused before numpy sees it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.some_arrays import PLAIN
from tests.unit.some_arrays import dtypes as some_dtypes

from fastplug import dtypes


def depth(structure: Any, levels: int) -> Any:
    for _ in range(levels):
        structure = {"itemsize": 8, "fields": [["x", structure, 0]]}
    return structure


@given(some_dtypes())
def test_a_description_makes_the_same_dtype(dtype: np.dtype[Any]) -> None:
    text = dtypes.text_of(dtypes.describe(dtype))
    made = dtypes.built(dtypes.parsed(text))
    assert made == dtype
    assert (made.itemsize, made.alignment, made.isalignedstruct) == (dtype.itemsize, dtype.alignment, dtype.isalignedstruct)
    assert dtypes.text_of(dtypes.describe(made)) == text
    assert text.isascii()
    json.dumps(dtypes.shown(dtypes.parsed(text)))


# The words of docs/wire.md; none of them may depend on the version of numpy.
@pytest.mark.parametrize(
    ("dtype", "text", "shown"),
    [
        ("longlong", "int64", "int64"),
        ("?", "bool", "bool"),
        ("G", f"complex{8 * np.dtype('G').itemsize}", f"complex{8 * np.dtype('G').itemsize}"),
        (">f8", ">f8", ">f8"),
        ("M8[25s]", "<M8[25s]", "datetime64[25s]"),
        ("m8", "<m8", "timedelta64"),
        ("U5", "<U5", "<U5"),
        ("S0", "|S0", "|S0"),
        ("V3", "|V3", "|V3"),
        (
            [("x", "f8"), ("t", "M8[D]", (2,))],
            '{"itemsize":24,"fields":[["x","float64",0],["t","<M8[D]",8,[2]]]}',
            "{x: float64 @0, t: datetime64[D](2,) @8; 24 bytes}",
        ),
    ],
)
def test_words(dtype: Any, text: str, shown: str) -> None:
    described = dtypes.describe(np.dtype(dtype))
    assert dtypes.text_of(described) == text
    assert dtypes.shown(described) == shown


def test_align_is_kept_and_does_not_count() -> None:
    packed = np.dtype({"names": ["a", "b"], "formats": ["i1", "f8"], "offsets": [0, 8], "itemsize": 16})
    aligned = np.dtype([("a", "i1"), ("b", "f8")], align=True)
    outer = np.dtype([("in", aligned)])
    assert dtypes.describe(packed) != dtypes.describe(aligned)
    assert dtypes.laid_out(dtypes.describe(packed)) == dtypes.laid_out(dtypes.describe(aligned))
    assert dtypes.built(dtypes.describe(outer))["in"].isalignedstruct


@pytest.mark.parametrize(
    ("dtype", "why"),
    [
        (np.dtype("O"), "objects"),
        (np.dtype([("a", "f8"), ("b", "O")]), "objects"),
        (np.dtype([(("title", "a"), "f8")]), "titles"),
        (np.dtype([("x" * 300, "f8")]), "256 characters"),
        (np.dtype([(f"field {i}", "f8") for i in range(5000)]), "longer than"),
        (dtypes.built(depth("float64", 31)), None),
        (np.dtype([("too", dtypes.built(depth("float64", 32)))]), "deep"),
    ],
    ids=["object", "object inside", "title", "long name", "many fields", "nested", "nested too deep"],
)
def test_what_has_no_description(dtype: np.dtype[Any], why: str | None) -> None:
    if why is None:
        assert dtypes.built(dtypes.describe(dtype)) == dtype
        return
    with pytest.raises(dtypes.UndescribedError, match=why) as caught:
        dtypes.describe(dtype)
    assert len(str(caught.value)) < 1000


STRUCTURE = {"itemsize": 16, "fields": [["a", "float64", 0], ["b", "<U2", 8]]}


def changed(**keys: Any) -> dict[str, Any]:
    return STRUCTURE | keys


@pytest.mark.parametrize(
    "wrong",
    [
        *("", "float", "str", "object", "O", "|O8", "f8", "<f8", "=f8", "float64 ", "float64,int8", "2float64", ">b1", "|b1", "float24"),
        *("<M8[", "<M8[ns", "<M8[xs]", "<M8[0s]", "<M8[2147483648s]", "<M8[99999999999s]", "<M4", "|M8", "<M8[s]//2", "<M8[generic]"),
        *("U5", "|U5", "<U-1", "<U05", "<U536870912", "|S2147483648", "|V99999999999", "<S3", "|V3.", "|S٣"),
        *(None, 5, [], ["float64"], {}, {"itemsize": 8}, {"fields": []}, changed(more=1), changed(aligned=1), changed(aligned=None)),
        *(changed(itemsize=15), changed(itemsize=-1), changed(itemsize=16.0), changed(itemsize=True), changed(itemsize=2**31)),
        changed(fields={}),
        changed(fields=[["a", "float64"]]),
        changed(fields=[["a", "float64", 0, [1], 2]]),
        changed(fields=[["a", "float64", 9]]),
        changed(fields=[["a", "float64", -1]]),
        changed(fields=[["a", "float64", 2**64]]),
        changed(fields=[["a", "float64", "0"]]),
        changed(fields=[["a", "float64", True]]),
        changed(fields=[["", "float64", 0]]),
        changed(fields=[[5, "float64", 0]]),
        changed(fields=[["x" * 257, "float64", 0]]),
        changed(fields=[["a", "float64", 0], ["a", "float64", 8]]),
        changed(fields=[["a", "StringDType", 0]]),
        changed(fields=[["a", "datetime64", 0]]),
        changed(fields=[["a", "float64", 0, []]]),
        changed(fields=[["a", "float64", 0, 2]]),
        changed(fields=[["a", "float64", 0, [3]]]),
        changed(fields=[["a", "float64", 0, [-1]]]),
        changed(fields=[["a", "float64", 0, [2**40, 2**40]]]),
        changed(fields=[["a", "|S0", 0, [1] * 33]]),
        depth("float64", 33),
    ],
    ids=lambda wrong: repr(wrong)[:60],
)
def test_what_is_no_description(wrong: Any) -> None:
    for check in (lambda: dtypes.checked(wrong), lambda: dtypes.parsed(wrong if isinstance(wrong, str) else json.dumps(wrong))):
        with pytest.raises(ValueError) as caught:  # noqa: PT011  the texts differ, their length must not
            check()
        assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("text", ["{", "{" * 60_000, '{"a":' * 10_000, "{" + " " * 70_000, '{"itemsize":' + "9" * 5000 + "}", "x" * 70_000])
def test_a_text_that_is_no_json(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        dtypes.parsed(text)


SAID = st.recursive(
    st.none() | st.integers() | st.text(max_size=5) | st.sampled_from(["float64", "|S3", "<M8"]),
    lambda inner: st.lists(inner, max_size=4) | st.fixed_dictionaries({"itemsize": inner, "fields": inner}),
)


@given(SAID)
def test_whatever_a_peer_says_is_a_dtype_or_an_error(said: Any) -> None:
    try:
        described = dtypes.checked(said)
    except ValueError:
        return
    dtypes.built(described)


def test_families_are_the_kinds_whose_scalar_does_not_say_enough() -> None:
    for name, kind in dtypes.FAMILIES.items():
        assert np.dtype(f"{kind}8").kind == kind
        assert name.isidentifier()
        with pytest.raises(ValueError, match="describes no dtype"):
            dtypes.checked(name)


def test_every_listed_dtype_is_there() -> None:
    """So that the property above is about all of them."""
    assert {dtype.kind for dtype in PLAIN} == set("biufcmMSUV")


strings = pytest.mark.skipif(not hasattr(np, "dtypes") or not hasattr(np.dtypes, "StringDType"), reason="StringDType came with numpy 2")


@strings
@pytest.mark.parametrize("missing", [{}, {"na_object": None}, {"na_object": np.nan}], ids=["none missing", "None", "NaN"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 2), (2, 3)])
def test_strings(missing: dict[str, Any], shape: tuple[int, ...]) -> None:
    dtype = np.dtypes.StringDType(**missing)
    assert dtypes.built(dtypes.parsed(dtypes.text_of(dtypes.describe(dtype)))) == dtype
    array = np.full(shape, "é\0" + "long " * 50, dtype)
    if missing and array.size:
        array.reshape(-1)[0] = missing["na_object"]
    found = dtypes.unpacked_strings(dtypes.packed_strings(array.T), array.T.shape, dtype)
    assert found.dtype == dtype
    assert found.shape == array.T.shape
    assert repr(found.tolist()) == repr(array.T.tolist())
    assert not found.flags.writeable


@strings
@pytest.mark.parametrize("data", [b"\x01\0\0\0", b"\x01\0\0\0ab", b"\0\0\0", b"\x02\0\0\0\xff\xff", b"\xff\xff\xff\xff"])
def test_strings_that_lie(data: bytes) -> None:
    for shape in ((1,), (2,), (2**40,)):
        with pytest.raises(ValueError):  # noqa: PT011
            dtypes.unpacked_strings(data, shape, np.dtypes.StringDType())


@strings
def test_strings_that_do_not_travel() -> None:
    with pytest.raises(dtypes.UndescribedError, match="coerce"):
        dtypes.describe(np.dtypes.StringDType(coerce=False))
    with pytest.raises(dtypes.UndescribedError, match="na_object"):
        dtypes.describe(np.dtypes.StringDType(na_object="missing"))
