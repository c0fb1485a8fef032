# ruff: noqa: UP006  -- other spellings of a type are part of the subject here
from __future__ import annotations

import copy
import dataclasses
import enum
import json
import typing
from collections.abc import Callable
from typing import Any, Protocol

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastplug.annotation import DEPTH_LIMIT, resolve
from fastplug.errors import InterfaceMismatch, RemoteProtocolError
from fastplug.interfaces import interface, interface_of, optional
from fastplug.signature import (
    METHODS_LIMIT,
    InterfaceDescription,
    MethodDescription,
    canonical,
    check_offer,
    checked_description,
    compatible,
    describe,
    describe_interface,
    describe_type,
    method_text,
    offered_index,
    type_text,
)


class Color(enum.Enum):
    RED = 1
    BLUE = 2
    ROUGE = 1  # noqa: PIE796  an alias


class Access(enum.Flag):
    READ = 1
    WRITE = 2
    BOTH = 3


@dataclasses.dataclass
class Tree:
    value: int
    children: list[Tree] = dataclasses.field(default_factory=list)


def described(function: Callable[..., Any]) -> MethodDescription:
    """The description of a plain function, declared as the method of an interface."""
    members = {function.__name__: function, "__module__": __name__}
    return describe(interface_of(interface("acme.test/1")(type("Api", (Protocol,), members))).methods[0])


def test_a_description_is_plain_json_and_names_a_class_once() -> None:
    def graft(self: Any, tree: Tree, at: tuple[int, ...] = (), *, color: Color | None) -> Tree: ...  # type: ignore[empty-body]

    description = described(graft)
    assert json.loads(json.dumps(description)) == {
        "name": "graft",
        "parameters": [
            ["tree", ["struct", "Tree", [["value", ["int"], False], ["children", ["list", ["ref", "Tree"]], True]]], False],
            ["at", ["sequence", ["int"]], True],
            ["color", ["optional", ["enum", "Color", ["RED", "BLUE"]]], False, "keyword"],
        ],
        "returns": ["ref", "Tree"],
    }
    assert method_text(description) == "graft(tree: Tree, at: tuple[int, ...] = ..., *, color: Color?) -> Tree"


def test_a_flag_tells_its_values() -> None:
    assert describe_type(resolve(Access, where="")) == ["flag", "Access", [["READ", 1], ["WRITE", 2], ["BOTH", 3]]]


# Any type, spelled in two ways.
_leaves = st.sampled_from([(t, t) for t in (bool, int, float, complex, str, bytes, Color, Access, Tree)] + [(None, type(None))])


def _spell(form: Any, *args: Any) -> Any:
    return form[args if len(args) != 1 else args[0]]


def _nested(inner: st.SearchStrategy[tuple[Any, Any]]) -> st.SearchStrategy[tuple[Any, Any]]:
    keys = st.sampled_from([int, str, Color])
    return st.one_of(
        inner.map(lambda t: (_spell(list, t[0]), _spell(typing.List, t[1]))),
        inner.map(lambda t: (_spell(tuple, t[0], ...), _spell(typing.Tuple, t[1], ...))),
        inner.map(lambda t: (_spell(typing.Union, None, t[0]), _spell(typing.Optional, t[1]))),
        inner.map(lambda t: (_spell(typing.Annotated, t[0], 1), t[1])),
        st.lists(inner, max_size=3).map(lambda ts: (_spell(tuple, *(t[0] for t in ts)), _spell(typing.Tuple, *(t[1] for t in ts)))),
        st.tuples(keys, inner).map(lambda kt: (_spell(dict, kt[0], kt[1][0]), _spell(typing.Dict, kt[0], kt[1][1]))),
    )


spelled_twice = st.recursive(_leaves, _nested, max_leaves=8)


def interface_with(returns: list[Any]) -> InterfaceDescription:
    return {"name": "acme.test/1", "methods": [{"name": "f", "parameters": [], "returns": returns}]}


@given(spelled_twice)
def test_spelling_does_not_matter_and_a_description_survives_the_wire(spellings: tuple[Any, Any]) -> None:
    one, other = (resolve(spelling, where="") for spelling in spellings)
    assert canonical(one) == canonical(other)
    description = interface_with(describe_type(one))
    received = checked_description(json.loads(json.dumps(description)))
    assert received == description
    assert compatible(received["methods"][0], interface_with(describe_type(other))["methods"][0]) is None


