"""Plugins in a sandbox: no network, a read-only file system, a process table of their own (bubblewrap, Debian: ``bubblewrap``).

    fastplug.start("plugin.py", runner=Bubblewrap())

The fast protocol works there, too: the inherited socket and the shared memory cross the sandbox. The plugin is then not the host's
direct child, and in another pid namespace, so the runner *vouches* for it (docs/wire.md, "The offer").
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from fastplug.errors import ConfigError, HandshakeError
from fastplug.process.command import CommandRunner

__all__ = ["Bubblewrap", "SandboxedRunner"]

# Where the plugin sees the directory for its sockets. A path of its own, short, and in a tmpfs, so that it can be made.
SOCKETS = "/run/plugin"
# Empty in the sandbox; what a plugin needs of them is bound into it.
_EMPTY = ("/tmp", "/run", "/var/tmp")

_SIGNALLED = 128


class Bubblewrap:
    """Makes runners: ``runner=Bubblewrap(...)``. One may be used for any number of plugins.

    Args:
        visible: files and folders under /tmp, /run and /var/tmp, which are empty in the sandbox, that the plugin may read. The files that
            its command line names are visible by themselves.
        writable: files and folders that it may write; everything else is read-only, or gone with the sandbox.
        network: leave it the network of the host.
        program: the bwrap to use, on PATH or a path.
    """

    def __init__(
        self,
        *,
        visible: Sequence[str | os.PathLike[str]] = (),
        writable: Sequence[str | os.PathLike[str]] = (),
        network: bool = False,
        program: str = "bwrap",
    ) -> None:
        self.visible = tuple(str(Path(path).absolute()) for path in visible)
        self.writable = tuple(str(Path(path).absolute()) for path in writable)
        self.network = network
        self.program = program

    def __call__(
        self,
        argv: Sequence[str],
        /,
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        executable: str | None = None,
        **more: Any,
    ) -> SandboxedRunner:
        variables = dict(os.environ if env is None else env)
        sockets = variables.get("PLUGIN_UNIX_SOCKET_DIR")
        if sockets is None:
            raise ConfigError("Bubblewrap needs PLUGIN_UNIX_SOCKET_DIR in the plugin's environment, which fastplug's clients set")
        variables |= {"PLUGIN_UNIX_SOCKET_DIR": SOCKETS, "TMPDIR": "/tmp"}
        folder = cwd or str(Path.cwd())
        named = [str(path) for part in argv if (path := Path(part)).is_absolute() and path.exists()]
        command = [executable or argv[0], *argv[1:]]  # of a pinned program the descriptor; its argv[0] is lost (bwrap before 0.9)
        sandbox = [self.program, *self._mounts([*named, folder], sockets), "--chdir", folder, "--", *command]
        return SandboxedRunner(sandbox, sockets=sockets, env=variables, cwd=folder, vouches=True, **more)

    def _mounts(self, named: Sequence[str], sockets: str) -> list[str]:
        arguments = ["--unshare-all", *(["--share-net"] if self.network else []), "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]
        for folder in _EMPTY:
            arguments += ["--tmpfs", folder]
        hidden = [path for path in named if any(PurePosixPath(path).is_relative_to(folder) for folder in _EMPTY)]
        for path in dict.fromkeys([*hidden, *self.visible]):
            arguments += ["--ro-bind", path, path]
        for path in self.writable:
            arguments += ["--bind", path, path]
        return [*arguments, "--bind", sockets, SOCKETS]


class SandboxedRunner(CommandRunner):
    """A CommandRunner whose plugin sees the socket directory under another path: an AddressTranslator."""

    def __init__(self, argv: Sequence[str], /, *, sockets: str, **options: Any) -> None:
        super().__init__(argv, **options)
        self._sockets = sockets

    @property
    def returncode(self) -> int | None:
        """As of CommandRunner. bwrap exits with 128 and the number of the signal that ended the plugin, as shells do."""
        code = super().returncode
        return code if code is None or code <= _SIGNALLED else _SIGNALLED - code

    def plugin_to_host(self, network: str, address: str) -> tuple[str, str]:
        """The plugin's path as this host sees it. Raises HandshakeError for one that is not in the socket directory."""
        return self._translated(network, address, SOCKETS, self._sockets)

    def host_to_plugin(self, network: str, address: str) -> tuple[str, str]:
        """This host's path as the plugin sees it. Raises HandshakeError for one that it cannot see."""
        return self._translated(network, address, self._sockets, SOCKETS)

    def _translated(self, network: str, address: str, inside: str, outside: str) -> tuple[str, str]:
        if network == "tcp" and "--share-net" in self.argv:
            return network, address
        path = PurePosixPath(address)
        if network != "unix" or not path.is_relative_to(inside) or ".." in path.parts:
            raise HandshakeError(
                f"{network} {address} cannot be reached across the sandbox of plugin {self.name!r}: only Unix sockets in {inside} can."
                " Let the plugin make its sockets in PLUGIN_UNIX_SOCKET_DIR, or share the network (Bubblewrap(network=True))."
            )
        return network, str(outside / path.relative_to(inside))
