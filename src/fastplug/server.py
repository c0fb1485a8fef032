"""The plugin's role: check the cookie, negotiate, print the line, serve until the host asks for the end or is gone (go-plugin: Serve)."""

from __future__ import annotations

import atexit
import contextlib
import gc
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

from fastplug.config import ServeConfig, ServeTestConfig
from fastplug.errors import ConfigError
from fastplug.handshake.environment import Choice, Offer, PluginEnvironment, Refusal, honour, is_vouched, plugin_environment
from fastplug.handshake.line import HandshakeLine
from fastplug.handshake.negotiation import choose_protocols, choose_version, cookie_refusal
from fastplug.interfaces import Interface
from fastplug.plugin import InterfacePlugin, PluginSet, served_interfaces, set_up
from fastplug.process.stdio import PluginStdio
from fastplug.process.terminal import enable_debuggers
from fastplug.protocol import PluginContext, ServerProtocol, protocol_named
from fastplug.protocols.grpc.stdio import StdioFeed, streamed, streamed_descriptors
from fastplug.reattach_config import ReattachConfig, format_reattach
from fastplug.shm._segment import available
from fastplug.shm.watcher import watcher

__all__ = ["serve_config", "served_plugins"]

_log = logging.getLogger("fastplug.server")

# After the host is gone the call in hand may finish for as long as a host waits after Shutdown (go-plugin: 2 s).
HOST_GONE_GRACE_S = 2.0
# How soon test mode notices that it was cancelled. It is for tests and debuggers, where ten looks a second cost nothing.
CANCEL_LOOK_S = 0.1
# An offer has at most 256 bytes; as JSON it may need a few times that.
VOUCH_BYTES_MAX = 2048
# Set by hand, to serve a program that no host has started.
ATTACH_VARIABLE = "FASTPLUG_ATTACH"
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
    if config.test is not None:
        serve_test(config, config.test)
        return
    environment = plugin_environment(os.environ, cookie_key=config.handshake.magic_cookie_key)
    refusal = cookie_refusal(config.handshake, environment.cookie)
    if refusal is not None and os.environ.get(ATTACH_VARIABLE):
        serve_by_hand(config)
        return
    if refusal is not None:
        sys.stderr.write(refusal + _started_by_hand(config))
        raise SystemExit(1)
    for name in environment.remove:
        os.environ.pop(name, None)
    for item in environment.invalid_versions:
        sys.stderr.write(f"server sent invalid plugin version {item!r}\n")
    versions = config.served_versions()
    version = choose_version(versions, environment.versions)
    served = _served(versions[version])
    # A host waits for the exit. Without a last search for cycles, which finds nothing that the exit does not free, it comes three times as
    # fast with grpc and numpy loaded (50 -> 15 ms).
    atexit.register(gc.freeze)
    with contextlib.ExitStack() as stack:
        stdio = PluginStdio(environment.log_level)
        stack.callback(stdio.close)
        if config.on_host_exit == "stay" and environment.socket_dir:
            stack.callback(_remove_if_empty, environment.socket_dir)
        stack.callback(enable_debuggers())
        stack.enter_context(set_up(served))  # before the line is printed
        feed = StdioFeed() if environment.stream_stdio else None
        server, name, cert = _make_server(config, environment, versions[version], served, feed)
        stack.callback(server.close)
        if feed is not None and name == "grpc":
            stack.enter_context(streamed_descriptors(feed) if config.sync_fds else streamed(feed))
        multiplex = environment.multiplexes if name == "grpc" else None
        line = HandshakeLine(version, server.network, server.address, name, server_cert=cert, multiplex=multiplex)
        with _deaf_to_interrupts(), _watching_host(config, server):
            stdio.write_line(line.format())
            server.run()


def _remove_if_empty(directory: str) -> None:
    """The host that made it may be gone."""
    with contextlib.suppress(OSError):
        Path(directory).rmdir()


def _served(plugins: PluginSet) -> list[tuple[Interface, Any]]:
    served = served_interfaces(plugins)
    if not plugins:
        raise ConfigError("serve() has nothing to serve: pass an implementation of an interface, or plugins=")
    return served


def serve_test(config: ServeConfig, test: ServeTestConfig) -> None:
    """Serves without a host (go-plugin: test mode): see ServeTestConfig. From any thread. Raises ConfigError."""
    versions = config.served_versions()
    version = choose_version(versions, ())
    served = _served(versions[version])
    environment = plugin_environment({}, cookie_key=config.handshake.magic_cookie_key)
    with set_up(served):
        server, name, _ = _make_server(config, environment, versions[version], served)
        ended = threading.Event()
        try:
            test.ready(ReattachConfig(name, version, server.network, server.address, os.getpid(), test=True))
            if test.cancel is not None:
                stopper = threading.Thread(target=_stop_when, args=(test.cancel, ended, server), name="fastplug test mode", daemon=True)
                stopper.start()
            server.run()
        finally:
            ended.set()
            server.close()


