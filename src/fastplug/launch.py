"""The first half of a client's road: Runner.start -> handshake line -> negotiation. ``client.py`` goes on from there."""

from __future__ import annotations

import dataclasses
import logging
import os
import secrets
import select
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastplug.certificates import host_identity
from fastplug.config import ClientConfig
from fastplug.errors import ConfigError, HandshakeError, HandshakeTimeout, PluginDied, PluginError, StartError
from fastplug.handshake.environment import Choice, Offer, family_marks, host_environment, vouch_message
from fastplug.handshake.line import HandshakeLine, LineReader
from fastplug.handshake.negotiation import accept
from fastplug.net.relay import Hold, relay
from fastplug.process.checksum import Pinned, pin
from fastplug.process.command import CommandRunner
from fastplug.process.runner import AddressTranslator, Runner
from fastplug.process.stderr import OutputPump
from fastplug.process.target import Command
from fastplug.process.warden import warden
from fastplug.shm._segment import available

__all__ = ["Launch"]

READ_BYTES = 64 * 1024
# 64 random bits: no two plugins of a machine share a mark.
MARK_BYTES = 8
# go-plugin's words for a wrong cookie; what our plugins print too.
COOKIE_REFUSED = "This binary is a plugin"


class Launch:
    """One plugin process on its way to a connection. Used by one thread; ``release`` gives back what nobody took over.

    Attributes:
        runner: the process; owned by the client from ``start`` on.
        output: its drained output, from ``start`` on.
        identity: the host's one-time certificate under auto_mtls.
        control: the host's end of the control socket; None when no offer was made, or when it was taken over.
        socket_dir: a 0700 directory for the plugin's sockets, which the client removes: a plugin that is killed cannot.
    """

    def __init__(self, config: ClientConfig, command: Command, name: str) -> None:
        self.config = config
        self.name = name
        self.control: socket.socket | None = None
        self.output: OutputPump | None = None
        self._plugin_socket: socket.socket | None = None
        self._hold: Hold | None = None
        self.identity = host_identity(config)
        if config.transport != "grpc" and "fast" in config.allowed_protocols and config.tls is None and not config.grpc_broker_multiplex:
            self.control, self._plugin_socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.offer = self._make_offer()
        self.mark = secrets.token_hex(MARK_BYTES)
        self._pinned: Pinned | None = None
        self.socket_dir = ""
        try:
            self.socket_dir = self._make_socket_dir()
            if config.secure is not None:
                self._pinned = pin(command.argv, config.secure)
            self.runner = self._make_runner(self._pinned or Pinned(command.argv, None, ()))
        except BaseException:
            if self.socket_dir:
                Path(self.socket_dir).rmdir()
            self.release()
            raise

    def _make_socket_dir(self) -> str:
        """A directory of go-plugin's own name. With a group, the plugin may run as another user of that group."""
        group = self.config.unix_socket.group if self.config.unix_socket is not None else None
        parent = self.config.unix_socket.temp_dir if self.config.unix_socket is not None else None
        try:
            made = tempfile.mkdtemp(prefix="plugin-dir", dir=parent)
        except OSError as error:
            raise ConfigError(f"no directory for the plugin's sockets can be made in {parent or tempfile.gettempdir()}: {error}") from error
        if group is not None:
            try:
                shutil.chown(made, group=int(group) if group.isdecimal() else group)
                Path(made).chmod(0o770)
            except (OSError, LookupError) as error:
                Path(made).rmdir()
                raise ConfigError(f"group {group!r} of unix_socket= cannot be given the directory of the sockets: {error}") from error
        return made

    def _make_offer(self) -> Offer | None:
        if self._plugin_socket is None:
            return None
        wanted: tuple[str, ...] = (self.config.transport,)
        if self.config.transport == "auto":
            wanted = ("shm", "socket") if available() else ("socket",)
        return Offer(os.getpid(), self._plugin_socket.fileno(), transports=wanted)

    def _make_runner(self, command: Pinned) -> Runner:
        config = self.config
        logger = config.logger or logging.getLogger(f"fastplug.plugin.{self.name}")
        env = host_environment(
            dict(os.environ) if config.inherit_env else {},
            config.env or {},
            config.handshake,
            versions=config.offered_versions(),
            offer=self.offer,
            client_cert=self.identity.certificate_pem.decode() if self.identity is not None else None,
            min_port=config.min_port,
            max_port=config.max_port,
            multiplex=config.grpc_broker_multiplex,
            socket_dir=self.socket_dir,
            socket_group=config.unix_socket.group if config.unix_socket is not None else None,
            family=family_marks(os.environ.get("FASTPLUG_FAMILY", ""), self.mark),
            stream_stdio=config.sync_stdout is not None or config.sync_stderr is not None,
            # print() is INFO: it must reach the last lines that an error shows, also when the logger would drop it
            log_level=min(logger.getEffectiveLevel(), logging.INFO),
        )
        make: Callable[..., Runner] = config.runner or CommandRunner
        fds = (self._plugin_socket.fileno(),) if self._plugin_socket is not None else ()
        cwd = os.fspath(config.cwd) if config.cwd is not None else None
        seldom: dict[str, Any] = {}  # a runner that knows nothing of these is fine until somebody asks for them
        if config.stdin is not None:
            seldom["stdin"] = config.stdin if isinstance(config.stdin, int) else config.stdin.fileno()
        if command.executable is not None:
            seldom["executable"] = command.executable
        try:
            return make(command.argv, env=env, cwd=cwd, pass_fds=(*fds, *command.fds), name=self.name, **seldom)
        except TypeError as error:
            if not seldom:
                raise
            raise ConfigError(f"the runner {make!r} cannot be used with {' and '.join(seldom)}: {error}") from error

    def start(self) -> None:
        """Starts the process, watched by the warden and with its stderr drained. Raises StartError, ConfigError; nothing is left then."""
        try:
            if self.runner.vouches and self.control is not None and self.offer is not None:
                self.control.send(vouch_message(self.offer))
            if self.identity is not None or self.config.tls is not None or self.config.grpc_broker_multiplex:
                self._hold = relay().hold()  # it starts while the plugin does
            self.runner.start()
            if self.config.managed:
                warden.watch(self.runner, self.socket_dir, self.mark)
            self.output = OutputPump(self.name, self.runner.stderr, line_bytes=self.config.log_buffer_bytes, sink=self.config.stderr)
        except BaseException:
            warden.forget(self.runner)
            self.runner.close()
            raise
        if self.config.logger is not None:
            self.output.logger = self.config.logger
        if self._plugin_socket is not None:
            self._plugin_socket.close()
        if self._pinned is not None:
            self._pinned.close()

    def negotiate(self) -> tuple[HandshakeLine, Choice | None]:
        """The plugin's line, checked against what was offered; its stdout is drained from here on.

        Raises:
            HandshakeTimeout, StartError (it ended), HandshakeError and its kin.
        """
        reader = LineReader(multiplex_wanted=self.config.grpc_broker_multiplex)
        line = self._read_line(reader)
        wanted = self.config.transport
        allowed = [
            protocol
            for protocol in self.config.allowed_protocols
            if wanted == "auto" or protocol == ("grpc" if wanted == "grpc" else "fast")
        ]
        choice = accept(line, versions=self.config.offered_versions(), allowed_protocols=allowed, offer=self.offer)
        assert self.output is not None
        before = "".join(f"{line}\n" for line in reader.skipped)  # PYTHONUNBUFFERED flushes every print()
        self.output.drain(self.runner.stdout, before.encode("utf-8", "surrogateescape") + reader.rest)
        return (line if choice is not None else self._translated(line)), choice

    def _translated(self, line: HandshakeLine) -> HandshakeLine:
        """The line with the address as this host sees it."""
        if not isinstance(self.runner, AddressTranslator):
            return line
        try:
            network, address = self.runner.plugin_to_host(line.network, line.address)
        except PluginError:
            raise
        except Exception as error:
            raise HandshakeError(
                f"the runner of plugin {self.name!r} cannot tell where this host finds {line.network} {line.address}: {error}"
            ) from error
        return dataclasses.replace(line, network=network, address=address)

    def _read_line(self, reader: LineReader) -> HandshakeLine:
        poller = select.poll()
        poller.register(self.runner.stdout.fileno(), select.POLLIN)
        until = time.monotonic() + self.config.start_timeout_s
        while True:
            left_s = until - time.monotonic()
            if left_s <= 0 or not poller.poll(left_s * 1000):
                skipped = f" It printed: {' / '.join(reader.skipped[-3:])}." if reader.skipped else ""
                raise HandshakeTimeout(
                    f"timeout while waiting for plugin to start: plugin {self.name!r} printed no handshake line within "
                    f"{self.config.start_timeout_s:g} s.{skipped} Does it call fastplug.serve()? "
                    "A slow start needs a larger start_timeout_s."
                )
            data = self.runner.stdout.read(READ_BYTES)
            if not data:
                raise StartError(f"plugin {self.name!r}: {reader.eof()}")
            line = reader.feed(data)
            if line is not None:
                return line

    def explain(self, error: PluginError, returncode: int | None, tail: tuple[str, ...]) -> None:
        """Adds to an error's text what only the host knows: how the process ended, and its last lines."""
        if isinstance(error, PluginDied):
            return  # it says so already
        parts: list[str] = []
        if any(COOKIE_REFUSED in line for line in tail):
            key = self.config.handshake.magic_cookie_key
            parts.append(f"The plugin refused the magic cookie: host and plugin need the same HandshakeConfig (here {key}=...).")
        if isinstance(error, StartError) and not tail:
            parts.append(self.runner.diagnose())  # which says how it ended, too
        elif returncode is not None:
            parts.append(f"It ended with exit code {returncode}." if returncode >= 0 else f"It was ended by signal {-returncode}.")
        if tail:
            parts.append("Its last lines on stderr:\n  " + "\n  ".join(tail))
        if parts and error.args:
            error.args = ("\n".join([str(error.args[0]), *parts]), *error.args[1:])

    def release(self) -> None:
        """Closes the sockets that nobody took over. Idempotent."""
        if self._hold is not None:
            self._hold.release()
        for sock in (self.control, self._plugin_socket, self._pinned):
            if sock is not None:
                sock.close()
