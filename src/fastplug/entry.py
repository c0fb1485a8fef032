"""Serves an installed entry point: ``python -m fastplug.entry NAME`` or ``... MODULE:ATTRIBUTE``.

A host starts this when the user names an entry point of the group ``fastplug.plugins`` instead of a file. The entry point may
be an implementation, a class of one (made without arguments), or a function: what it returns is served, and one that
returns None has served by itself.
"""

from __future__ import annotations

import importlib
import operator
import sys
import types
from typing import Any

import fastplug
from fastplug.errors import ConfigError
from fastplug.process.target import ENTRY_POINT_GROUP

__all__ = ["load", "main"]


def main(arguments: list[str]) -> int:
    """Serve what ``arguments`` name; returns the exit code. Errors go to stderr, which the host shows."""
    if len(arguments) != 1:
        print("usage: python -m fastplug.entry NAME|MODULE:ATTRIBUTE", file=sys.stderr)  # noqa: T201
        return 2
    loaded = load(arguments[0])
    implementation = loaded() if isinstance(loaded, (type, types.FunctionType)) else loaded
    if implementation is not None:
        fastplug.serve(implementation)
    return 0


def load(name: str) -> Any:
    """The object that ``name`` stands for. Raises: ConfigError, with what its import raised as the cause."""
    module, _, attribute = (name if ":" in name else _value_of(name)).partition(":")
    if not attribute:
        raise ConfigError(f"entry point {name!r} names the module {module} but nothing in it: declare it as {module}:YourClass")
    try:
        return operator.attrgetter(attribute)(importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"entry point {name!r}: {attribute} of module {module} cannot be loaded: {error}") from error


def _value_of(name: str) -> str:
    from importlib import metadata

    values = sorted({point.value for point in metadata.entry_points(group=ENTRY_POINT_GROUP, name=name)})
    if len(values) != 1:
        found = f"these have: {', '.join(values)}" if values else "none has"
        raise ConfigError(f"one installed distribution has to declare {name!r} in the group {ENTRY_POINT_GROUP!r}; {found}")
    return values[0].partition("[")[0].strip()  # without extras


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
