"""Both sides of the negotiation: the plugin chooses, the host accepts or says why not."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from fastplug.errors import ConfigError, HandshakeError, IncompatibleVersion, PluginError, UnsupportedProtocol
from fastplug.handshake.environment import Choice, Offer
from fastplug.handshake.line import HandshakeLine
from fastplug.handshake.negotiation import accept, choose_protocols, choose_version, cookie_refusal


@dataclass(frozen=True)
class Handshake:
    protocol_version: int = 1
    magic_cookie_key: str = "KEY"
    magic_cookie_value: str = "value"


OFFER = Offer(pid=10, fd=5, versions=(1, 2), transports=("shm",))


@pytest.mark.parametrize(
    ("own", "offered", "chosen"),
    [({1, 2, 3}, (2, 1), 2), ({1}, (1,), 1), ({3, 2}, (9,), 2), ({4, 5}, (), 4), ({0}, (0, 1), 0)],
)
def test_the_plugin_takes_its_highest_shared_version_or_announces_its_lowest(own: set[int], offered: tuple[int, ...], chosen: int) -> None:
    assert choose_version(own, offered) == chosen


def test_a_plugin_without_versions_is_misconfigured() -> None:
    with pytest.raises(ConfigError, match="serves nothing"):
        choose_version([], [1])


def test_the_cookie() -> None:
    assert cookie_refusal(Handshake(), "value") is None
    for wrong in (None, "", "other"):
        assert "This binary is a plugin." in str(cookie_refusal(Handshake(), wrong))
    for misconfigured in (Handshake(magic_cookie_key=""), Handshake(magic_cookie_value="")):
        assert "Misconfigured ServeConfig" in str(cookie_refusal(misconfigured, ""))


def test_accepted_lines() -> None:
    grpc = HandshakeLine(1, "unix", "/x", "grpc")
    assert accept(grpc, versions={1}, allowed_protocols=("fast", "grpc"), offer=OFFER) is None
    fast = HandshakeLine(1, "inherit", "5/2/shm", "fast")
    assert accept(fast, versions={1}, allowed_protocols=("fast", "grpc"), offer=OFFER) == Choice(5, 2, "shm")


@pytest.mark.parametrize(
    ("line", "offer", "error", "says"),
    [
        (HandshakeLine(9, "unix", "/x", "grpc"), OFFER, IncompatibleVersion, r"Plugin version: 9, Client versions: \[1\]"),
        (HandshakeLine(1, "unix", "/x", "netrpc"), None, UnsupportedProtocol, r"Supported: \[fast grpc\]. Allow it"),
        (HandshakeLine(1, "unix", "/x", "netrpc"), OFFER, UnsupportedProtocol, "did not take the offer"),
        (HandshakeLine(1, "inherit", "5/2/shm", "grpc"), OFFER, HandshakeError, "inherited descriptor"),
        (HandshakeLine(1, "inherit", "5/2/shm", "fast"), None, HandshakeError, "but nothing was offered"),
        (HandshakeLine(1, "unix", "5/2/shm", "fast"), OFFER, HandshakeError, "was offered"),
        (HandshakeLine(1, "inherit", "6/2/shm", "fast"), OFFER, HandshakeError, "was offered"),
        (HandshakeLine(1, "inherit", "5/3/shm", "fast"), OFFER, HandshakeError, "was offered"),
        (HandshakeLine(1, "inherit", "5/2/socket", "fast"), OFFER, HandshakeError, "was offered"),
        (HandshakeLine(1, "inherit", "/tmp/x", "fast"), OFFER, HandshakeError, "was offered"),
    ],
)
def test_refused_lines(line: HandshakeLine, offer: Offer | None, error: type[PluginError], says: str) -> None:
    with pytest.raises(error, match=says) as caught:
        accept(line, versions={1}, allowed_protocols=("fast", "grpc"), offer=offer)
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("carriers", "chosen"),
    [
        ({}, ()),
        ({"a": ("fast", "grpc")}, ("fast", "grpc")),
        ({"a": ("fast", "grpc"), "b": ("grpc",)}, ("grpc",)),
        ({"a": ("netrpc",)}, ("netrpc",)),
        ({"a": ("grpc", "netrpc"), "b": ("netrpc", "grpc")}, ("grpc", "netrpc")),
    ],
)
def test_a_set_goes_over_what_all_of_it_can_speak(carriers: dict[str, tuple[str, ...]], chosen: tuple[str, ...]) -> None:
    assert choose_protocols(carriers) == chosen


def test_a_set_that_shares_no_protocol_is_refused() -> None:
    with pytest.raises(ConfigError, match="a speaks fast or grpc; b speaks netrpc"):
        choose_protocols({"a": ("fast", "grpc"), "b": ("netrpc",)})
