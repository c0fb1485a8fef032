"""Plain Python values into protobuf messages of any descriptor: what keyword arguments of ``client.service`` mean. Pure.

Well-known types take what stands for them in Python: datetime, timedelta, dict, list, plain scalars, a message for Any.
"""

from __future__ import annotations

import datetime as dt
import keyword
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from fastplug.errors import ArgumentError

__all__ = ["argument_name", "fill", "is_map", "is_repeated", "python_type"]

# As deep as protobuf's own parsers go by default.
DEPTH_MAX = 100

_SIGNED = (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64)
_INTEGERS = frozenset({*_SIGNED, FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64})
_FLOATS = frozenset({FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE})
_WRAPPERS = {"Bool": "bool", "Bytes": "bytes", "Double": "float", "Float": "float", "String": "str"}
_WRAPPERS |= {"Int32": "int", "Int64": "int", "UInt32": "int", "UInt64": "int"}


def argument_name(field: str) -> str:
    """How a field is spelled as a keyword argument: Python's own words get a ``_`` behind them."""
    return f"{field}_" if keyword.iskeyword(field) else field


def is_map(field: Any) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def is_repeated(field: Any) -> bool:
    """Also true of maps."""
    # protobuf 4 has label only, and newer ones warn of it.
    return bool(field.is_repeated) if hasattr(field, "is_repeated") else field.label == FieldDescriptor.LABEL_REPEATED


def python_type(field: Any) -> str:
    """What a field takes, in words."""
    if is_map(field):
        entry = field.message_type.fields_by_name
        return f"dict[{python_type(entry['key'])}, {python_type(entry['value'])}]"
    one = _singular_type(field)
    return f"list[{one}]" if is_repeated(field) else one


def _singular_type(field: Any) -> str:
    if field.message_type is not None:
        name = field.message_type.full_name
        known = _WELL_KNOWN.get(name)
        return known[0] if known else str(field.message_type.name)
    if field.enum_type is not None:
        return str(field.enum_type.name)
    if field.cpp_type in _INTEGERS:
        return "int"
    if field.cpp_type in _FLOATS:
        return "float"
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return "bool"
    return "bytes" if field.type == FieldDescriptor.TYPE_BYTES else "str"


def fill(message: Message, values: Mapping[str, Any], where: str) -> None:
    """Sets the fields of ``message``; None leaves a field unset.

    Args:
        values: by field name. A message is a mapping, a message of the same type, or what stands for a well-known type; an enum is a name
            or a number; bytes are anything with a buffer.
        where: what the message is, for errors.

    Raises:
        ArgumentError: names the field by its path.
    """
    _fill(message, values, where, 0)


def _fill(message: Message, values: Mapping[str, Any], where: str, depth: int) -> None:
    if depth > DEPTH_MAX:
        raise ArgumentError(f"{where}: nested more than {DEPTH_MAX} deep, which no protobuf peer reads")
    chosen: dict[str, str] = {}
    for name, value in values.items():
        field = _field(message.DESCRIPTOR, name, where)
        if value is None and not _takes_none(field):
            continue
        oneof = field.containing_oneof
        if oneof is not None and (other := chosen.setdefault(oneof.name, field.name)) != field.name:
            raise ArgumentError(f"{where}: {other} and {field.name} exclude each other (oneof {oneof.name}); give one of them")
        try:
            _set(message, field, value, f"{where}.{field.name}", depth)
        except ArgumentError:
            raise
        except RecursionError:  # a Struct has no depth of its own
            raise ArgumentError(f"{where}.{field.name}: nested too deep, or in a circle", parameter=field.name) from None
        except (TypeError, ValueError, OverflowError) as error:
            raise _unfit(field, value, f"{where}.{field.name}", error) from error


def _field(descriptor: Any, name: str, where: str) -> Any:
    fields = descriptor.fields_by_name
    found = fields.get(name) or fields.get(name.removesuffix("_"))
    if found is None:
        known = ", ".join(argument_name(field) for field in fields) or "none"
        raise ArgumentError(f"{where} has no field {name!r}. Fields of {descriptor.full_name}: {known}.", parameter=name)
    return found


def _takes_none(field: Any) -> bool:
    name = field.message_type.full_name if field.message_type is not None else ""
    return name == "google.protobuf.Value" and not is_repeated(field)


def _unfit(field: Any, value: object, where: str, error: Exception | None = None) -> ArgumentError:
    expected, got = python_type(field), f"{type(value).__name__} {value!r:.60}"
    because = f" ({error})" if error is not None and str(error) else ""
    return ArgumentError(f"{where} takes {expected}, got {got}{because}", parameter=field.name, expected=expected, got=got)


def _set(message: Message, field: Any, value: Any, where: str, depth: int) -> None:
    if is_map(field):
        _set_map(message, field, value, where, depth)
    elif is_repeated(field):
        if isinstance(value, str | bytes | bytearray | Mapping) or not isinstance(value, Iterable):
            raise _unfit(field, value, where)
        target = getattr(message, field.name)
        for index, item in enumerate(value):
            if field.message_type is not None:
                _set_message(target.add(), item, f"{where}[{index}]", depth)
            else:
                target.append(_scalar(field, item, where))
    elif field.message_type is not None:
        own = getattr(message, field.name)
        own.SetInParent()  # an empty message is there, too
        _set_message(own, value, where, depth)
    else:
        setattr(message, field.name, _scalar(field, value, where))


