"""What serve() makes of its arguments, before anything is served."""

from __future__ import annotations

from typing import Protocol

import pytest

import fastplug
from fastplug.server import served_plugins

__all__: list[str] = []


@fastplug.interface("test.served/1")
class Served(Protocol):
    def answer(self) -> int: ...


class Plugin(Served):
    def answer(self) -> int:
        return 42


def test_an_implementation_is_served_under_the_name_of_its_interface() -> None:
    assert list(served_plugins((Plugin(),), ())) == ["test.served/1"]


def test_a_class_instead_of_an_implementation_is_refused() -> None:
    with pytest.raises(fastplug.ConfigError, match=r"not its class: serve\(Plugin\(\)\)"):
        served_plugins((Plugin,), ())


def test_what_implements_nothing_is_refused() -> None:
    with pytest.raises(fastplug.ConfigError, match="derive it from a class"):
        served_plugins((object(),), ())
