"""Annotations and values of every kind that the codec carries, for hypothesis and for plain random numbers."""

from __future__ import annotations

import datetime as dt
import decimal
import uuid
from typing import Any

from hypothesis import strategies as st
from tests.twin.wire_nodes import Colour, Perm, Point, Tree, node_of

from fastplug.annotation import Kind, TypeNode

__all__ = ["NODES", "nodes", "values"]

_SCALARS = [
    None, bool, int, float, complex, str, bytes, dt.datetime, dt.date, dt.timedelta, decimal.Decimal, uuid.UUID, Colour, Perm, Point, Tree,
]  # fmt: skip
_NESTED = [
    list[float], list[list[int]], tuple[int, str], tuple[()], tuple[bytes, ...], dict[str, float], dict[int, list[Point]], Point | None,
    dict[tuple[int, str], Tree], list[dt.datetime | None],
]  # fmt: skip
# One TypeNode each, for tests that want to see every kind without hypothesis.
NODES = [node_of(annotation) for annotation in [*_SCALARS, *_NESTED]]

_KEYS = [bool, int, float, str, bytes, dt.date, dt.timedelta, uuid.UUID, Colour, tuple[int, str]]


def nodes() -> st.SearchStrategy[TypeNode]:
    """Any type that the codec carries, nested a few levels."""
    keys = st.sampled_from(_KEYS).map(node_of)

    def nested(inner: st.SearchStrategy[TypeNode]) -> st.SearchStrategy[TypeNode]:
        return st.one_of(
            st.tuples(inner).map(lambda args: TypeNode(Kind.LIST, args)),
            st.tuples(inner).map(lambda args: TypeNode(Kind.SEQUENCE, args)),
            st.lists(inner, max_size=3).map(lambda args: TypeNode(Kind.TUPLE, tuple(args))),
            st.tuples(keys, inner).map(lambda args: TypeNode(Kind.DICT, args)),
            inner.filter(lambda node: node.kind not in (Kind.OPTIONAL, Kind.NONE)).map(lambda node: TypeNode(Kind.OPTIONAL, (node,))),
        )

    return st.recursive(st.sampled_from(_SCALARS).map(node_of), nested, max_leaves=5)


def _zones() -> st.SearchStrategy[dt.tzinfo | None]:
    offsets = st.timedeltas(min_value=dt.timedelta(hours=-23, minutes=-59), max_value=dt.timedelta(hours=23, minutes=59))
    return st.none() | st.just(dt.UTC) | offsets.map(dt.timezone)


_VALUES: dict[Kind, st.SearchStrategy[Any]] = {
    Kind.NONE: st.none(),
    Kind.BOOL: st.booleans(),
    Kind.INT: st.integers()
    | st.integers(-(2**64), 2**64)
    | st.integers(0, 4000).map(lambda bits: 2**bits)
    | st.integers(0, 4000).map(lambda b: -(2**b)),
    Kind.FLOAT: st.floats(),
    Kind.COMPLEX: st.complex_numbers(),
    Kind.STR: st.text(),
    Kind.BYTES: st.binary(),
    Kind.DATETIME: st.builds(lambda value, fold: value.replace(fold=fold), st.datetimes(timezones=_zones()), st.integers(0, 1)),
    Kind.DATE: st.dates(),
    Kind.TIMEDELTA: st.timedeltas(),
    Kind.DECIMAL: st.decimals(),
    Kind.UUID: st.uuids(),
}


def _trees() -> st.SearchStrategy[Tree]:
    leaf = st.builds(Tree, st.binary(max_size=4))
    return st.recursive(
        leaf, lambda inner: st.builds(Tree, st.binary(max_size=4), st.none() | inner, right=st.none() | inner), max_leaves=5
    )


def values(node: TypeNode) -> st.SearchStrategy[Any]:
    """Any value of a type."""
    if node.kind in _VALUES:
        return _VALUES[node.kind]
    if node.kind is Kind.OPTIONAL:
        return st.none() | values(node.args[0])
    if node.kind is Kind.ENUM:
        return st.sampled_from(Colour) if node.cls is Colour else st.integers(0, 7).map(Perm)
    if node.kind is Kind.STRUCT:
        return _trees() if node.cls is Tree else st.builds(Point, st.integers(), st.floats(), st.lists(st.text(), max_size=3))
    if node.kind is Kind.TUPLE:
        return st.tuples(*map(values, node.args))
    if node.kind is Kind.DICT:
        return st.dictionaries(values(node.args[0]), values(node.args[1]), max_size=4)
    items = st.lists(values(node.args[0]), max_size=5)
    return items if node.kind is Kind.LIST else items.map(tuple)
