"""What host and plugin may declare differently, and what they are told when it is too much."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.conformance.conftest import started
from tests.plugins import rules_fresh, rules_odd, rules_old
from tests.plugins.extra_api import Extra, OptionalHost
from tests.plugins.rules_plugin import Both, FreshPlugin, Inherits, OddPlugin, OldPlugin, Wrong

import fastplug

Start = Callable[..., fastplug.Client]


@pytest.fixture(scope="module")
def old(transport: str) -> Iterator[fastplug.Client]:
    with started(transport, OldPlugin) as client:
        client.dispense(rules_old.Rules).scale(1.0)  # its threads start here
        yield client


@pytest.fixture(scope="module")
def both(transport: str) -> Iterator[fastplug.Client]:
    with started(transport, Both) as client:
        client.dispense(rules_old.Rules).scale(1.0)  # its threads start here
        yield client


def test_an_old_host_uses_a_fresh_plugin(start: Start) -> None:
    rules = start(FreshPlugin).dispense(rules_old.Rules)
    assert rules.fit(rules_old.Options(1)) == rules_old.Options(2, "none,0.5,fresh")
    assert rules.fit(rules_old.Options(1, "a")) == rules_old.Options(2, "a,0.5,fresh")
    assert rules.scale(3.0) == 6.0
    assert rules.scale(3.0, 5.0) == 15.0
    with pytest.raises(fastplug.ArgumentError):
        rules.scale(1.0, 2.0, 3.0)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def test_a_fresh_host_does_not_take_an_old_plugin(old: fastplug.Client) -> None:
    with pytest.raises(fastplug.InterfaceMismatch) as caught:
        old.dispense(rules_fresh.Rules)
    error = caught.value
    assert isinstance(error, fastplug.HandshakeError)
    assert error.interface == "test.rules/1"
    assert "extra() -> str" in str(error)
    assert old.dispense(rules_old.Rules).scale(2.0) == 4.0  # the plugin lives on


def test_a_method_that_differs_is_named_with_both_signatures(start: Start) -> None:
    client = start(OddPlugin)
    with pytest.raises(fastplug.InterfaceMismatch) as caught:
        client.dispense(rules_old.Rules)
    error = caught.value
    assert error.method == "fit"
    assert error.expected == "fit(options: Options) -> Options"
    assert error.got == "fit(options: dict[str, int]) -> int"
    for text in (error.expected, error.got, "test.rules/1"):
        assert text in str(error)
    assert client.dispense(rules_odd.Rules).fit({"a": 1}) == 1


def test_an_interface_that_is_not_there_is_named_with_those_that_are(old: fastplug.Client) -> None:
    with pytest.raises(fastplug.InterfaceMismatch, match=r"test\.extra/2.*test\.rules/1") as caught:
        old.dispense(Extra)
    assert caught.value.method is None


def test_several_interfaces_in_one_plugin(both: fastplug.Client) -> None:
    rules, extra = both.dispense(rules_old.Rules), both.dispense(Extra)
    assert (rules.scale(2.0), extra.name()) == (4.0, "both")
    assert fastplug.client_of(rules) is fastplug.client_of(extra) is both


def test_an_optional_method_may_be_absent_until_it_is_called(both: fastplug.Client) -> None:
    handle = both.dispense(OptionalHost)
    assert handle.name() == "both"
    with pytest.raises(fastplug.InterfaceMismatch, match=r"size\(of: list\[int\], unit: str = \.\.\.\) -> int") as caught:
        handle.size([1])
    assert (caught.value.method, caught.value.got) == ("size", None)


def test_what_is_no_interface_is_not_dispensed(both: fastplug.Client) -> None:
    for wrong in (int, object(), Both):
        with pytest.raises(fastplug.ConfigError):
            both.dispense(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("plugin", [Inherits, Wrong])
def test_an_implementation_that_lacks_a_method_is_not_served(start: Start, plugin: type) -> None:
    with pytest.raises((fastplug.StartError, fastplug.ConfigError)) as caught:
        start(plugin)
    said = str(caught.value)
    assert f"{plugin.__name__} does not implement" in said
    assert ("fit(options: Options) -> Options is missing" if plugin is Inherits else "surname") in said


# -- by name, as go-plugin has it

SETS: Any = {"rules": fastplug.InterfacePlugin(rules_old.Rules), "extra": fastplug.InterfacePlugin(Extra)}
PROCESSES = pytest.mark.transports("shm", "socket", "grpc")


@PROCESSES
def test_a_plugin_set_is_dispensed_by_name(start: Start) -> None:
    client = start("tests.plugins.rules_plugin:plugin_set", plugins=SETS)
    rules: Any = client.dispense("rules")
    extra: Any = client.dispense("extra")
    assert (rules.scale(1.5), extra.name()) == (3.0, "set")
    with pytest.raises(fastplug.ConfigError, match=r"unknown plugin type: 'other'.*rules, extra"):
        client.dispense("other")


def test_a_plugin_set_works_with_any_implementation(start: Start) -> None:
    client = start(Both, plugins=SETS)
    extra: Any = client.dispense("extra")
    assert extra.name() == "both"


@PROCESSES
@pytest.mark.parametrize(
    ("versions", "expected"), [([3], (3, "three")), ([3, 5], (5, "five")), ([5, 9], (5, "five")), ([2, 3], (3, "three"))]
)
def test_the_highest_shared_application_version_wins(start: Start, versions: list[int], expected: tuple[int, str]) -> None:
    sets = {version: {"it": fastplug.InterfacePlugin(Extra)} for version in versions}
    handshake = fastplug.HandshakeConfig(
        versions[0], fastplug.DEFAULT_HANDSHAKE.magic_cookie_key, fastplug.DEFAULT_HANDSHAKE.magic_cookie_value
    )
    client = start("tests.plugins.rules_plugin:versions", versioned_plugins=sets, handshake=handshake)
    it: Any = client.dispense("it")
    assert (client.negotiated_version, it.name()) == expected


@PROCESSES
def test_no_shared_application_version_is_an_error(start: Start) -> None:
    handshake = fastplug.HandshakeConfig(7, fastplug.DEFAULT_HANDSHAKE.magic_cookie_key, fastplug.DEFAULT_HANDSHAKE.magic_cookie_value)
    with pytest.raises(fastplug.IncompatibleVersion):
        start("tests.plugins.rules_plugin:versions", versioned_plugins={7: {"it": fastplug.InterfacePlugin(Extra)}}, handshake=handshake)
