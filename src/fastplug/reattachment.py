"""The other first half of a client's road: to a plugin that runs already (go-plugin: Reattach). Has the shape of ``launch.Launch``."""

from __future__ import annotations

import contextlib
import socket
import struct
from pathlib import Path

from fastplug.config import ClientConfig, Tls
from fastplug.errors import ConfigError, HandshakeError, IncompatibleVersion, PluginError, ProcessNotFound, RemoteProtocolError
from fastplug.handshake.environment import Choice
from fastplug.handshake.line import HandshakeLine
from fastplug.handshake.negotiation import accept
from fastplug.net.dial import dial
from fastplug.process.attached import AttachedProcess
from fastplug.process.runner import AttachedRunner, can_detach
from fastplug.reattach_config import ReattachConfig

__all__ = ["Reattachment"]


class Reattachment:
    """One running plugin on its way to a connection. Used by one thread.

    Attributes: as of ``Launch``; there is no output, no control socket and no directory of ours.
    """

    output = None
    socket_dir: str | None = None
    control: socket.socket | None = None
    identity: Tls | None = None

    def __init__(self, config: ClientConfig, reattach: ReattachConfig, name: str) -> None:
        self.config = config
        self.name = name
        self._reattach = reattach
        self.runner: AttachedRunner = self._make_runner()

    def _make_runner(self) -> AttachedRunner:
        if self.config.reattach_runner is not None:
            made: AttachedRunner = self.config.reattach_runner(self._reattach)
            return made
        if not self._reattach.pid:
            raise ConfigError(
                f"plugin {self.name!r} cannot be attached to without a pid. Name the process (pid=),"
                " or say how to find it (reattach_runner=)."
            )
        return AttachedProcess(self._reattach.pid, name=self.name, borrowed=self._reattach.test)

    def start(self) -> None:
        """Finds the process, and makes sure that it is the one that listens there. Raises ProcessNotFound."""
        try:
            self.runner.start()
            self._probe()
        except BaseException:
            self.runner.close()
            raise

    def _probe(self) -> None:
        """As go-plugin, a connection that says nothing. A pid may have gone to a stranger meanwhile, whom nobody must kill."""
        network, address = self._reattach.network, self._reattach.address
        try:
            with dial(network, address, timeout_s=self.config.connect_timeout_s) as probe:
                listener = _listener_pid(probe)
        except (HandshakeError, RemoteProtocolError) as error:
            raise ProcessNotFound(
                f"reattachment process not found: nobody answers at {network} {address}. Start the plugin again."
            ) from error
        if listener and listener != self._reattach.pid and self.config.reattach_runner is None:
            raise ProcessNotFound(
                f"reattachment process not found: process {listener} listens at {address}, and not process {self._reattach.pid}."
                " Take the pid from the plugin that runs now."
            )

    def negotiate(self) -> tuple[HandshakeLine, Choice | None]:
        """What a line would have said. Raises IncompatibleVersion, UnsupportedProtocol."""
        versions = self.config.offered_versions()
        version = self._reattach.protocol_version or self.config.handshake.protocol_version
        if version not in versions:
            raise IncompatibleVersion(
                f"the running plugin {self.name!r} speaks application version {version}, this host {sorted(versions)}."
                " Give it that version's plugins (versioned_plugins=), or start a plugin of another version."
            )
        line = HandshakeLine(version, self._reattach.network, self._reattach.address, self._reattach.protocol)
        accept(line, versions=versions, allowed_protocols=self.config.allowed_protocols)
        return line, None

    def let_go(self) -> None:
        """No connection came of it: the process is left alone (go-plugin killed it until 1.6.2, whoever it was)."""
        if can_detach(self.runner):
            self.runner.detach()

    def explain(self, error: PluginError, returncode: int | None, tail: tuple[str, ...]) -> None:
        """Nothing to add: what the plugin says goes to whoever started it."""

    def release(self) -> None:
        """Nothing is left to give back."""


def remove_socket(address: str) -> None:
    """What a killed plugin could not remove: its socket, and the directory that its first host made for it."""
    with contextlib.suppress(OSError):
        Path(address).unlink(missing_ok=True)
        if Path(address).parent.name.startswith("plugin-dir"):
            Path(address).parent.rmdir()


def _listener_pid(probe: socket.socket) -> int | None:
    """Who called listen() (SO_PEERCRED); None or 0 when that cannot be told: TCP, another pid namespace, another system."""
    if probe.family != socket.AF_UNIX or not hasattr(socket, "SO_PEERCRED"):
        return None
    pid: int = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))[0]
    return pid
