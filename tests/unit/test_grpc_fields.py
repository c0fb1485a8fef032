"""Keyword arguments into messages: each kind of field, each well-known type, and what does not fit."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from google.protobuf import (
    any_pb2,
    api_pb2,
    descriptor_pb2,
    duration_pb2,
    field_mask_pb2,
    struct_pb2,
    timestamp_pb2,
    type_pb2,
    wrappers_pb2,
)
from google.protobuf.json_format import MessageToDict
from hypothesis import given
from hypothesis import strategies as st
from tests.interop.peer_proto import kinds

from fastplug.errors import ArgumentError
from fastplug.protocols.grpc.fields import argument_name, fill, python_type

Kinds = kinds()

INT32 = st.integers(-(2**31), 2**31 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
POINTS: st.SearchStrategy[Any] = st.recursive(
    st.fixed_dictionaries({"x": st.floats(allow_nan=False)}),
    lambda inner: st.fixed_dictionaries({"y": st.just(1.5), "next": inner}),
    max_leaves=3,
)
COLORS = st.sampled_from(["COLOR_UNSPECIFIED", "COLOR_RED", "COLOR_BLUE"])
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "truth": st.booleans(),
        "number": st.integers(-(2**63), 2**63 - 1),
        "text": TEXT,
        "data": st.binary(max_size=5),
        "color": COLORS,
        "point": POINTS,
        "points": st.lists(POINTS, max_size=2),
        "colors": st.lists(COLORS, max_size=3),
        "counts": st.dictionaries(TEXT, INT32, max_size=2),
        "places": st.dictionaries(INT32, POINTS, max_size=2),
        "word": TEXT,
        "maybe": INT32,
        "loose": st.dictionaries(TEXT, JSON, max_size=2),
        "value": JSON,
        "wrapped": TEXT,
        "class_": INT32,
    },
)


def filled(kind: Any, **values: Any) -> Any:
    message = kind()
    fill(message, values, "M")
    return message


def plain(value: Any) -> Any:
    """A message as the values that ``fill`` takes."""
    if not hasattr(value, "DESCRIPTOR"):
        return value
    name = value.DESCRIPTOR.full_name
    if name in ("google.protobuf.Struct", "google.protobuf.Value"):
        return MessageToDict(value)
    if name == "google.protobuf.StringValue":
        return value.value
    found = {}
    for field, content in value.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            found[field.name] = {key: plain(content[key]) for key in content}
        elif field.enum_type is not None:
            names = field.enum_type.values_by_number
            found[field.name] = names[content].name if isinstance(content, int) else [names[one].name for one in content]
        elif hasattr(content, "DESCRIPTOR") or isinstance(content, str | bytes | int | float):
            found[argument_name(field.name)] = plain(content)
        else:
            found[field.name] = [plain(one) for one in content]
    return found


def without_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """What proto3 keeps: a scalar outside of a oneof is not there when it is zero."""
    kept = ("point", "word", "maybe", "loose", "value", "wrapped")
    return {key: value for key, value in values.items() if key in kept or value not in (False, 0, "", b"", [], {}, "COLOR_UNSPECIFIED")}


@given(FIELDS)
def test_a_message_holds_what_it_was_filled_with(values: dict[str, Any]) -> None:
    again = Kinds.FromString(filled(Kinds, **values).SerializeToString())
    expected = without_defaults(values)
    got = plain(again)
    for name in ("point", "points", "places"):  # zero coordinates are dropped within, too
        assert (name in got) == (name in expected)
        got.pop(name, None)
        expected.pop(name, None)
    assert got == expected


def test_messages_inside_messages() -> None:
    made = filled(Kinds, point={"x": 1, "next": {"y": 2, "next": {}}}, points=[{}, {"x": 3}], places={7: {"y": 1.5}})
    assert (made.point.x, made.point.next.y, made.point.next.HasField("next"), made.point.next.next.HasField("next")) == (1, 2, True, False)
    assert [one.x for one in made.points] == [0, 3]
    assert made.places[7].y == 1.5
    assert filled(Kinds, point=made.point, points=iter([made.point])).points[0].next.y == 2


def test_none_leaves_a_field_unset_and_is_a_value_where_it_can_be() -> None:
    assert filled(Kinds, text=None, point=None, maybe=None) == Kinds()
    assert filled(Kinds, value=None).value.HasField("null_value")
    assert filled(Kinds, maybe=0).HasField("maybe")


def test_enums_by_name_and_number_and_words_of_python() -> None:
    made = filled(Kinds, color="COLOR_BLUE", colors=[1, "COLOR_BLUE"], shades={"a": "COLOR_RED"}, class_=3)
    assert (made.color, list(made.colors), dict(made.shades), getattr(made, "class")) == (5, [1, 5], {"a": 1}, 3)
    assert getattr(filled(Kinds, **{"class": 4}), "class") == 4


def test_anything_with_a_buffer_is_bytes() -> None:
    assert [filled(Kinds, data=data).data for data in (b"a", bytearray(b"b"), memoryview(b"c"))] == [b"a", b"b", b"c"]


def test_well_known_types() -> None:
    at = dt.datetime(2020, 1, 2, 3, 4, 5, 600, tzinfo=dt.timezone(dt.timedelta(hours=2)))
    made = filled(
        Kinds, at=at, lasts=dt.timedelta(seconds=-1.5), times=["2021-01-01T00:00:00Z", {"seconds": 7}], loose={"a": [1, {"b": None}]}
    )
    assert made.at.ToDatetime(dt.UTC) == at
    assert made.lasts.ToTimedelta() == dt.timedelta(seconds=-1.5)
    assert [one.seconds for one in made.times] == [1609459200, 7]
    assert MessageToDict(made.loose) == {"a": [1.0, {"b": None}]}
    assert MessageToDict(filled(Kinds, value=[1, "x"]).value) == [1.0, "x"]
    assert filled(Kinds, lasts=duration_pb2.Duration(seconds=3)).lasts.seconds == 3
    assert filled(Kinds, lasts="2.5s").lasts.nanos == 500_000_000
    option = filled(type_pb2.Option, value=wrappers_pb2.Int32Value(value=4))
    unpacked = wrappers_pb2.Int32Value()
    assert option.value.Unpack(unpacked)
    assert unpacked.value == 4
    assert filled(type_pb2.Option, value=option.value).value == option.value
    assert filled(api_pb2.Mixin, name="m").name == "m"
    message = descriptor_pb2.DescriptorProto()
    assert python_type(type_pb2.Option.DESCRIPTOR.fields_by_name["value"]) == "a message"
    assert message == filled(descriptor_pb2.DescriptorProto)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"nothing": 1}, "M has no field 'nothing'"),
        ({"point": {"z": 1}}, r"M\.point has no field 'z'"),
        ({"word": "w", "spot": {}}, "word and spot exclude each other"),
        ({"color": "COLOR_GREEN"}, "it has COLOR_UNSPECIFIED, COLOR_RED, COLOR_BLUE"),
        ({"text": 5}, r"M\.text takes str, got int 5"),
        ({"number": 1.5}, r"M\.number takes int"),
        ({"number": True}, r"M\.number takes int, got bool"),
        ({"maybe": 2**31}, r"M\.maybe takes int"),
        ({"data": "text"}, r"M\.data takes bytes, got str"),
        ({"data": 5}, r"M\.data takes bytes"),
        ({"points": {}}, r"M\.points takes list\[Point\], got dict"),
        ({"points": [{}, {"x": "y"}]}, r"M\.points\[1\]\.x takes float, got str"),
        ({"points": 5}, r"M\.points takes list\[Point\]"),
        ({"colors": "COLOR_RED"}, r"M\.colors takes list\[Color\]"),
        ({"counts": [1]}, r"M\.counts takes dict\[str, int\]"),
        ({"counts": {1: 1}}, r"M\.counts takes"),
        ({"places": {1: {"x": "y"}}}, r"M\.places\[1\]\.x takes float"),
        ({"point": 5}, r"M\.point takes a mapping or a fastplug\.interop\.v1\.Kinds\.Point, got int"),
        ({"point": timestamp_pb2.Timestamp()}, r"got a google\.protobuf\.Timestamp"),
        ({"at": dt.datetime(2020, 1, 1)}, "give it a tzinfo"),
        ({"at": 5}, r"M\.at takes datetime, got int"),
        ({"at": "yesterday"}, r"M\.at takes datetime"),
        ({"loose": [1]}, r"M\.loose takes dict"),
        ({"loose": {"a": object()}}, r"M\.loose takes dict"),
        ({"wrapped": 5}, r"M\.wrapped takes str"),
    ],
)
def test_what_does_not_fit_is_named_by_its_path(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        filled(Kinds, **values)


def test_a_circle_of_mappings_ends() -> None:
    circle: dict[str, Any] = {}
    circle["next"] = circle
    with pytest.raises(ArgumentError, match="deep"):
        filled(Kinds, point=circle)
    endless: dict[str, Any] = {}
    endless["a"] = endless
    with pytest.raises(ArgumentError, match="deep"):
        filled(Kinds, loose=endless)


def test_field_masks_and_lists() -> None:
    holder = descriptor_pb2.FileDescriptorProto(name="h.proto", package="h", syntax="proto3")
    holder.dependency.extend([field_mask_pb2.DESCRIPTOR.name, struct_pb2.DESCRIPTOR.name, any_pb2.DESCRIPTOR.name])
    message = holder.message_type.add(name="H")
    for number, kind in enumerate(("FieldMask", "ListValue", "Any"), 1):
        message.field.add(name=kind.lower(), number=number, type=11, label=1, type_name=f".google.protobuf.{kind}")
    from google.protobuf import descriptor_pool, message_factory

    pool = descriptor_pool.DescriptorPool()
    for module in (field_mask_pb2, struct_pb2, any_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(holder.SerializeToString())
    kind = message_factory.GetMessageClass(pool.FindMessageTypeByName("h.H"))
    made = filled(kind, fieldmask="a,b.c", listvalue=[1, "x"], any=timestamp_pb2.Timestamp(seconds=5))
    assert list(made.fieldmask.paths) == ["a", "b.c"]
    assert [one.WhichOneof("kind") for one in made.listvalue.values] == ["number_value", "string_value"]
    assert made.any.type_url.endswith("google.protobuf.Timestamp")
    assert list(filled(kind, fieldmask=["x"]).fieldmask.paths) == ["x"]
    with pytest.raises(ArgumentError, match="fieldmask takes"):
        filled(kind, fieldmask=5)
    with pytest.raises(ArgumentError, match="any takes"):
        filled(kind, any=5)
