"""The handshake line: what a plugin says on stdout, once, before anything else.

    core version|app version|network|address|protocol|server certificate|multiplex

go-plugin's form, with two words that only fastplug knows: network ``inherit`` and protocol ``fast`` (docs/wire.md, section 1).
Pure: bytes in, a line or an error out.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Final

from fastplug.errors import ConfigError, HandshakeError, IncompatibleVersion, UnsupportedProtocol

__all__ = ["CORE_VERSION", "NETWORKS", "PROTOCOLS", "HandshakeLine", "LineReader", "quoted"]

CORE_VERSION: Final = 1
NETWORKS: Final = ("unix", "tcp", "inherit")
PROTOCOLS: Final = ("netrpc", "grpc", "fast")

# go-plugin's line scanner has the same limit, so a longer line never was a handshake line.
LINE_BYTES_MAX: Final = 64 * 1024
# Text that was flushed before the line: a start-up banner fits, a program that is no plugin is found out soon.
SKIPPED_LINES_MAX: Final = 64
# An error text quotes the peer: enough to recognise it, too little to flood a log.
QUOTED_CHARS_MAX: Final = 200
# Old plugins put a short "extra" into field 6; go-plugin takes it for a certificate only above this length.
CERT_CHARS_MIN: Final = 51

_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,9}")
# Go: strconv.ParseBool
_BOOLS: Final = {
    **dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
    **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False),
}


def quoted(text: str) -> str:
    """``text`` as it may stand in an error: escaped, and cut at 200 characters."""
    shown = repr(text[: QUOTED_CHARS_MAX + 1])
    if len(shown) <= QUOTED_CHARS_MAX + 2:
        return shown
    return f"{shown[: QUOTED_CHARS_MAX + 1]}{shown[0]}... ({len(text)} characters)"


@dataclass(frozen=True, slots=True)
class HandshakeLine:
    """One handshake line.

    ``server_cert`` is DER, empty without AutoMTLS; ``multiplex`` is None where the plugin said nothing about it.
    """

    app_version: int
    network: str
    address: str
    protocol: str = "netrpc"
    server_cert: bytes = b""
    multiplex: bool | None = None
    core_version: int = CORE_VERSION

    def format(self) -> str:
        """The line without its newline: six fields, as Go plugins print them, and a seventh if ``multiplex`` is not None.

        Raises ConfigError for an address that cannot stand in a line.
        """
        if not self.address or re.search(r"[|\r\n]", self.address):
            raise ConfigError(
                f"the address {quoted(self.address)} cannot stand in a handshake line: it must not be empty and must not contain '|' or a"
                " newline. Choose another socket directory (TMPDIR, PLUGIN_UNIX_SOCKET_DIR)."
            )
        cert = base64.b64encode(self.server_cert).decode().rstrip("=")
        fields = [str(self.core_version), str(self.app_version), self.network, self.address, self.protocol, cert]
        if self.multiplex is not None:
            fields.append("true" if self.multiplex else "false")
        return "|".join(fields)

    @classmethod
    def parse(cls, text: str, *, multiplex_wanted: bool = False) -> HandshakeLine:
        """Read a line; the checks come in go-plugin's order. Fields behind the seventh are ignored.

        Raises HandshakeError (not a handshake line), IncompatibleVersion (core version), UnsupportedProtocol. With
        ``multiplex_wanted`` the seventh field must be there and true.
        """
        fields = text.strip().split("|")
        if len(fields) < 4:
            raise _unrecognized(text, f"it has {len(fields)} fields, a handshake line has at least 4")
        core_version = _core_version(fields[0], text)
        app_version = _number(fields[1])
        if app_version is None:
            raise HandshakeError(
                f"error parsing protocol version {quoted(fields[1])} in the plugin's line {quoted(text)}: it must be a decimal number."
                " Report this to the plugin author."
            )
        network, address = fields[2], fields[3]
        if network not in NETWORKS:
            raise HandshakeError(
                f"unknown address type: {quoted(network)} (address {quoted(address)}). This host knows {', '.join(NETWORKS)}."
                " Report this to the plugin author."
            )
        if not address:
            raise HandshakeError(f"the plugin's line {quoted(text)} has an empty address. Report this to the plugin author.")
        protocol = fields[4] if len(fields) > 4 and fields[4] else "netrpc"
        if protocol not in PROTOCOLS:
            raise UnsupportedProtocol(
                f"unsupported plugin protocol {quoted(protocol)}. Supported: [{' '.join(PROTOCOLS)}]."
                " Update fastplug, or build the plugin for one of these."
            )
        return cls(
            core_version=core_version,
            app_version=app_version,
            network=network,
            address=address,
            protocol=protocol,
            server_cert=_certificate(fields[5] if len(fields) > 5 else ""),
            multiplex=_multiplex(fields[6] if len(fields) > 6 else "", wanted=multiplex_wanted),
        )


def _number(text: str) -> int | None:
    return int(text) if _NUMBER.fullmatch(text) else None


def _unrecognized(text: str, why: str) -> HandshakeError:
    return HandshakeError(
        f"Unrecognized remote plugin message: {quoted(text)}: {why}. The program is no plugin, or it printed this to stdout before its"
        " handshake line: in the plugin, print to stderr until it serves."
    )


def _core_version(field: str, text: str) -> int:
    version = _number(field)
    if version is None:
        raise _unrecognized(text, f"error parsing core protocol version: {quoted(field)} is not a decimal number")
    if version != CORE_VERSION:
        raise IncompatibleVersion(
            f"incompatible core API version with plugin. Plugin version: {version}, Core version: {CORE_VERSION}."
            " To fix this, the plugin usually only needs to be recompiled. Please report this to the plugin author."
        )
    return version


def _certificate(field: str) -> bytes:
    if len(field) < CERT_CHARS_MIN:
        return b""
    try:
        if "=" in field:
            raise ValueError("padding is not allowed")
        # Go: base64.RawStdEncoding, which knows no padding
        return base64.b64decode(field + "=" * (-len(field) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise HandshakeError(
            f"error parsing server cert: illegal base64 data ({error}). The plugin must send its DER in unpadded standard base64."
            " Report this to the plugin author."
        ) from error


def _multiplex(field: str, *, wanted: bool) -> bool | None:
    supported = _BOOLS.get(field)
    if not wanted or supported:
        return supported
    if not field:
        raise UnsupportedProtocol(
            "client requested gRPC broker multiplexing but plugin does not support the feature; for Go plugins, you will need to update the"
            " github.com/hashicorp/go-plugin dependency and recompile. Or switch multiplexing off in this host."
        )
    if supported is None:
        raise HandshakeError(
            f"error parsing {quoted(field)} as a boolean for gRPC broker multiplexing support. Report this to the plugin author."
        )
    raise UnsupportedProtocol(
        "client requested gRPC broker multiplexing but plugin does not support the feature. Switch multiplexing off in this host."
    )


class LineReader:
    """Finds the handshake line in what a plugin writes to stdout. Not thread-safe; one reader per plugin.

    ``skipped``: the lines before it (each cut at 200 characters), for error texts. ``rest``: the bytes behind it.
    """

    def __init__(self, *, multiplex_wanted: bool = False) -> None:
        self.skipped: list[str] = []
        self.line: HandshakeLine | None = None
        self._multiplex_wanted = multiplex_wanted
        self._buffer = bytearray()

    @property
    def rest(self) -> bytes:
        """What came behind the line so far; it belongs to whoever drains stdout from now on."""
        return bytes(self._buffer) if self.line is not None else b""

    def feed(self, data: bytes) -> HandshakeLine | None:
        """Take the next bytes; the line as soon as it is complete. Bytes behind it go to ``rest``.

        Raises what HandshakeLine.parse raises, HandshakeError for a line over 64 KiB, or for the 65th line without ``|``.
        """
        self._buffer += data
        while self.line is None:
            end = self._buffer.find(b"\n")
            if (end if end >= 0 else len(self._buffer)) > LINE_BYTES_MAX:
                raise _unrecognized(_decode(self._buffer[: QUOTED_CHARS_MAX + 1]), f"a line of more than {LINE_BYTES_MAX} bytes")
            if end < 0:
                return None
            text = _decode(self._buffer[:end])
            del self._buffer[: end + 1]
            if "|" in text:
                self.line = HandshakeLine.parse(text, multiplex_wanted=self._multiplex_wanted)
            else:
                self._skip(text)
        return self.line

    def eof(self) -> str:
        """What to say when stdout ended before the line: a text for the error that the caller raises."""
        if self._buffer:
            said = f"it ended in the middle of a line: {quoted(_decode(self._buffer))}"
        elif self.skipped:
            shown = ", ".join(quoted(line) for line in self.skipped[-3:])
            said = f"it printed {len(self.skipped)} lines that are no handshake line, the last ones: {shown}"
        else:
            said = "failed to read any lines from plugin's stdout"
        return f"plugin exited before we could connect: {said}. Run it by hand to see why, and look at its last lines on stderr."

    def _skip(self, text: str) -> None:
        self.skipped.append(text.strip()[:QUOTED_CHARS_MAX])
        if len(self.skipped) > SKIPPED_LINES_MAX:
            raise _unrecognized(text, f"the {len(self.skipped)}th line on stdout without a handshake line")


def _decode(line: bytes | bytearray) -> str:
    # surrogateescape: a socket path may be any bytes, and must come back as the same ones
    return line.decode("utf-8", "surrogateescape")
