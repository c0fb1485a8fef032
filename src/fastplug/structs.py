"""The fields of classes that are structures: dataclasses, and ``msgspec.Struct`` when somebody has imported msgspec."""

from __future__ import annotations

import enum
import sys
from collections.abc import Callable
from typing import Any, Final, Literal

from fastplug.errors import ConfigError

__all__ = ["MISSING", "Missing", "fields_of", "is_struct"]


class Missing(enum.Enum):
    """The type of ``MISSING``: there is no default (None is one)."""

    MISSING = "MISSING"


MISSING: Final[Literal[Missing.MISSING]] = Missing.MISSING


Fields = list[tuple[str, Callable[[], Any] | Missing]]


def is_struct(cls: Any) -> bool:
    """A dataclass, or a msgspec.Struct when msgspec is loaded."""
    struct = getattr(sys.modules.get("msgspec"), "Struct", None)
    return isinstance(cls, type) and (hasattr(cls, "__dataclass_fields__") or (isinstance(struct, type) and issubclass(cls, struct)))


def fields_of(cls: Any, where: str) -> Fields:
    """Name and default of each field, in order of declaration. Raises ConfigError for fields that would be lost on the way."""
    return _dataclass_fields(cls, where) if hasattr(cls, "__dataclass_fields__") else _msgspec_fields(cls)


def _constant(value: Any) -> Callable[[], Any]:
    return lambda: value


def _dataclass_fields(cls: Any, where: str) -> Fields:
    import dataclasses

    # dataclasses keeps InitVar pseudo-fields beside the real ones and has no public name for the difference.
    init_var = getattr(dataclasses, "_FIELD_INITVAR", MISSING)
    for field in cls.__dataclass_fields__.values():
        if getattr(field, "_field_type", None) is init_var:
            raise ConfigError(f"{where}: {cls.__name__}.{field.name} is an InitVar, which no object keeps; make it a field")
    found: Fields = []
    for field in dataclasses.fields(cls):
        if not field.init:
            raise ConfigError(f"{where}: {cls.__name__}.{field.name} has init=False and would be lost; make it a property, or an argument")
        if field.default is not dataclasses.MISSING:
            found.append((field.name, _constant(field.default)))
        else:
            found.append((field.name, MISSING if field.default_factory is dataclasses.MISSING else field.default_factory))
    return found


def _msgspec_fields(cls: Any) -> Fields:
    # Not msgspec.structs.fields(): it evaluates every annotation in the module's names and fails for classes local to a function.
    names = cls.__struct_fields__
    no_default = sys.modules["msgspec"].NODEFAULT
    defaults = (no_default,) * (len(names) - len(cls.__struct_defaults__)) + cls.__struct_defaults__
    found: Fields = []
    for name, default in zip(names, defaults, strict=True):
        if default is no_default:
            found.append((name, MISSING))
        else:  # msgspec wraps factories in a private class; a plain default has no such attribute of that class
            is_factory = type(default).__name__ == "Factory" and type(default).__module__.startswith("msgspec")
            found.append((name, default.factory if is_factory else _constant(default)))
    return found
