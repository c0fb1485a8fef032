"""Who speaks what: the cookie, the application version, and whether the host accepts the plugin's line. Pure.

Versions: the host offers a set; the plugin takes its own highest one that was offered, or else announces its lowest and leaves
it to the host to complain (so a host of any age can say what is wrong).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from fastplug.errors import ConfigError, HandshakeError, IncompatibleVersion, UnsupportedProtocol
from fastplug.handshake.environment import Choice, Handshake, Offer
from fastplug.handshake.line import HandshakeLine, quoted

__all__ = ["accept", "choose_protocols", "choose_version", "cookie_refusal"]

# go-plugin's texts, word for word: people search for them
_MISCONFIGURED = (
    "Misconfigured ServeConfig given to serve this plugin: no magic cookie\n"
    "key or value was set. Please notify the plugin author and report\n"
    "this as a bug.\n"
)
_NOT_DIRECTLY = (
    "This binary is a plugin. These are not meant to be executed directly.\n"
    "Please execute the program that consumes these plugins, which will\n"
    "load any plugins automatically\n"
)


def cookie_refusal(handshake: Handshake, cookie: str | None) -> str | None:
    """Plugin: what to write to stderr before exit code 1, or None if the cookie (the variable's value) is right."""
    if not handshake.magic_cookie_key or not handshake.magic_cookie_value:
        return _MISCONFIGURED
    return None if cookie == handshake.magic_cookie_value else _NOT_DIRECTLY


def choose_version(own: Iterable[int], offered: Collection[int]) -> int:
    """Plugin: the application version to announce. Raises ConfigError if the plugin has none at all."""
    descending = sorted(own, reverse=True)
    if not descending:
        raise ConfigError("this plugin serves nothing: give serve() plugins, versioned_plugins or an implementation.")
    return next((version for version in descending if version in offered), descending[-1])


def choose_protocols(carriers: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Plugin: the protocols that can carry the whole set of the chosen version, preferred first. One program may so speak net/rpc in one
    version and gRPC in another. (go-plugin asks the first plugin of the set only, which with a mixed one is whichever comes first.)

    Args: ``carriers``: name -> the protocols of that plugin.
    Raises: ConfigError when no protocol can carry them all.
    """
    everybody = list(carriers.values())
    shared = tuple(name for name in everybody[0] if all(name in others for others in everybody)) if everybody else ()
    if everybody and not shared:
        told = "; ".join(f"{name} speaks {' or '.join(protocols) or 'nothing'}" for name, protocols in carriers.items())
        raise ConfigError(
            f"the plugins of one version must share a protocol: {told}. Put them into different versions (versioned_plugins=)."
        )
    return shared


def accept(
    line: HandshakeLine, *, versions: Collection[int], allowed_protocols: Sequence[str], offer: Offer | None = None
) -> Choice | None:
    """Host: check the plugin's line against what was offered; what it took of ``offer``, or None for another protocol.

    Raises IncompatibleVersion (application version), UnsupportedProtocol (not allowed), HandshakeError (took what was not offered).
    """
    if line.app_version not in versions:
        raise IncompatibleVersion(
            f"incompatible API version with plugin. Plugin version: {line.app_version}, Client versions: {sorted(versions)}."
            " Update the older of the two, or let one of them serve both versions (versioned_plugins=)."
        )
    if line.protocol not in allowed_protocols:
        raise UnsupportedProtocol(
            f"unsupported plugin protocol {quoted(line.protocol)}. Supported: [{' '.join(allowed_protocols)}]."
            f" {_advice(line.protocol, offer)}"
        )
    if line.protocol == "fast":
        return _accept_choice(line, offer)
    if line.network == "inherit":
        raise HandshakeError(
            f"the plugin speaks {line.protocol} over an inherited descriptor, which only the fast protocol does."
            " Report this to the plugin author."
        )
    return None


def _advice(protocol: str, offer: Offer | None) -> str:
    if offer is None or protocol == "fast":
        return "Allow it in this host (allowed_protocols=, transport=), or serve another one in the plugin."
    return (
        "The plugin did not take the offer of the fast protocol: it is no fastplug plugin, an incompatible one, or not a direct child of"
        " this process (a shell or launcher in between). Start it directly, or allow gRPC (transport='grpc', or none)."
    )


def _accept_choice(line: HandshakeLine, offer: Offer | None) -> Choice:
    choice = Choice.parse(line.address)
    if (
        choice is None
        or offer is None
        or line.network != "inherit"
        or choice.fd != offer.fd
        or choice.version not in offer.versions
        or choice.transport not in offer.transports
    ):
        offered = "nothing" if offer is None else quoted(offer.format())
        raise HandshakeError(
            f"the plugin took {quoted(line.address)} ({line.network}) of the fast protocol, but {offered} was offered."
            " Report this to the plugin author."
        )
    return choice
