"""What travels in environment variables: go-plugin's own, and fastplug's offer (docs/wire.md, section 1).

Pure: mappings in, mappings and decisions out. An environment is inherited by everything that a process starts, so each side
removes what a host further out left behind, and a plugin honours an offer only if it was made for this very process.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from fastplug.errors import ConfigError, HandshakeError

__all__ = [
    "FAST_VERSIONS",
    "TRANSPORTS",
    "Choice",
    "Handshake",
    "Offer",
    "PluginEnvironment",
    "Refusal",
    "family_marks",
    "honour",
    "host_environment",
    "is_vouched",
    "plugin_environment",
    "vouch_message",
]

FAST_VERSIONS: Final = (1, 2, 3)
TRANSPORTS: Final = ("shm", "socket")
# docs/wire.md: a longer offer is void. A real one has about 60 bytes.
OFFER_BYTES_MAX: Final = 256

# Set by a host for one plugin, and meaningless or harmful to every other process: a stale PLUGIN_CLIENT_CERT, for example,
# makes a plugin send a certificate that crashes a Go host which did not ask for one.
_PROTOCOL_VARIABLES: Final = (
    "PLUGIN_MIN_PORT",
    "PLUGIN_MAX_PORT",
    "PLUGIN_PROTOCOL_VERSIONS",
    "PLUGIN_MULTIPLEX_GRPC",
    "PLUGIN_CLIENT_CERT",
    "PLUGIN_UNIX_SOCKET_GROUP",
    "PLUGIN_UNIX_SOCKET_DIR",
    "FASTPLUG_OFFER",
    "FASTPLUG_LOG_LEVEL",
    "FASTPLUG_STDIO",
)

# A plugin that is a host of plugins, and so on: deeper than anyone builds, and the variable stays below 300 bytes.
FAMILY_DEPTH_MAX: Final = 16
_MARK: Final = re.compile(r"[0-9a-f]{16}")

_DECIMAL: Final = re.compile(r"[0-9]{1,9}")
_TRUE: Final = ("1", "t", "T", "TRUE", "true", "True")  # Go: strconv.ParseBool
_LEVEL_NAMES: Final = {"trace": 5, "debug": 10, "info": 20, "warn": 30, "warning": 30, "error": 40, "critical": 50}


class Handshake(Protocol):
    """The part of HandshakeConfig that this module uses."""

    @property
    def protocol_version(self) -> int: ...
    @property
    def magic_cookie_key(self) -> str: ...
    @property
    def magic_cookie_value(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Offer:
    """The fast protocol, offered by process ``pid`` over the inherited descriptor ``fd``."""

    pid: int
    fd: int
    versions: tuple[int, ...] = FAST_VERSIONS
    transports: tuple[str, ...] = TRANSPORTS

    def format(self) -> str:
        versions = ",".join(map(str, self.versions))
        return f"pid={self.pid};fd={self.fd};fast={versions};transport={','.join(self.transports)}"

    @classmethod
    def parse(cls, text: str | None) -> Offer | None:
        """The offer in the value of FASTPLUG_OFFER; None if it is void. Never raises: in doubt there was no offer."""
        if not text or len(text.encode("utf-8", "surrogatepass")) > OFFER_BYTES_MAX:
            return None
        parts = [part.partition("=") for part in text.split(";")]
        values = {key: value for key, _, value in parts}
        if len(values) != len(parts):
            return None  # a key that comes twice contradicts itself
        pid, fd = _decimals(values.get("pid", "")), _decimals(values.get("fd", ""))
        versions, transports = _decimals(values.get("fast", "")), values.get("transport", "")
        if pid is None or fd is None or versions is None or not transports or len(pid) != 1 or len(fd) != 1:
            return None
        return cls(pid[0], fd[0], versions, tuple(transports.split(",")))


def _decimals(text: str) -> tuple[int, ...] | None:
    parts = text.split(",")
    return tuple(map(int, parts)) if all(_DECIMAL.fullmatch(part) for part in parts) else None


@dataclass(frozen=True, slots=True)
class Choice:
    """What a plugin took from an offer; ``format()`` is field 4 of its line."""

    fd: int
    version: int
    transport: str

    def format(self) -> str:
        return f"{self.fd}/{self.version}/{self.transport}"

    @classmethod
    def parse(cls, address: str) -> Choice | None:
        parts = address.split("/")
        if len(parts) != 3 or not (_DECIMAL.fullmatch(parts[0]) and _DECIMAL.fullmatch(parts[1]) and parts[2]):
            return None
        return cls(int(parts[0]), int(parts[1]), parts[2])


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an offer is not taken. The plugin then speaks gRPC, as an unmodified go-plugin host expects."""

    reason: str


