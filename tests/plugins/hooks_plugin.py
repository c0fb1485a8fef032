"""An implementation with set-up and tear-down: it writes what happens to it into the file that HOOKS_FILE names."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.plugins.extra_api import Extra

import fastplug

__all__ = ["Hooked", "Refusing"]


def _tell(what: str) -> None:
    with Path(os.environ["HOOKS_FILE"]).open("a") as file:
        file.write(what + "\n")


class Hooked(Extra):
    def __init__(self) -> None:
        self._entered = False

    def __enter__(self) -> Self:
        self._entered = True
        _tell("enter")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _tell("exit")

    def name(self) -> str:
        _tell("call")
        return "entered" if self._entered else "not entered"


class Refusing(Extra):
    def __enter__(self) -> Self:
        raise ConnectionError("the database is down")

    def __exit__(self, *exc_info: object) -> None:
        raise AssertionError("never entered")

    def name(self) -> str:
        return ""


if __name__ == "__main__":
    fastplug.serve(Hooked())
