"""The handshake line: every refusal has its own error; arbitrary bytes never raise outside the tree."""

from __future__ import annotations

import base64
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastplug.errors import ConfigError, HandshakeError, IncompatibleVersion, PluginError, UnsupportedProtocol
from fastplug.handshake.line import LINE_BYTES_MAX, HandshakeLine, LineReader

CERT = bytes(range(256)) * 2


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("1|1|unix|/tmp/plugin1291330008|grpc|", HandshakeLine(1, "unix", "/tmp/plugin1291330008", "grpc")),
        ("1|5|tcp|127.0.0.1:1234", HandshakeLine(5, "tcp", "127.0.0.1:1234", "netrpc")),
        ("1|2|unix|/x|grpc||true", HandshakeLine(2, "unix", "/x", "grpc", multiplex=True)),
        ("1|2|unix|/x|grpc||0", HandshakeLine(2, "unix", "/x", "grpc", multiplex=False)),
        ("1|1|inherit|7/1/shm|fast|", HandshakeLine(1, "inherit", "7/1/shm", "fast")),
        ("  1|1|unix|/x|grpc|short extra of an old plugin\r", HandshakeLine(1, "unix", "/x", "grpc")),
        ("1|1|unix|/x|grpc||true|from the future", HandshakeLine(1, "unix", "/x", "grpc", multiplex=True)),
        ("1|1|unix|/x|grpc||what", HandshakeLine(1, "unix", "/x", "grpc")),
        ("1|1|unix|/x|grpc|" + base64.b64encode(CERT).decode().rstrip("="), HandshakeLine(1, "unix", "/x", "grpc", CERT)),
    ],
)
def test_parse(text: str, line: HandshakeLine) -> None:
    assert HandshakeLine.parse(text) == line


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("hello", HandshakeError, "Unrecognized remote plugin message: 'hello'"),
        ("1|1|unix", HandshakeError, "it has 3 fields"),
        ("| name | size | date |", HandshakeError, "error parsing core protocol version"),
        ("x|1|unix|/x|grpc", HandshakeError, "error parsing core protocol version: 'x'"),
        ("2|1|unix|/x|grpc", IncompatibleVersion, "Plugin version: 2, Core version: 1"),
        ("1|x|unix|/x|grpc", HandshakeError, "error parsing protocol version 'x'"),
        ("1|" + "9" * 5000 + "|unix|/x|grpc", HandshakeError, "error parsing protocol version"),
        ("1|\u0661|unix|/x|grpc", HandshakeError, "error parsing protocol version"),
        ("1|1|udp|/x|grpc", HandshakeError, "unknown address type: 'udp' (address '/x')"),
        ("1|1|unix||grpc", HandshakeError, "empty address"),
        ("1|1|unix|/x|foo|", UnsupportedProtocol, "unsupported plugin protocol 'foo'. Supported: [netrpc grpc fast]"),
        ("1|1|unix|/x|grpc|" + "!" * 60, HandshakeError, "error parsing server cert: illegal base64 data"),
        ("1|1|unix|/x|grpc|" + "AAAA" * 20 + "AA==", HandshakeError, "padding is not allowed"),
    ],
)
def test_refused(text: str, error: type[PluginError], says: str) -> None:
    with pytest.raises(error) as caught:
        HandshakeLine.parse(text)
    assert type(caught.value) is error
    assert says in str(caught.value)
    assert len(str(caught.value)) < 900


@pytest.mark.parametrize(
    ("field", "error", "says"),
    [
        ("", UnsupportedProtocol, "does not support the feature; for Go plugins, you will need to update"),
        ("|", UnsupportedProtocol, "you will need to update"),
        ("|false", UnsupportedProtocol, "plugin does not support the feature"),
        ("|maybe", HandshakeError, "error parsing 'maybe' as a boolean"),
    ],
)
def test_multiplexing_wanted_and_refused(field: str, error: type[PluginError], says: str) -> None:
    with pytest.raises(error, match=says):
        HandshakeLine.parse("1|1|unix|/x|grpc|" + field, multiplex_wanted=True)


@pytest.mark.parametrize("address", ["", "/a|b", "/a\nb"])
def test_an_address_that_cannot_stand_in_a_line(address: str) -> None:
    with pytest.raises(ConfigError):
        HandshakeLine(1, "unix", address).format()


names = st.text(st.characters(exclude_characters="|\r\n", exclude_categories=["Cs", "Zs", "Cc", "Zl", "Zp"]), min_size=1)


@given(st.integers(0, 10**6), st.sampled_from(["unix", "tcp"]), names, st.sampled_from(["netrpc", "grpc"]), st.none() | st.booleans())
def test_format_and_parse_are_inverse(version: int, network: str, address: str, protocol: str, multiplex: bool | None) -> None:
    for cert in (b"", CERT, CERT[1:], CERT[2:]):
        line = HandshakeLine(version, network, address, protocol, cert, multiplex)
        assert HandshakeLine.parse(line.format()) == line


@given(st.lists(st.binary(max_size=40) | st.sampled_from([b"|", b"\n", b"1|1|unix|/x|grpc|", b"1|1|", b"\xff"])))
def test_arbitrary_bytes_stay_in_the_tree(chunks: list[bytes]) -> None:
    reader = LineReader()
    with contextlib.suppress(PluginError):
        for chunk in chunks:
            reader.feed(chunk)
    assert isinstance(reader.eof(), str)


@given(st.lists(st.text(st.characters(exclude_characters="|\n", exclude_categories=["Cs"]), max_size=9), max_size=64), st.integers(1, 50))
def test_text_before_the_line_is_kept_and_what_follows_is_passed_on(before: list[str], step: int) -> None:
    stream = "".join(f"{text}\n" for text in before).encode() + b"1|1|unix|/x|grpc|\nafter\nit"
    reader = LineReader()
    for start in range(0, len(stream), step):
        found = reader.feed(stream[start : start + step])
    assert found == HandshakeLine(1, "unix", "/x", "grpc")
    assert reader.skipped == [text.strip() for text in before]
    assert reader.rest == b"after\nit"


def test_the_65th_line_without_a_bar_is_an_error() -> None:
    reader = LineReader()
    assert reader.feed(b"x\n" * 64) is None
    with pytest.raises(HandshakeError, match="65th line"):
        reader.feed(b"x\n")


def test_a_line_with_a_bar_is_an_error_at_once_and_quoted_in_part() -> None:
    with pytest.raises(HandshakeError, match="Unrecognized") as caught:
        LineReader().feed(b"a|" + b"b" * 5000 + b"\n")
    assert "a|bbb" in str(caught.value)
    assert len(str(caught.value)) < 700


def test_a_line_too_long_is_an_error_before_it_ends() -> None:
    reader = LineReader()
    reader.feed(b"x" * LINE_BYTES_MAX)
    with pytest.raises(HandshakeError, match="more than 65536 bytes"):
        reader.feed(b"x")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "failed to read any lines"),
        (b"usage: x\n", "1 lines that are no handshake line, the last ones: 'usage: x'"),
        (b"1|1|un", "'1|1|un'"),
    ],
)
def test_eof_says_what_was_there(data: bytes, says: str) -> None:
    reader = LineReader()
    reader.feed(data)
    assert says in reader.eof()


def test_a_socket_path_may_be_any_bytes() -> None:
    line = LineReader().feed(b"1|1|unix|/tmp/\xff\xfe|grpc|\n")
    assert line is not None
    assert line.address.encode("utf-8", "surrogateescape") == b"/tmp/\xff\xfe"
