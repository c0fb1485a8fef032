"""Plugins of different ages, one with two interfaces, and one that implements nothing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from tests.plugins import rules_fresh, rules_odd, rules_old
from tests.plugins.extra_api import Extra

import fastplug

__all__ = ["Both", "FreshPlugin", "Inherits", "OddPlugin", "OldPlugin", "Wrong", "plugin_set", "versions"]


class OldPlugin(rules_old.Rules):
    def fit(self, options: rules_old.Options) -> rules_old.Options:
        return rules_old.Options(options.depth + 1, options.label.upper())

    def scale(self, x: float, by: float = 2.0) -> float:
        return x * by


class FreshPlugin(rules_fresh.Rules):
    def extra(self) -> str:
        return "extra"

    def fit(self, options: rules_fresh.Options) -> rules_fresh.Options:
        return rules_fresh.Options(options.depth + 1, ",".join([options.label, str(options.ratio), *options.tags]))

    def scale(self, x: float, by: float = 2.0, offset: float = 0.0) -> float:
        return x * by + offset


class OddPlugin(rules_odd.Rules):
    def fit(self, options: dict[str, int]) -> int:
        return len(options)

    def scale(self, x: npt.NDArray[np.float32], by: int) -> float:
        return float(x.sum()) * by


class Both(OldPlugin, Extra):
    def name(self) -> str:
        return "both"


class Inherits(rules_old.Rules):
    def scale(self, x: float, by: float = 2.0) -> float:
        return x * by


class Wrong(Extra):
    def name(self, surname: str) -> str:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return surname


class _Named(Extra):
    def __init__(self, name: str) -> None:
        self._name = name

    def name(self) -> str:
        return self._name


def plugin_set() -> None:
    """Two interfaces by name, as go-plugin's ServeConfig has them."""
    rules, extra = fastplug.InterfacePlugin(rules_old.Rules, OldPlugin()), fastplug.InterfacePlugin(Extra, _Named("set"))
    fastplug.serve(plugins={"rules": rules, "extra": extra})


def versions() -> None:
    """Two application versions."""
    fastplug.serve(
        versioned_plugins={
            3: {"it": fastplug.InterfacePlugin(Extra, _Named("three"))},
            5: {"it": fastplug.InterfacePlugin(Extra, _Named("five"))},
        }
    )