@given(spelled_twice, spelled_twice)
def test_compatible_types_have_one_text(a: tuple[Any, Any], b: tuple[Any, Any]) -> None:
    one, other = (interface_with(describe_type(resolve(t[0], where="")))["methods"][0] for t in (a, b))
    assert (compatible(one, other) is None) == (method_text(one) == method_text(other))


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["int", "list", "struct", "ref", "enum", "flag", "Tree", "x", "", "1"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["name", "methods", "parameters", "returns"]), inner),
    max_leaves=10,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in _places(item, (*path, key)))]


@given(st.data())
def test_whatever_a_peer_sends_is_read_or_refused(data: st.DataObject) -> None:
    """Invariant: RemoteProtocolError, or a description that can be shown and compared."""

    def graft(self: Any, tree: Tree, access: Access, *, color: Color | None = None) -> dict[str, tuple[int, Tree]]: ...  # type: ignore[empty-body]

    whole: Any = {"": {"name": "acme.test/1", "methods": [described(graft)]}}
    path = data.draw(st.sampled_from(_places(whole)[1:]))
    target = whole
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = data.draw(_json)
    try:
        received = checked_description(whole[""])
    except RemoteProtocolError:
        return
    assert checked_description(received) == received
    for method in received["methods"]:
        assert method_text(method)
        assert compatible(method, method) is None
        compatible(described(graft), method)


def _deep(levels: int) -> list[Any]:
    deep: list[Any] = ["int"]
    for _ in range(levels):
        deep = ["list", deep]
    return deep


MALFORMED: list[tuple[str, Any]] = [
    ("no object", []),
    ("no methods", {"name": "acme.test/1"}),
    ("bad interface name", {"name": "Acme", "methods": []}),
    ("too many methods", {"name": "acme.test/1", "methods": [None] * (METHODS_LIMIT + 1)}),
    ("twice the same method", {"name": "acme.test/1", "methods": interface_with(["int"])["methods"] * 2}),
    ("no identifier", {"name": "acme.test/1", "methods": [{"name": "f\n", "parameters": [], "returns": ["int"]}]}),
    ("long name", {"name": "acme.test/1", "methods": [{"name": "f" * 257, "parameters": [], "returns": ["int"]}]}),
    ("unknown type", interface_with(["frozenset"])),
    ("type without tag", interface_with([])),
    ("tag of another kind", interface_with([["int"]])),
    ("too few arguments", interface_with(["dict", ["int"]])),
    ("arguments of a plain type", interface_with(["int", ["int"]])),
    ("ref to nothing", interface_with(["ref", "Tree"])),
    ("struct twice", interface_with(["tuple", ["struct", "A", []], ["struct", "A", []]])),
    ("field twice", interface_with(["struct", "A", [["a", ["int"], False], ["a", ["int"], False]]])),
    ("member twice", interface_with(["enum", "A", ["a", "a"]])),
    ("flag that is a bool", interface_with(["flag", "A", [["a", True]]])),
    ("too deep", interface_with(_deep(DEPTH_LIMIT + 1))),
    ("far too deep", interface_with(_deep(900))),
    ("too many", interface_with(["tuple", *([["int"]] * 100_001)])),
]


@pytest.mark.parametrize("obj", [row[1] for row in MALFORMED], ids=[row[0] for row in MALFORMED])
def test_a_malformed_description_is_refused(obj: Any) -> None:
    with pytest.raises(RemoteProtocolError, match="the peer's description of its interface is wrong"):
        checked_description(obj)


def test_the_deepest_type_passes() -> None:
    assert checked_description(interface_with(_deep(DEPTH_LIMIT)))


def test_a_checked_description_is_a_private_copy() -> None:
    sent = interface_with(["list", ["int"]])
    received = checked_description(sent)
    kept = copy.deepcopy(received)
    sent["methods"][0]["returns"][1][0] = "str"
    assert received == kept


# The rules of docs/wire.md, "Interface descriptions": host's method, plugin's method, reason or None.

