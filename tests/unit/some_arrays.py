"""Arrays of every dtype that travels, in every layout, for property tests; and equality as bytes, item by item."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

__all__ = ["arrays", "dtypes", "filled", "same_items"]

Array = npt.NDArray[Any]

NUMBERS = ["?", "b", "h", "i", "q", "B", "H", "I", "Q", "e", "f", "d", "g", "F", "D", "G"]
SWAPPED = [">i2", ">u4", ">i8", ">f2", ">f4", ">f8", ">c8", ">c16", ">M8[us]", ">m8", ">U3"]
TIMES = [f"{kind}8{unit}" for kind in "Mm" for unit in ("", "[Y]", "[M]", "[D]", "[h]", "[s]", "[25s]", "[ms]", "[ns]", "[as]")]
SIZED = ["U1", "U7", "U300", "S1", "S5", "S1000", "V1", "V8", "V300"]
# Structures: packed, aligned, with holes, with fields that overlap or have no bytes, nested, of arrays.
STRUCTURES: list[Any] = [
    [("x", "f8"), ("y", "f8")],
    [("a", "i1"), ("b", "f8"), ("c", ">u2")],
    np.dtype([("a", "i1"), ("b", "f8"), ("c", "U3")], align=True),
    {"names": ["b", "a"], "formats": ["f4", "M8[ns]"], "offsets": [24, 8], "itemsize": 40},
    {"names": ["whole", "low"], "formats": ["u8", "u4"], "offsets": [0, 0]},
    [("nothing", "S0"), ("x", "i2"), ("none", "f8", (0,))],
    [("p", [("x", "f4"), ("q", [("deep", "m8[s]", (2, 3))])], (2,)), ("tag", "S3")],
    np.dtype((np.record, [("r", "?"), ('é " {', "D")])),
]

PLAIN = [np.dtype(code) for code in (*NUMBERS, *SWAPPED, *TIMES, *SIZED, *STRUCTURES)]


def _structured(part: st.SearchStrategy[np.dtype[Any]]) -> st.SearchStrategy[np.dtype[Any]]:
    shapes = st.sampled_from([(), (2,), (1, 3)])
    names = st.text(min_size=1, max_size=6)

    def made(fields: list[tuple[str, np.dtype[Any], tuple[int, ...]]], align: bool) -> np.dtype[Any]:
        return np.dtype([(name, part, shape) if shape else (name, part) for name, part, shape in fields], align=align)

    fields = st.lists(st.tuples(names, part, shapes), min_size=1, max_size=4, unique_by=lambda field: field[0])
    return st.builds(made, fields, st.booleans())


def dtypes() -> st.SearchStrategy[np.dtype[Any]]:
    """Those listed, and structures of them, up to three deep."""
    plain = st.sampled_from(PLAIN)
    return plain | st.recursive(plain, _structured, max_leaves=6).filter(lambda dtype: 0 < dtype.itemsize < 20_000)


def filled(array: Array, rng: np.random.Generator) -> Array:
    """Values of every sort that each field may have."""
    if array.dtype.names is not None:
        for name in array.dtype.names:
            filled(array[name], rng)
    elif array.dtype.kind == "V" or array.dtype.kind == "S":
        array[...] = rng.choice(np.array([b"", b"a", b"\0b", b"\xff" * 1000]), array.shape).astype(array.dtype)
    elif array.dtype.kind == "U":
        array[...] = rng.choice(np.array(["", "a", "é\U0001f40d", "x" * 300]), array.shape)
    elif array.dtype.kind in "mM":
        array[...] = rng.integers(-(2**63), 2**63 - 1, array.shape).astype("i8").view(f"{array.dtype.kind}8").astype("i8")
    elif array.dtype.itemsize:
        with np.errstate(over="ignore", invalid="ignore"):
            array[...] = rng.choice(np.array([0.0, -0.0, 1.0, 100.5, np.nan, np.inf]), array.shape).astype(array.dtype)
    return array


STEPS = [1, 2, -1, -3]


@st.composite
def arrays(draw: st.DrawFn, dtype: st.SearchStrategy[np.dtype[Any]] | None = None) -> Array:
    """Views in any layout, from nothing to some tens of KiB."""
    chosen = draw(dtypes() if dtype is None else dtype)
    shape = draw(st.lists(st.integers(0, 7), max_size=4).map(tuple) | st.sampled_from([(400,), (20, 30)]))
    base: Array = filled(np.zeros(shape, chosen), np.random.default_rng(draw(st.integers(0, 99))))
    if draw(st.booleans()):
        base = base[(*(slice(None, None, step) for step in draw(st.lists(st.sampled_from(STEPS), max_size=base.ndim))), ...)]
    layout = draw(st.sampled_from(["as it is", "transposed", "broadcast"]))
    if layout == "broadcast":
        return np.broadcast_to(base, (2, *base.shape))
    return base.T if layout == "transposed" else base


def same_items(a: Array, b: Array) -> bool:
    """One dtype, one shape, and the same bytes in every field. What lies between the fields does not matter."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dtype.kind == "T":
        return bool(np.array_equal(a, b))
    if a.dtype.names is not None:
        return all(same_items(a[name], b[name]) for name in a.dtype.names)
    return a.tobytes() == b.tobytes()