def _stop_when(cancelled: threading.Event, ended: threading.Event, server: ServerProtocol) -> None:
    while not ended.is_set():
        if cancelled.wait(CANCEL_LOOK_S):
            server.stop()
            return


def serve_by_hand(config: ServeConfig) -> None:
    """Serves a program that somebody started at a terminal or under a debugger, until Ctrl-C or SIGTERM, and says how to attach to it."""
    name = Path(sys.argv[0]).stem or "plugin"

    def ready(reattach: ReattachConfig) -> None:
        text = format_reattach({name: reattach})
        print(  # noqa: T201  for the person at the terminal; there is no host
            f"Plugin {name} waits to be attached to. From Python:\n\n"
            f"    fastplug.reattach(fastplug.parse_reattach({text!r})[{name!r}])\n\n"
            f"For a go-plugin host, the same as JSON: {text}\nCtrl-C ends it.",
            flush=True,
        )

    cancel = threading.Event()
    with _told_by_sigterm(cancel), contextlib.suppress(KeyboardInterrupt):
        serve_test(config, ServeTestConfig(ready=ready, cancel=cancel))


@contextlib.contextmanager
def _told_by_sigterm(cancel: threading.Event) -> Iterator[None]:
    """pdb keeps Ctrl-C for itself, so there is a second way to end a plugin in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: cancel.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _started_by_hand(config: ServeConfig) -> str:
    """More than go-plugin says: what this is, and how to use it."""
    try:
        plugins = [plugin for plugins in config.served_versions().values() for plugin in plugins.values()]
        names = ", ".join(sorted({plugin.interface.name for plugin in plugins if isinstance(plugin, InterfacePlugin)}))
    except ConfigError:
        names = ""
    script = Path(sys.argv[0]).name or "this file"
    return (
        f"\nIt serves {names or 'nothing'}. From Python: fastplug.open({script!r}, YourInterface)\n"
        f"To start it by hand, under a debugger: {ATTACH_VARIABLE}=1 python -m pdb {script}\n"
    )


def _make_server(
    config: ServeConfig,
    environment: PluginEnvironment,
    plugins: PluginSet,
    served: list[tuple[Interface, Any]],
    feed: StdioFeed | None = None,
) -> tuple[ServerProtocol, str, bytes]:
    """The fast protocol when it can carry the set and the offer is honoured, else the first one that a go-plugin host speaks.

    Returns it, its name, and the certificate to show.
    """
    protocols = choose_protocols({name: plugin.protocols for name, plugin in plugins.items()})
    context = PluginContext(
        config=config,
        interfaces=served,
        plugins=plugins,
        stdio=feed,
        socket_dir=environment.socket_dir,
        socket_group=environment.socket_group,
        ports=environment.ports() if config.network == "tcp" else (0, 0),
    )
    control = _control_socket(environment.offer)
    choice = honour(
        environment.offer,
        parent_pid=os.getppid(),
        peer_pid_of_fd=_peer_pid(control) if control is not None else None,
        vouched=control is not None and is_vouched(environment.offer, _first_bytes(control)),
        transports=_transports(),
    )
    if isinstance(choice, Choice) and "fast" in protocols and config.tls_provider is None:
        context.control, context.transport, context.version = control, choice.transport, choice.version
        return protocol_named("fast").serve(context), "fast", b""
    if isinstance(choice, Choice) and control is not None:
        control.close()
    elif environment.offer is not None and isinstance(choice, Refusal):
        _log.info("the fast protocol is not used: %s", choice.reason)
        if control is not None:
            control.detach()  # it is somebody else's descriptor
    from fastplug.certificates import plugin_tls  # imports ssl (13 ms), which the fast protocol does not need

    context.tls, cert = plugin_tls(config, environment.client_cert)
    context.multiplex = bool(environment.multiplexes)
    name = next((name for name in protocols if name != "fast"), "grpc")
    return protocol_named(name).serve(context), name, cert


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


def _first_bytes(control: socket.socket) -> bytes:
    """What the host has put into the socket before it started this process. It is left there."""
    try:
        return control.recv(VOUCH_BYTES_MAX, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:
        return b""


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
