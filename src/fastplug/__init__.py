"""fastplug: typed plugins in processes of their own, at the speed of the machine.

A map of the package, from what a user sees down; imports point down only:

    faces        api.py                       open, start, serve, empty, Spec
    roles        client.py  server.py         the host's and the plugin's part
    agreement    handshake/  protocols/       who speaks what; fast, grpc, inproc
    resources    process/  shm/               processes, shared memory
    languages    _wire*.pyx                   frames and values
    words        errors.py config.py annotation.py signature.py interfaces.py plugin.py protocol.py deadlines.py contexts.py

Names are loaded when they are first used: importing the package costs next to nothing.
"""

from __future__ import annotations

# Both type checkers know the name; importing typing for it would be most of the cost of `import fastplug`.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from fastplug.api import Options, ServeOptions, Spec, client_of, empty, open, proto_of, serve, start  # noqa: A004  the word of the field
    from fastplug.broker import BrokerListener, BrokerServer, GRPCBroker
    from fastplug.client import Client
    from fastplug.config import DEFAULT_HANDSHAKE, ClientConfig, Curve, HandshakeConfig, OnHostExit, ServeConfig, Target, Tls, Transport
    from fastplug.contexts import Context, context, metadata
    from fastplug.deadlines import deadline
    from fastplug.errors import (
        ArenaExhausted,
        ArgumentError,
        BrokerTimeout,
        Cancelled,
        ChecksumMismatch,
        Closed,
        ConfigError,
        CopyRequired,
        DeadlineExceeded,
        HandshakeError,
        HandshakeTimeout,
        IncompatibleVersion,
        InterfaceMismatch,
        LocalProtocolError,
        PluginDied,
        PluginError,
        ProcessNotFound,
        ProtocolError,
        RemoteError,
        RemoteProtocolError,
        ResultError,
        RpcError,
        StartError,
        TlsRefused,
        UnsupportedProtocol,
    )
    from fastplug.interfaces import interface, optional
    from fastplug.plugin import GRPCPlugin, InterfacePlugin, Plugin, PluginSet, grpc_plugin
    from fastplug.process.runner import Runner, RunnerFactory

__all__ = [
    "DEFAULT_HANDSHAKE",
    "ArenaExhausted",
    "ArgumentError",
    "BrokerListener",
    "BrokerServer",
    "BrokerTimeout",
    "Cancelled",
    "ChecksumMismatch",
    "Client",
    "ClientConfig",
    "Closed",
    "ConfigError",
    "Context",
    "CopyRequired",
    "Curve",
    "DeadlineExceeded",
    "GRPCBroker",
    "GRPCPlugin",
    "HandshakeConfig",
    "HandshakeError",
    "HandshakeTimeout",
    "IncompatibleVersion",
    "InterfaceMismatch",
    "InterfacePlugin",
    "LocalProtocolError",
    "OnHostExit",
    "Options",
    "Plugin",
    "PluginDied",
    "PluginError",
    "PluginSet",
    "ProcessNotFound",
    "ProtocolError",
    "RemoteError",
    "RemoteProtocolError",
    "ResultError",
    "RpcError",
    "Runner",
    "RunnerFactory",
    "ServeConfig",
    "ServeOptions",
    "Spec",
    "StartError",
    "Target",
    "Tls",
    "TlsRefused",
    "Transport",
    "UnsupportedProtocol",
    "client_of",
    "context",
    "deadline",
    "empty",
    "grpc_plugin",
    "interface",
    "metadata",
    "open",
    "optional",
    "proto_of",
    "serve",
    "start",
]

_PLACES = {
    "fastplug.api": ("Options", "ServeOptions", "Spec", "client_of", "empty", "open", "proto_of", "serve", "start"),
    "fastplug.broker": ("BrokerListener", "BrokerServer", "GRPCBroker"),
    "fastplug.client": ("Client",),
    "fastplug.config": (
        "DEFAULT_HANDSHAKE",
        "ClientConfig",
        "Curve",
        "HandshakeConfig",
        "OnHostExit",
        "ServeConfig",
        "Target",
        "Tls",
        "Transport",
    ),
    "fastplug.contexts": ("Context", "context", "metadata"),
    "fastplug.deadlines": ("deadline",),
    "fastplug.interfaces": ("interface", "optional"),
    "fastplug.plugin": ("GRPCPlugin", "InterfacePlugin", "Plugin", "PluginSet", "grpc_plugin"),
    "fastplug.process.runner": ("Runner", "RunnerFactory"),
}


def __getattr__(name: str) -> object:
    import importlib

    if name not in __all__:
        raise AttributeError(f"module 'fastplug' has no attribute {name!r}")
    place = next((module for module, names in _PLACES.items() if name in names), "fastplug.errors")
    found: object = getattr(importlib.import_module(place), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