# docs/wire.md, "The offer": the control message in which a host vouches. Far from the types of the conversation, which skips it.
VOUCH_TYPE: Final = 100
_VOUCH_HEAD: Final = struct.Struct("<IHH")


def vouch_message(offer: Offer) -> bytes:
    """What a host puts into the control socket, before it starts the plugin, when its runner vouches that environment and descriptor
    reach this plugin and nobody else: the plugin need not be its child then."""
    body = json.dumps({"offer": offer.format()}).encode()
    return _VOUCH_HEAD.pack(len(body), VOUCH_TYPE, 0) + body


def is_vouched(offer: Offer | None, received: bytes) -> bool:
    """Plugin: do the first bytes in the offered descriptor vouch for ``offer``? Nobody else can have put them there. Never raises."""
    if offer is None or len(received) < _VOUCH_HEAD.size:
        return False
    size, kind, _ = _VOUCH_HEAD.unpack_from(received)
    body = received[_VOUCH_HEAD.size : _VOUCH_HEAD.size + size]
    if kind != VOUCH_TYPE or len(body) < size:
        return False
    try:
        vouched = json.loads(body)
    except (ValueError, RecursionError):
        return False
    text = vouched.get("offer") if isinstance(vouched, dict) else None
    return isinstance(text, str) and Offer.parse(text) == offer


def honour(
    offer: Offer | None,
    *,
    parent_pid: int,
    peer_pid_of_fd: int | None,
    vouched: bool = False,
    versions: Collection[int] = FAST_VERSIONS,
    transports: Collection[str] = TRANSPORTS,
) -> Choice | Refusal:
    """Decide whether this plugin takes the offer, and with which version (the highest shared one) and transport (the host's order).

    ``peer_pid_of_fd`` is SO_PEERCRED's pid of the offered descriptor, None if that is no open Unix stream socket. ``vouched``: what lies in
    that socket vouches for this offer; the pids may then be anything (0 for a process of another pid namespace).
    """
    if offer is None:
        return Refusal("there is no valid FASTPLUG_OFFER")
    if peer_pid_of_fd is None and vouched:
        return Refusal(f"descriptor {offer.fd} is no Unix stream socket")
    if not vouched and parent_pid != offer.pid:
        return Refusal(f"the offer was made by process {offer.pid}, but the parent is process {parent_pid}")
    if not vouched and peer_pid_of_fd != offer.pid:
        return Refusal(f"descriptor {offer.fd} is no Unix stream socket whose other end belongs to process {offer.pid}")
    shared = set(versions).intersection(offer.versions)
    if not shared:
        return Refusal(f"no version of the fast protocol is shared: offered {offer.versions}, known {tuple(versions)}")
    transport = next((name for name in offer.transports if name in transports), None)
    if transport is None:
        return Refusal(f"no transport is shared: offered {offer.transports}, known {tuple(transports)}")
    return Choice(offer.fd, max(shared), transport)


def host_environment(
    base: Mapping[str, str],
    user_env: Mapping[str, str],
    handshake: Handshake,
    *,
    versions: Collection[int],
    offer: Offer | None = None,
    min_port: int = 10000,
    max_port: int = 25000,
    client_cert: str | None = None,
    multiplex: bool = False,
    socket_dir: str | None = None,
    socket_group: str | None = None,
    log_level: int | None = None,
    family: str | None = None,
    stream_stdio: bool = False,
) -> dict[str, str]:
    """The environment of a plugin to start.

    ``base`` is the environment that it inherits, ``user_env`` wins over it (unlike in go-plugin, where the host's own wins), and
    the variables of the handshake win over both. What an outer host left in ``base`` for another plugin is gone, except its family's
    marks, which ``family`` continues (see `family_marks`).
    Raises ConfigError for a handshake or variable that cannot be passed.
    """
    made = {
        handshake.magic_cookie_key: handshake.magic_cookie_value,
        "PLUGIN_MIN_PORT": str(min_port),
        "PLUGIN_MAX_PORT": str(max_port),
        "PLUGIN_PROTOCOL_VERSIONS": ",".join(map(str, sorted(versions))),
        "PLUGIN_MULTIPLEX_GRPC": "true" if multiplex else None,
        "PLUGIN_CLIENT_CERT": client_cert,
        "PLUGIN_UNIX_SOCKET_GROUP": socket_group,
        "PLUGIN_UNIX_SOCKET_DIR": socket_dir,
        "FASTPLUG_OFFER": offer.format() if offer is not None else None,
        "FASTPLUG_LOG_LEVEL": str(log_level) if log_level is not None else None,
        "FASTPLUG_FAMILY": family,
        "FASTPLUG_STDIO": "stream" if stream_stdio else None,
    }
    if not handshake.magic_cookie_value:
        raise ConfigError("the handshake has no magic cookie value. Set HandshakeConfig.magic_cookie_key and magic_cookie_value.")
    inherited = {name: value for name, value in {**base, **user_env}.items() if name not in _PROTOCOL_VARIABLES}
    environment = {**inherited, **{name: value for name, value in made.items() if value is not None}}
    for name, value in {**user_env, **{n: environment[n] for n in made if n in environment}}.items():
        _check_variable(name, value)
    return environment


