"""The plugin's role: check the cookie, negotiate, print the line, serve until the host asks for the end or is gone (go-plugin: Serve)."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import stat
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastplug.certificates import plugin_tls
from fastplug.config import ServeConfig
from fastplug.errors import ConfigError
from fastplug.handshake.environment import Choice, Offer, PluginEnvironment, honour, plugin_environment
from fastplug.handshake.line import HandshakeLine
from fastplug.handshake.negotiation import choose_version, cookie_refusal
from fastplug.interfaces import Interface
from fastplug.plugin import GRPCPlugin, InterfacePlugin, PluginSet, served_interfaces, set_up
from fastplug.process.stdio import PluginStdio
from fastplug.process.terminal import enable_debuggers
from fastplug.protocol import PluginContext, ServerProtocol, protocol_named
from fastplug.shm._segment import available
from fastplug.shm.watcher import watcher

__all__ = ["serve_config", "served_plugins"]

_log = logging.getLogger("fastplug.server")

# After the host is gone the call in hand may finish for as long as a host waits after Shutdown (go-plugin: 2 s).
HOST_GONE_GRACE_S = 2.0
# What a process that was told to go, and did not, exits with.
HOST_GONE_EXIT_CODE = 1


def served_plugins(implementations: tuple[Any, ...], interfaces: tuple[Any, ...]) -> dict[str, InterfacePlugin[Any]]:
    """One InterfacePlugin per interface of the implementation, by name. Raises ConfigError."""
    from fastplug.interfaces import interface_of, interfaces_of

    plugins: dict[str, InterfacePlugin[Any]] = {}
    for implementation in implementations:
        if isinstance(implementation, type):
            raise ConfigError(f"serve() takes an implementation, not its class: serve({implementation.__qualname__}())")
        found = [interface_of(iface) for iface in interfaces] or interfaces_of(implementation)
        if not found:
            raise ConfigError(
                f"{type(implementation).__qualname__} implements no fastplug interface: derive it from a class with @fastplug.interface, "
                "or name the interfaces: serve(implementation, Interface)"
            )
        for interface in found:
            plugins[interface.name] = InterfacePlugin(interface.cls, implementation)
    return plugins


def serve_config(config: ServeConfig) -> None:
    """Serves as ``config`` says; returns when the host has asked for the end or is gone. To be called on the main thread.

    Raises:
        SystemExit: with 1, when this process was not started by a host (no cookie), as go-plugin does.
        ConfigError: a configuration that cannot be served: nothing, or an implementation that lacks a method.
    """
    environment = plugin_environment(os.environ, cookie_key=config.handshake.magic_cookie_key)
    refusal = cookie_refusal(config.handshake, environment.cookie)
    if refusal is not None:
        sys.stderr.write(refusal + _started_by_hand(config))
        raise SystemExit(1)
    for name in environment.remove:
        os.environ.pop(name, None)
    for item in environment.invalid_versions:
        sys.stderr.write(f"server sent invalid plugin version {item!r}\n")
    versions = config.served_versions()
    version = choose_version(versions, environment.versions)
    served = served_interfaces(versions[version])
    if not served and not any(isinstance(plugin, GRPCPlugin) for plugin in versions[version].values()):
        raise ConfigError("serve() has nothing to serve: pass an implementation of an interface, or plugins=")
    with contextlib.ExitStack() as stack:
        stdio = PluginStdio(environment.log_level)
        stack.callback(stdio.close)
        stack.callback(enable_debuggers())
        stack.enter_context(set_up(served))  # before the line is printed
        server, name, cert = _make_server(config, environment, versions[version], served)
        stack.callback(server.close)
        multiplex = False if environment.multiplex else None
        line = HandshakeLine(version, server.network, server.address, name, server_cert=cert, multiplex=multiplex)
        with _deaf_to_interrupts(), _watching_host(config, server):
            stdio.write_line(line.format())
            server.run()


def _started_by_hand(config: ServeConfig) -> str:
    """More than go-plugin says: what this is, and how to use it."""
    try:
        plugins = [plugin for plugins in config.served_versions().values() for plugin in plugins.values()]
        names = ", ".join(sorted({plugin.interface.name for plugin in plugins if isinstance(plugin, InterfacePlugin)}))
    except ConfigError:
        names = ""
    script = Path(sys.argv[0]).name or "this file"
    return f"\nIt serves {names or 'nothing'}. From Python: fastplug.open({script!r}, YourInterface)\n"


def _make_server(
    config: ServeConfig, environment: PluginEnvironment, plugins: PluginSet, served: list[tuple[Interface, Any]]
) -> tuple[ServerProtocol, str, bytes]:
    """The fast protocol when the offer is honoured, else gRPC, which every go-plugin host speaks; its name, and the certificate to show."""
    context = PluginContext(
        config=config, interfaces=served, plugins=plugins, socket_dir=environment.socket_dir, socket_group=environment.socket_group
    )
    if config.tls_provider is not None or any(isinstance(plugin, GRPCPlugin) for plugin in plugins.values()):
        return _make_grpc_server(context, environment)  # nothing else carries it
    control = _control_socket(environment.offer)
    choice = honour(
        environment.offer,
        parent_pid=os.getppid(),
        peer_pid_of_fd=_peer_pid(control) if control is not None else None,
        transports=_transports(),
    )
    if isinstance(choice, Choice):
        context.control, context.transport, context.version = control, choice.transport, choice.version
        return protocol_named("fast").serve(context), "fast", b""
    if environment.offer is not None:
        _log.info("the fast protocol is not used: %s", choice.reason)
    if control is not None:
        control.detach()  # it is somebody else's descriptor
    return _make_grpc_server(context, environment)


def _make_grpc_server(context: PluginContext, environment: PluginEnvironment) -> tuple[ServerProtocol, str, bytes]:
    context.tls, cert = plugin_tls(context.config, environment.client_cert)
    return protocol_named("grpc").serve(context), "grpc", cert


def _transports() -> tuple[str, ...]:
    """What this process can do."""
    return ("shm", "socket") if available() else ("socket",)


def _control_socket(offer: Offer | None) -> socket.socket | None:
    """The offered descriptor, when it is an open stream socket at all."""
    if offer is None or offer.fd <= 2:
        return None
    try:
        if not stat.S_ISSOCK(os.fstat(offer.fd).st_mode):
            return None
        found = socket.socket(fileno=offer.fd)
    except OSError:
        return None
    if found.family != socket.AF_UNIX or found.type != socket.SOCK_STREAM:
        found.detach()
        return None
    os.set_inheritable(offer.fd, False)  # the plugin's own children have no business with it
    return found


def _peer_pid(control: socket.socket) -> int | None:
    """Who made the socketpair (SO_PEERCRED)."""
    if not hasattr(socket, "SO_PEERCRED"):
        return os.getppid()  # elsewhere than on Linux the parent's pid in the offer has to do
    try:
        raw = control.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    except OSError:
        return None
    pid: int = struct.unpack("3i", raw)[0]
    return pid


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Ctrl-C at the terminal is for the host, which then ends its plugins (go-plugin: the plugin ignores SIGINT)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _watching_host(config: ServeConfig, server: ServerProtocol) -> Iterator[None]:
    """Ends the plugin when its parent is gone, whatever protocol it speaks; a host of another kind has no warden."""
    if config.on_host_exit == "stay" or not hasattr(os, "pidfd_open"):
        yield
        return
    parent = os.getppid()
    try:
        pidfd = os.pidfd_open(parent)
    except OSError:
        yield  # it is gone already: the connection will say so
        return

    def host_gone() -> None:
        watcher().remove(pidfd)
        _log.info("the host is gone; the plugin ends")
        timer = threading.Timer(HOST_GONE_GRACE_S, os._exit, (HOST_GONE_EXIT_CODE,))
        timer.daemon = True
        timer.start()
        server.stop()

    watcher().add(pidfd, host_gone)
    try:
        yield
    finally:
        watcher().remove(pidfd)
        os.close(pidfd)
