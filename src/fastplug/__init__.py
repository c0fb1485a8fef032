"""fastplug: typed plugins in processes of their own, at the speed of the machine.

A map of the package, from what a user sees down; imports point down only:

    faces        api.py                       open, start, serve, submit, map, empty, Spec
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
    from fastplug import presets
    from fastplug.api import (
        OnError,
        Options,
        Results,
        ServeOptions,
        Spec,
        client_of,
        empty,
        empty_like,
        grpc_service,
        map,  # noqa: A004  the word of the field
        open,  # noqa: A004  the word of the field
        private,
        proto_of,
        reattach,
        serve,
        serve_mux,
        start,
        submit,
        writable,
    )
    from fastplug.broker import BrokerListener, BrokerServer, GRPCBroker
    from fastplug.client import Client
    from fastplug.config import (
        DEFAULT_HANDSHAKE,
        ByteSink,
        ClientConfig,
        Curve,
        HandshakeConfig,
        Network,
        OnHostExit,
        ServeConfig,
        ServeTestConfig,
        Target,
        Tls,
        Transport,
        UnixSocketConfig,
    )
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
        ConnectionLost,
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
    from fastplug.life import cleanup_clients
    from fastplug.plugin import GRPCPlugin, InterfacePlugin, Plugin, PluginSet, grpc_plugin
    from fastplug.process.discovery import discover
    from fastplug.process.runner import AddressTranslator, AttachedRunner, Detachable, Runner, RunnerFactory
    from fastplug.protocols._remote import Call
    from fastplug.reattach_config import ReattachConfig, format_reattach, parse_reattach
    from fastplug.secure import SecureConfig
    from fastplug.shm.arena import Arena

__all__ = [
    "DEFAULT_HANDSHAKE",
    "AddressTranslator",
    "Arena",
    "ArenaExhausted",
    "ArgumentError",
    "AttachedRunner",
    "BrokerListener",
    "BrokerServer",
    "BrokerTimeout",
    "ByteSink",
    "Call",
    "Cancelled",
    "ChecksumMismatch",
    "Client",
    "ClientConfig",
    "Closed",
    "ConfigError",
    "ConnectionLost",
    "Context",
    "CopyRequired",
    "Curve",
    "DeadlineExceeded",
    "Detachable",
    "GRPCBroker",
    "GRPCPlugin",
    "HandshakeConfig",
    "HandshakeError",
    "HandshakeTimeout",
    "IncompatibleVersion",
    "InterfaceMismatch",
    "InterfacePlugin",
    "LocalProtocolError",
    "Network",
    "OnError",
    "OnHostExit",
    "Options",
    "Plugin",
    "PluginDied",
    "PluginError",
    "PluginSet",
    "ProcessNotFound",
    "ProtocolError",
    "ReattachConfig",
    "RemoteError",
    "RemoteProtocolError",
    "ResultError",
    "Results",
    "RpcError",
    "Runner",
    "RunnerFactory",
    "SecureConfig",
    "ServeConfig",
    "ServeOptions",
    "ServeTestConfig",
    "Spec",
    "StartError",
    "Target",
    "Tls",
    "TlsRefused",
    "Transport",
    "UnixSocketConfig",
    "UnsupportedProtocol",
    "cleanup_clients",
    "client_of",
    "context",
    "deadline",
    "discover",
    "empty",
    "empty_like",
    "format_reattach",
    "grpc_plugin",
    "grpc_service",
    "interface",
    "map",
    "metadata",
    "open",
    "optional",
    "parse_reattach",
    "presets",
    "private",
    "proto_of",
    "reattach",
    "serve",
    "serve_mux",
    "start",
    "submit",
    "writable",
]

_PLACES = {
    "fastplug.broker": ("BrokerListener", "BrokerServer", "GRPCBroker"),
    "fastplug.api": (
        "OnError",
        "Options",
        "Results",
        "ServeOptions",
        "Spec",
        "client_of",
        "empty",
        "empty_like",
        "grpc_service",
        "map",
        "open",
        "private",
        "proto_of",
        "reattach",
        "serve",
        "serve_mux",
        "start",
        "submit",
        "writable",
    ),
    "fastplug.client": ("Client",),
    "fastplug.config": (
        "DEFAULT_HANDSHAKE",
        "ByteSink",
        "ClientConfig",
        "Curve",
        "HandshakeConfig",
        "Network",
        "OnHostExit",
        "ServeConfig",
        "ServeTestConfig",
        "Target",
        "Tls",
        "Transport",
        "UnixSocketConfig",
    ),
    "fastplug.contexts": ("Context", "context", "metadata"),
    "fastplug.deadlines": ("deadline",),
    "fastplug.reattach_config": ("ReattachConfig", "format_reattach", "parse_reattach"),
    "fastplug.interfaces": ("interface", "optional"),
    "fastplug.plugin": ("GRPCPlugin", "InterfacePlugin", "Plugin", "PluginSet", "grpc_plugin"),
    "fastplug.life": ("cleanup_clients",),
    "fastplug.secure": ("SecureConfig",),
    "fastplug.process.discovery": ("discover",),
    "fastplug.shm.arena": ("Arena",),
    "fastplug.process.runner": ("AddressTranslator", "AttachedRunner", "Detachable", "Runner", "RunnerFactory"),
    "fastplug.protocols._remote": ("Call",),
}


def __getattr__(name: str) -> object:
    import importlib

    if name not in __all__:
        raise AttributeError(f"module 'fastplug' has no attribute {name!r}")
    if name == "presets":  # a module
        return importlib.import_module("fastplug.presets")
    place = next((module for module, names in _PLACES.items() if name in names), "fastplug.errors")
    found: object = getattr(importlib.import_module(place), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