INT, STR = ["int"], ["str"]
RECORD, OTHER_RECORD = ({"itemsize": 8, "fields": [["x", "int8", offset]]} for offset in (0, 1))


def method(*parameters: list[Any], returns: list[Any] = INT) -> MethodDescription:
    return {"name": "f", "parameters": list(parameters), "returns": returns}


def struct(*fields: list[Any], name: str = "Model") -> list[Any]:
    return ["struct", name, list(fields)]


A, B = ["a", INT, False], ["b", INT, False]
A_DEFAULT, B_DEFAULT = ["a", INT, True], ["b", INT, True]

RULES: list[tuple[MethodDescription, MethodDescription, str | None]] = [
    (method(A), method(A), None),
    (method(A), method(A_DEFAULT), None),
    (method(A_DEFAULT), method(A), "parameter a has no default in the plugin"),
    (method(A), method(A, B_DEFAULT), None),
    (method(A), method(A, ["b", INT, True, "keyword"]), None),
    (method(A), method(A, B), "the plugin wants a further parameter b, which has no default"),
    (method(A, B_DEFAULT), method(A), "the plugin has no parameter b"),
    (method(A), method(B), "parameter 1: expected the name a, got b"),
    (method(A), method(["a", INT, False, "keyword"]), "parameter a is keyword-only on one side"),
    (method(A), method(["a", ["float"], False]), "parameter a: expected int, got float"),
    (method(returns=INT), method(returns=["optional", INT]), "result: expected int, got int?"),
    (method(returns=["list", INT]), method(returns=["list", STR]), "result, in list[int]: expected int, got str"),
    (method(returns=["tuple", INT, INT]), method(returns=["tuple", INT]), "result: expected tuple[int, int], got tuple[int]"),
    (method(returns=["array", "float64"]), method(returns=["array", None]), "result: expected ndarray[float64], got ndarray"),
    (method(returns=["array", "int8"]), method(returns=["array", "int8"]), None),
    (
        method(returns=["array", "<M8[s]"]),
        method(returns=["array", "<M8[ns]"]),
        "result: expected ndarray[datetime64[s]], got ndarray[datetime64[ns]]",
    ),
    (
        method(returns=["array", "datetime64"]),
        method(returns=["array", "<M8[s]"]),
        "result: expected ndarray[datetime64], got ndarray[datetime64[s]]",
    ),
    (method(returns=["array", RECORD]), method(returns=["array", RECORD]), None),
    (
        method(returns=["array", RECORD]),
        method(returns=["array", OTHER_RECORD]),
        "result: expected ndarray[{x: int8 @0; 8 bytes}], got ndarray[{x: int8 @1; 8 bytes}]",
    ),
    (
        method(returns=["enum", "Color", ["RED"]]),
        method(returns=["enum", "Color", ["RED", "BLUE"]]),
        "result: expected enum Color (RED), got enum Color (RED, BLUE)",
    ),
    (
        method(returns=["flag", "Access", [["READ", 1]]]),
        method(returns=["flag", "Access", [["READ", 2]]]),
        "result: expected flag Access (READ = 0x1), got flag Access (READ = 0x2)",
    ),
    (method(returns=struct(A)), method(returns=struct(A, B_DEFAULT)), None),
    (method(returns=struct(A, B_DEFAULT)), method(returns=struct(A)), None),
    (method(returns=struct(A)), method(returns=struct(A_DEFAULT)), None),
    (method(returns=struct(A)), method(returns=struct(A, B)), "Model: only the plugin has the field b, and without a default"),
    (method(returns=struct(A, B)), method(returns=struct(A)), "Model: only the host has the field b, and without a default"),
    (method(returns=struct(A)), method(returns=struct(B)), "Model: expected the field a, got b"),
    (method(returns=struct(A)), method(returns=struct(["a", STR, False])), "field Model.a: expected int, got str"),
    (method(returns=struct(A)), method(returns=struct(A, name="Other")), "result: expected struct Model, got struct Other"),
    (method(returns=struct(A)), method(returns=["enum", "Model", ["A"]]), "result: expected struct Model, got enum Model (A)"),
    (
        method(["x", struct(["next", ["optional", ["ref", "Model"]], False]), False], returns=["ref", "Model"]),
        method(["x", struct(["next", ["optional", ["ref", "Model"]], False], B_DEFAULT), False], returns=["ref", "Model"]),
        None,
    ),
    (  # what the plugin describes in a field or parameter that the host lacks is known to its later refs
        method(A, returns=struct(B)),
        method(A, ["m", ["optional", struct(B)], True], returns=["ref", "Model"]),
        None,
    ),
]


