"""How to reach a plugin that runs already (go-plugin: ReattachConfig), and the JSON in which it is handed on. Pure.

Terraform reads such JSON from TF_REATTACH_PROVIDERS, and a plugin in test mode prints it:

    {"<name>": {"Protocol": "grpc", "ProtocolVersion": 5, "Pid": 1, "Test": true, "Addr": {"Network": "unix", "String": "/path"}}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from fastplug.errors import ConfigError

__all__ = ["ReattachConfig", "format_reattach", "parse_reattach"]

# A pid of Linux is below 2^22, of other systems below 2^31; a larger number never was one.
PID_MAX: Final = 2**31 - 1
VERSION_MAX: Final = 10**9 - 1
# A host reattaches to a handful of plugins; what is longer is no such text.
TEXT_CHARS_MAX: Final = 1 << 20
# An error text quotes enough to recognise a value, too little to flood a log.
SHOWN_CHARS_MAX: Final = 200

_PROTOCOLS: Final = ("grpc", "netrpc")
_NETWORKS: Final = ("unix", "tcp")


@dataclass(frozen=True, slots=True)
class ReattachConfig:
    """A running plugin, and how to reach it.

    Args:
        protocol: "grpc" or "netrpc"; a text that names none is "netrpc", as in go-plugin.
        protocol_version: application version that the plugin speaks; 0 takes the host's own, as in go-plugin before 1.4.
        network, address: "unix" and a path, or "tcp" and "ip:port".
        pid: of the plugin; 0 when no process of this machine is known by it. Then its end is only seen by the end of the connection,
            and ``kill`` asks it to end but cannot force it.
        test: the plugin is in test mode and belongs to whoever started it: ``kill`` only lets go of it.

    Raises: ConfigError for values that no plugin has.
    """

    protocol: str
    protocol_version: int
    network: str
    address: str
    pid: int = 0
    test: bool = False

    def __post_init__(self) -> None:
        if self.protocol not in _PROTOCOLS:
            raise ConfigError(f"a plugin can be attached to over {' or '.join(_PROTOCOLS)}, not over {_shown(self.protocol)}")
        if self.network not in _NETWORKS or type(self.address) is not str or not self.address or "\0" in self.address:
            raise ConfigError(
                "the address of a running plugin is unix with a path or tcp with ip:port;"
                f" got {_shown(self.network)} {_shown(self.address)}"
            )
        for name, value, most in (("protocol_version", self.protocol_version, VERSION_MAX), ("pid", self.pid, PID_MAX)):
            if type(value) is not int or not 0 <= value <= most:
                raise ConfigError(f"{name} of a running plugin must be an int from 0 to {most}, got {_shown(value)}")

    def to_json(self) -> dict[str, Any]:
        """The object that stands for it in TF_REATTACH_PROVIDERS."""
        return {
            "Protocol": self.protocol,
            "ProtocolVersion": self.protocol_version,
            "Pid": self.pid,
            "Test": self.test,
            "Addr": {"Network": self.network, "String": self.address},
        }

    @classmethod
    def from_json(cls, value: object) -> ReattachConfig:
        """From such an object. Members that are missing are zero, as in Go; unknown ones are ignored. Raises ConfigError."""
        members = _object(value, "a running plugin")
        address = _object(members.get("Addr"), "Addr")
        test = members.get("Test", False)
        if not isinstance(test, bool):
            raise ConfigError(f"Test of a running plugin must be true or false, got {_shown(test)}")
        return cls(
            protocol=members.get("Protocol") or "netrpc",
            protocol_version=members.get("ProtocolVersion", 0),
            network=address.get("Network", ""),
            address=address.get("String", ""),
            pid=members.get("Pid", 0),
            test=test,
        )


def parse_reattach(text: str) -> dict[str, ReattachConfig]:
    """The plugins in a text like that of TF_REATTACH_PROVIDERS, by name. Raises ConfigError."""
    if len(text) > TEXT_CHARS_MAX:
        raise ConfigError(f"a reattach text of {len(text)} characters is none: at most {TEXT_CHARS_MAX}")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"a reattach text must be a JSON object of names and plugins, got {_shown(text)}: {error}") from error
    return {name: ReattachConfig.from_json(one) for name, one in _object(value, "a reattach text").items()}


def format_reattach(plugins: Mapping[str, ReattachConfig]) -> str:
    """The text for TF_REATTACH_PROVIDERS, in one line."""
    return json.dumps({name: config.to_json() for name, config in plugins.items()})


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{what} must be a JSON object, got {_shown(value)}")
    return value


def _shown(value: object) -> str:
    """As it may stand in an error."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARS_MAX else f"{text[:SHOWN_CHARS_MAX]}..."