def _set_map(message: Message, field: Any, value: Any, where: str, depth: int) -> None:
    if not isinstance(value, Mapping):
        raise _unfit(field, value, where)
    target = getattr(message, field.name)
    of = field.message_type.fields_by_name["value"]
    for key, item in value.items():
        if of.message_type is not None:
            _set_message(target[key], item, f"{where}[{key!r}]", depth)
        else:
            target[key] = _scalar(of, item, f"{where}[{key!r}]")


def _scalar(field: Any, value: Any, where: str) -> Any:
    if field.enum_type is not None and isinstance(value, str):
        number = field.enum_type.values_by_name.get(value)
        if number is None:
            names = ", ".join(field.enum_type.values_by_name)
            raise ArgumentError(f"{where}: {field.enum_type.full_name} has no {value!r}; it has {names}", parameter=field.name)
        return number.number
    if field.type == FieldDescriptor.TYPE_BYTES:
        if isinstance(value, str):  # a text has no bytes before somebody chose an encoding
            raise _unfit(field, value, where)
        return value if isinstance(value, bytes) else bytes(memoryview(value))
    if field.cpp_type in _INTEGERS and isinstance(value, bool):
        raise _unfit(field, value, where)
    return value


def _set_message(message: Message, value: Any, where: str, depth: int) -> None:
    name = message.DESCRIPTOR.full_name
    if isinstance(value, Message) and name != "google.protobuf.Any":
        if value.DESCRIPTOR.full_name != name:
            raise ArgumentError(f"{where} takes a {name}, got a {value.DESCRIPTOR.full_name}")
        message.MergeFromString(value.SerializeToString())  # its class may be of another pool
        return
    known = _WELL_KNOWN.get(name)
    if known is not None and known[1](message, value):
        return
    if not isinstance(value, Mapping):
        expected = known[0] if known else f"a mapping or a {name}"
        raise ArgumentError(f"{where} takes {expected}, got {type(value).__name__} {value!r:.60}", expected=expected)
    _fill(message, value, where, depth + 1)


# What stands for a well-known type. Each says whether it took the value; a mapping of its fields is taken of all.


def _timestamp(message: Any, value: Any) -> bool:
    if isinstance(value, dt.datetime):
        if value.tzinfo is None:
            raise ValueError("a datetime without time zone is no point in time; give it a tzinfo")
        message.FromDatetime(value)
    elif isinstance(value, str):
        message.FromJsonString(value)
    else:
        return False
    return True


def _duration(message: Any, value: Any) -> bool:
    if isinstance(value, dt.timedelta):
        message.FromTimedelta(value)
    elif isinstance(value, str):
        message.FromJsonString(value)
    else:
        return False
    return True


def _wrapper(message: Any, value: Any) -> bool:
    if isinstance(value, Mapping):
        return False
    message.value = _scalar(message.DESCRIPTOR.fields_by_name["value"], value, "value")
    return True


def _struct(message: Any, value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    for key, item in value.items():
        _value(message.fields[key], item)
    return True


def _list_value(message: Any, value: Any) -> bool:
    if not isinstance(value, list | tuple):
        return False
    for item in value:
        _value(message.values.add(), item)
    return True


def _value(message: Any, value: Any) -> bool:
    if value is None:
        message.null_value = 0
    elif isinstance(value, bool):
        message.bool_value = value
    elif isinstance(value, int | float):
        message.number_value = value
    elif isinstance(value, str):
        message.string_value = value
    elif isinstance(value, Mapping):
        message.struct_value.SetInParent()
        _struct(message.struct_value, value)
    elif isinstance(value, list | tuple):
        message.list_value.SetInParent()
        _list_value(message.list_value, value)
    else:
        raise TypeError("a google.protobuf.Value holds None, bool, float, str, list and dict")
    return True


def _field_mask(message: Any, value: Any) -> bool:
    if isinstance(value, str):
        message.paths.extend(path for path in value.split(",") if path)
    elif isinstance(value, list | tuple):
        message.paths.extend(value)
    else:
        return False
    return True


def _any(message: Any, value: Any) -> bool:
    if not isinstance(value, Message):
        return False
    if value.DESCRIPTOR.full_name == "google.protobuf.Any":
        message.MergeFromString(value.SerializeToString())
    else:
        message.Pack(value)
    return True


_WELL_KNOWN: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "google.protobuf.Timestamp": ("datetime", _timestamp),
    "google.protobuf.Duration": ("timedelta", _duration),
    "google.protobuf.Struct": ("dict", _struct),
    "google.protobuf.ListValue": ("list", _list_value),
    "google.protobuf.Value": ("a JSON value", _value),
    "google.protobuf.FieldMask": ("list[str]", _field_mask),
    "google.protobuf.Any": ("a message", _any),
}
_WELL_KNOWN |= {f"google.protobuf.{kind}Value": (name, _wrapper) for kind, name in _WRAPPERS.items()}