@pytest.mark.parametrize(("expected", "got", "reason"), RULES)
def test_what_may_differ(expected: MethodDescription, got: MethodDescription, reason: str | None) -> None:
    checked_description({"name": "acme.test/1", "methods": [expected]})
    checked_description({"name": "acme.test/1", "methods": [got]})
    assert compatible(expected, got) == reason


@interface("acme.dsp/1")
class Dsp(Protocol):
    def total(self, x: list[float]) -> float: ...
    def scale(self, x: list[float], by: float) -> list[float]: ...
    @optional
    def norm(self, x: list[float]) -> float: ...


def offer(**changes: MethodDescription | None) -> InterfaceDescription:
    """What Dsp's plugin offers, in reverse, with some methods changed, added or (None) left out."""
    methods = {m["name"]: m for m in describe_interface(interface_of(Dsp))["methods"]} | changes
    return {"name": "acme.dsp/1", "methods": [m for m in reversed(methods.values()) if m is not None]}


def test_a_method_is_found_where_the_plugin_lists_it() -> None:
    assert check_offer(interface_of(Dsp), offer()) == {"total": 2, "scale": 1, "norm": 0}
    assert check_offer(interface_of(Dsp), offer(extra=method() | {"name": "extra"})) == {"total": 3, "scale": 2, "norm": 1}


def test_a_missing_optional_method_is_none() -> None:
    assert check_offer(interface_of(Dsp), offer(norm=None)) == {"total": 1, "scale": 0, "norm": None}


def test_every_difference_is_named_with_both_signatures() -> None:
    changed: MethodDescription = {
        "name": "scale",
        "parameters": [["x", ["list", ["float"]], False], ["by", ["int"], False]],
        "returns": ["float"],
    }
    with pytest.raises(InterfaceMismatch) as caught:
        check_offer(interface_of(Dsp), offer(total=None, scale=changed))
    error = caught.value
    assert (error.interface, error.method, error.expected, error.got) == ("acme.dsp/1", "total", "total(x: list[float]) -> float", None)
    assert str(error) == (
        "the plugin's acme.dsp/1 differs from the host's:\n"
        "  total: the plugin does not have it\n"
        "    expected  total(x: list[float]) -> float\n"
        "    got       nothing\n"
        "  scale: parameter by: expected float, got int\n"
        "    expected  scale(x: list[float], by: float) -> list[float]\n"
        "    got       scale(x: list[float], by: int) -> float\n"
        "Use a plugin built for this interface, or give the changed one a new major number."
    )


def test_a_different_optional_method_is_a_mismatch() -> None:
    norm: MethodDescription = {"name": "norm", "parameters": [], "returns": ["float"]}
    with pytest.raises(InterfaceMismatch, match="norm: the plugin has no parameter x"):
        check_offer(interface_of(Dsp), offer(norm=norm))


def test_an_interface_is_found_by_name_and_major() -> None:
    others: list[InterfaceDescription] = [{"name": "acme.dsp/2", "methods": []}, {"name": "acme.kv/1", "methods": []}]
    assert offered_index(interface_of(Dsp), [*others, offer()]) == 2
    with pytest.raises(InterfaceMismatch, match=r"does not have the interface acme\.dsp/1; it has acme\.dsp/2, acme\.kv/1") as caught:
        offered_index(interface_of(Dsp), others)
    assert (caught.value.interface, caught.value.method, caught.value.got) == ("acme.dsp/1", None, None)


@pytest.mark.parametrize(("node", "text"), [(["tuple"], "tuple[()]"), (["optional", ["list", ["None"]]], "list[None]?")])
def test_type_text(node: list[Any], text: str) -> None:
    assert type_text(node) == text