def family_marks(inherited: str, own: str) -> str:
    """The value of FASTPLUG_FAMILY for a plugin with the mark ``own``: behind the marks of the hosts further out, so that each of them
    finds what its plugin left behind. It stays in the plugin's environment, and so in that of all that it starts."""
    outer = [mark for mark in inherited.split(":") if _MARK.fullmatch(mark)]
    return ":".join([*outer[-(FAMILY_DEPTH_MAX - 1) :], own])


def _check_variable(name: object, value: object) -> None:
    if not isinstance(name, str) or not isinstance(value, str):
        raise ConfigError(f"the environment variable {name!r} = {value!r} must be a string with a string value. Convert it with str().")
    if not name or "=" in name or "\0" in name or "\0" in value:
        raise ConfigError(f"the environment variable {name!r} cannot be passed: no empty name, no '=' in it, no NUL in name or value.")


@dataclass(frozen=True, slots=True)
class PluginEnvironment:
    """What a plugin finds in its environment.

    ``versions`` is empty under a host that offers none; ``invalid_versions`` are items of the list that are no numbers;
    ``log_level`` is a logging level or None; ``stream_stdio`` whether the host reads stdout and stderr over gRPC rather than in the log
    (only a fastplug host, which names a log level, can say that it does not); ``remove`` are the names to take out of ``os.environ``
    once serving is decided.
    """

    cookie: str | None
    versions: tuple[int, ...]
    invalid_versions: tuple[str, ...]
    offer: Offer | None
    client_cert: str
    multiplex: str
    min_port: str
    max_port: str
    socket_dir: str | None
    socket_group: str | None
    log_level: int | None
    stream_stdio: bool
    remove: tuple[str, ...]

    @property
    def multiplexes(self) -> bool | None:
        """Whether the host multiplexes its broker; None for one that does not ask, which must not see a seventh field in the line.

        What is neither true nor false to Go counts as false: the host then says what is wrong.
        """
        return self.multiplex in _TRUE if self.multiplex else None

    def ports(self) -> tuple[int, int]:
        """The range for a TCP listener, (0, 0) for any port. Raises HandshakeError for a range that is none."""
        low, high = (_port(name, text) for name, text in (("PLUGIN_MIN_PORT", self.min_port), ("PLUGIN_MAX_PORT", self.max_port)))
        if low > high:
            raise HandshakeError(
                f"PLUGIN_MIN_PORT value of {low} is greater than PLUGIN_MAX_PORT value of {high}. Correct the port range in the host."
            )
        return low, high


def _port(name: str, text: str) -> int:
    if not text:
        return 0
    if not _DECIMAL.fullmatch(text) or int(text) > 65535:
        raise HandshakeError(f"couldn't get value from {name}: {text[:64]!r} is no port number. Correct the port range in the host.")
    return int(text)


def plugin_environment(environ: Mapping[str, str], *, cookie_key: str) -> PluginEnvironment:
    """Read a plugin's environment. Never raises: what is malformed counts as absent, or is named in the result."""
    items = [item.strip() for item in environ.get("PLUGIN_PROTOCOL_VERSIONS", "").split(",") if item.strip()]
    return PluginEnvironment(
        cookie=environ.get(cookie_key),
        versions=tuple(int(item) for item in items if _DECIMAL.fullmatch(item)),
        invalid_versions=tuple(item for item in items if not _DECIMAL.fullmatch(item)),
        offer=Offer.parse(environ.get("FASTPLUG_OFFER")),
        client_cert=environ.get("PLUGIN_CLIENT_CERT", ""),
        multiplex=environ.get("PLUGIN_MULTIPLEX_GRPC", ""),
        min_port=environ.get("PLUGIN_MIN_PORT", ""),
        max_port=environ.get("PLUGIN_MAX_PORT", ""),
        socket_dir=environ.get("PLUGIN_UNIX_SOCKET_DIR") or None,
        socket_group=environ.get("PLUGIN_UNIX_SOCKET_GROUP") or None,
        log_level=_log_level(environ.get("FASTPLUG_LOG_LEVEL", "")),
        stream_stdio="FASTPLUG_LOG_LEVEL" not in environ or environ.get("FASTPLUG_STDIO") == "stream",
        remove=tuple(name for name in (cookie_key, *_PROTOCOL_VARIABLES) if name in environ),
    )


def _log_level(text: str) -> int | None:
    text = text.strip().lower()
    return int(text) if _DECIMAL.fullmatch(text) else _LEVEL_NAMES.get(text)
