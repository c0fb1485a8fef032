"""Environment variables between host and plugin. Void offers are None, never an exception."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastplug.errors import ConfigError, HandshakeError
from fastplug.handshake.environment import (
    Choice,
    Offer,
    Refusal,
    family_marks,
    honour,
    host_environment,
    is_vouched,
    plugin_environment,
    vouch_message,
)


@dataclass(frozen=True)
class Handshake:
    protocol_version: int = 1
    magic_cookie_key: str = "BASIC_PLUGIN"
    magic_cookie_value: str = "hello"


OFFER = Offer(pid=10, fd=5, versions=(1,), transports=("shm", "socket"))


def test_the_offer_is_written_as_specified() -> None:
    assert OFFER.format() == "pid=10;fd=5;fast=1;transport=shm,socket"
    assert Offer.parse("transport=socket;new=thing;fast=3,1;fd=0;pid=7") == Offer(7, 0, (3, 1), ("socket",))


@given(
    st.integers(0, 10**9 - 1),
    st.integers(0, 10**4),
    st.lists(st.integers(0, 99), min_size=1, max_size=5),
    st.lists(st.sampled_from(["shm", "socket", "rdma"]), min_size=1, max_size=4),
)
def test_offers_survive_the_environment(pid: int, fd: int, versions: list[int], transports: list[str]) -> None:
    offer = Offer(pid, fd, tuple(versions), tuple(transports))
    assert Offer.parse(offer.format()) == offer


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "pid=10",
        "pid=;fd=5;fast=1;transport=shm",
        "pid=10;fd=5;fast=;transport=shm",
        "pid=10;fd=5;fast=1;transport=",
        "pid=10;fd=5;fast=1,;transport=shm",
        "pid=-1;fd=5;fast=1;transport=shm",
        "pid=1_0;fd=5;fast=1;transport=shm",
        "pid=\u0661;fd=5;fast=1;transport=shm",
        "pid=10,11;fd=5;fast=1;transport=shm",
        "pid=10;pid=11;fd=5;fast=1;transport=shm",
        "pid=10;fd=" + "9" * 5000 + ";fast=1;transport=shm",
        OFFER.format() + ";x=" + "y" * 256,
    ],
)
def test_void_offers(text: str | None) -> None:
    assert Offer.parse(text) is None


pieces = st.sampled_from(["pid=", "fd=", "fast=", "transport=", ";", ",", "1", "shm", "\udc80", "=", "\n", "-"])


@given(st.text() | st.lists(pieces | st.text(max_size=5)).map("".join))
@example("\ud800")
def test_parsing_never_raises(text: str) -> None:
    Offer.parse(text)
    Choice.parse(text)
    environ = dict.fromkeys(("PLUGIN_PROTOCOL_VERSIONS", "FASTPLUG_OFFER", "FASTPLUG_LOG_LEVEL", "PLUGIN_MIN_PORT", "KEY"), text)
    plugin = plugin_environment(environ, cookie_key="KEY")
    assert plugin.cookie == text
    assert set(plugin.remove) == set(environ)


def test_user_variables_beat_inherited_ones_and_the_handshake_beats_both() -> None:
    base = {
        "PATH": "/bin",
        "A": "host",
        "BASIC_PLUGIN": "stale",
        "PLUGIN_CLIENT_CERT": "stale",
        "FASTPLUG_OFFER": "stale",
        "PLUGIN_X": "kept",
    }
    made = host_environment(base, {"A": "user", "PLUGIN_PROTOCOL_VERSIONS": "99"}, Handshake(), versions={6, 5}, log_level=10)
    assert made == {
        "PATH": "/bin",
        "A": "user",
        "PLUGIN_X": "kept",
        "BASIC_PLUGIN": "hello",
        "PLUGIN_MIN_PORT": "10000",
        "PLUGIN_MAX_PORT": "25000",
        "PLUGIN_PROTOCOL_VERSIONS": "5,6",
        "FASTPLUG_LOG_LEVEL": "10",
    }


def test_the_plugin_finds_what_the_host_set() -> None:
    environ = host_environment(
        {},
        {},
        Handshake(),
        versions=[1, 2],
        offer=OFFER,
        client_cert="PEM\n",
        multiplex=True,
        socket_dir="/d",
        socket_group="g",
        log_level=5,
    )
    plugin = plugin_environment(environ, cookie_key="BASIC_PLUGIN")
    assert (plugin.cookie, plugin.versions, plugin.offer, plugin.client_cert) == ("hello", (1, 2), OFFER, "PEM\n")
    assert (plugin.multiplex, plugin.socket_dir, plugin.socket_group, plugin.log_level) == ("true", "/d", "g", 5)
    assert plugin.ports() == (10000, 25000)
    assert set(plugin.remove) == set(environ)


@pytest.mark.parametrize(
    ("user_env", "handshake"),
    [
        ({"A=B": "x"}, Handshake()),
        ({"": "x"}, Handshake()),
        ({"A": "x\0y"}, Handshake()),
        ({"A": 3}, Handshake()),
        ({}, Handshake(magic_cookie_key="")),
        ({}, Handshake(magic_cookie_value="")),
    ],
)
def test_what_cannot_be_passed_is_refused(user_env: dict[str, str], handshake: Handshake) -> None:
    with pytest.raises(ConfigError):
        host_environment({}, user_env, handshake, versions=[1])


def test_bad_items_of_the_version_list_are_named() -> None:
    plugin = plugin_environment({"PLUGIN_PROTOCOL_VERSIONS": "3, x,,1,-2"}, cookie_key="K")
    assert plugin.versions == (3, 1)
    assert plugin.invalid_versions == ("x", "-2")


@pytest.mark.parametrize(("text", "level"), [("10", 10), ("warn", 30), (" Trace ", 5), ("", None), ("loud", None), ("9" * 99, None)])
def test_log_level(text: str, level: int | None) -> None:
    assert plugin_environment({"FASTPLUG_LOG_LEVEL": text}, cookie_key="K").log_level == level


@pytest.mark.parametrize(
    ("low", "high", "says"), [("x", "1", "couldn't get value from PLUGIN_MIN_PORT"), ("9", "8", "greater"), ("1", "65536", "MAX")]
)
def test_port_ranges_that_are_none(low: str, high: str, says: str) -> None:
    with pytest.raises(HandshakeError, match=says):
        plugin_environment({"PLUGIN_MIN_PORT": low, "PLUGIN_MAX_PORT": high}, cookie_key="K").ports()


def test_without_a_range_any_port_will_do() -> None:
    assert plugin_environment({}, cookie_key="K").ports() == (0, 0)


def test_an_offer_is_honoured_by_the_child_of_its_maker() -> None:
    assert honour(OFFER, parent_pid=10, peer_pid_of_fd=10) == Choice(5, 1, "shm")
    assert honour(OFFER, parent_pid=10, peer_pid_of_fd=10, transports=("socket",)) == Choice(5, 1, "socket")
    newer = Offer(10, 5, (1, 3, 2), ("socket", "shm"))
    assert honour(newer, parent_pid=10, peer_pid_of_fd=10, versions=(1, 2)) == Choice(5, 2, "socket")


@pytest.mark.parametrize(
    ("offer", "parent_pid", "peer_pid", "why"),
    [
        (None, 10, 10, "no valid"),
        (OFFER, 11, 10, "the parent is process 11"),
        (OFFER, 10, 11, "no Unix stream socket"),
        (OFFER, 10, None, "no Unix stream socket"),
        (Offer(10, 5, (4,)), 10, 10, "no version"),
        (Offer(10, 5, (1,), ("rdma",)), 10, 10, "no transport"),
    ],
)
def test_in_doubt_an_offer_is_refused(offer: Offer | None, parent_pid: int, peer_pid: int | None, why: str) -> None:
    refusal = honour(offer, parent_pid=parent_pid, peer_pid_of_fd=peer_pid)
    assert isinstance(refusal, Refusal)
    assert why in refusal.reason


def test_the_address_of_a_choice() -> None:
    assert Choice(7, 1, "shm").format() == "7/1/shm"
    assert Choice.parse("7/1/shm") == Choice(7, 1, "shm")
    for text in ("", "7/1", "7/1/", "x/1/shm", "7/-1/shm", "7/1/shm/x"):
        assert Choice.parse(text) is None


VOUCHED = vouch_message(OFFER)


@pytest.mark.parametrize(
    ("received", "offer", "vouched"),
    [
        (VOUCHED, OFFER, True),
        (VOUCHED + b"HELLO and more", OFFER, True),
        (VOUCHED[:-1], OFFER, False),
        (b"", OFFER, False),
        (VOUCHED, None, False),
        (VOUCHED, Offer(11, 5, (1,), ("shm", "socket")), False),
        (VOUCHED.replace(b"{", b"["), OFFER, False),
        (b"\x02\0\0\0" + VOUCHED[4:8] + b"{}", OFFER, False),
        (b"\0\0\0\0\x01\0\0\0", OFFER, False),
    ],
)
def test_who_vouches_names_this_very_offer(received: bytes, offer: Offer | None, vouched: bool) -> None:
    assert is_vouched(offer, received) is vouched


def test_a_vouched_offer_needs_no_parent_but_a_socket() -> None:
    taken = honour(OFFER, parent_pid=1, peer_pid_of_fd=0, vouched=True)
    assert taken == Choice(5, 1, "shm")
    assert isinstance(honour(OFFER, parent_pid=1, peer_pid_of_fd=None, vouched=True), Refusal)
    assert isinstance(honour(OFFER, parent_pid=1, peer_pid_of_fd=0), Refusal)


def test_marks_of_hosts_in_hosts() -> None:
    outer = family_marks("", "a" * 16)
    inner = family_marks(outer, "b" * 16)
    assert (outer, inner) == ("a" * 16, f"{'a' * 16}:{'b' * 16}")
    assert family_marks("garbage:" + "c" * 15, "b" * 16) == "b" * 16
    deep = ""
    for _ in range(40):
        deep = family_marks(deep, "d" * 16)
    assert deep.count(":") == 15


@pytest.mark.parametrize(
    ("value", "expected"), [("", None), ("true", True), ("1", True), ("T", True), ("false", False), ("0", False), ("yes", False)]
)
def test_multiplexing_is_answered_as_go_reads_it_and_only_when_asked_for(value: str, expected: bool | None) -> None:
    assert plugin_environment({"PLUGIN_MULTIPLEX_GRPC": value}, cookie_key="K").multiplexes is expected
