"""Answers each argument as it came."""

from __future__ import annotations

from typing import Any

from tests.plugins.kinds_api import Kinds

import fastplug

__all__ = ["Echo"]


def _echo(self: Any, x: Any) -> Any:
    return x


# The methods of the interface all do the same, so they are written once.
Echo: Any = type("Echo", (Kinds,), {name: _echo for name in vars(Kinds) if not name.startswith("_")})

if __name__ == "__main__":
    fastplug.serve(Echo())
