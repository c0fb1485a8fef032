"""How Python names become proto names. Pure; schema and codec must agree, so both ask here."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable

from google.protobuf.message import Message

__all__ = ["Names", "camel", "enum_members", "field_names", "package_of", "service_of", "upper_snake"]


def _ascii(name: str) -> str:
    """Proto identifiers are ASCII; Python's are not."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c == "_") else f"u{ord(c):x}" for c in name)
    return f"_{plain}" if plain[:1].isdigit() else plain


def camel(name: str) -> str:
    """``get_item`` -> ``GetItem``; also protoc's rule for the entry type of a map field."""
    return "".join(part[:1].upper() + part[1:] for part in _ascii(name).split("_")) or "X"


def upper_snake(name: str) -> str:
    """``LogLevel`` -> ``LOG_LEVEL``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", _ascii(name)).upper()


def service_of(interface_name: str) -> str:
    """``acme.dsp/1`` -> ``Dsp``. Not the class's name: host and plugin may call their classes as they like."""
    return camel(interface_name.rpartition("/")[0].rpartition(".")[2])


def package_of(interface_name: str) -> str:
    """``acme.dsp/1`` -> ``acme.dsp.v1``."""
    name, _, major = interface_name.rpartition("/")
    return ".".join([*(_ascii(part) for part in name.split(".")), f"v{major}"])


class Names:
    """Names of one scope, each given out once: a class called ``TotalRequest`` beside a method ``total`` becomes ``TotalRequest2``."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = set(taken)

    def claim(self, wanted: str) -> str:
        name, number = wanted, 1
        while name in self._taken:
            number += 1
            name = f"{wanted}{number}"
        self._taken.add(name)
        return name


def field_names(names: Iterable[str]) -> list[str]:
    """Proto field names for parameters or struct fields, in order.

    What every message has as a method gets a ``_`` behind it. protoc refuses two fields with one JSON name (``a_b`` and ``aB``), so the
    second gets a number.
    """
    found: list[str] = []
    json_names: set[str] = set()
    for name in map(_ascii, names):
        plain = unique = f"{name}_" if hasattr(Message, name) else name
        number = 1
        while (json_name := unique.replace("_", "").lower()) in json_names:
            number += 1
            unique = f"{plain}_{number}"
        json_names.add(json_name)
        found.append(unique)
    return found


def enum_members(cls: type[enum.Enum]) -> list[enum.Enum]:
    """The members that have a number on the wire, 1 for the first: in order of declaration, without aliases."""
    return list(cls)
