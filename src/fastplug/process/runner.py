"""What fastplug needs from whatever starts a plugin: the interface that a user may implement (go-plugin: ``runner.Runner``).

`fastplug.process.command.CommandRunner` is the one that is used when none is given. A container, a remote shell or a
sandbox is another one.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeGuard, runtime_checkable

__all__ = ["AddressTranslator", "AttachedRunner", "Detachable", "Runner", "RunnerFactory", "can_detach"]


class AttachedRunner(Protocol):
    """One plugin process that runs already, to its end (go-plugin: ``runner.AttachedRunner``). What every runner can do."""

    @property
    def name(self) -> str:
        """What the plugin is called in logs and errors."""
        ...

    @property
    def id(self) -> str:
        """What tells this process from others while it runs: a pid, a container id. Empty before ``start``."""
        ...

    @property
    def pid(self) -> int | None:
        """The process on this machine whose end is the plugin's end; None before ``start`` or when there is none here.

        With None the warden cannot end the plugin after its host was killed: the runner has to see to that itself.
        """
        ...

    @property
    def pidfd(self) -> int | None:
        """A pidfd of ``pid``, open until ``close``; None where there is none. It polls readable when the process ends."""
        ...

    @property
    def returncode(self) -> int | None:
        """The exit code, or minus the signal that ended it; None while it runs, and when nobody can tell."""
        ...

    def start(self) -> None:
        """Start the process and return without waiting for anything it does. Takes a second at most where it can.

        An attached runner takes hold of the process instead. Raises: StartError, its cause what the system said; ProcessNotFound.
        Nothing is left behind then.
        """
        ...

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the process has ended, at most ``timeout_s`` seconds (None: for ever). Returns whether it has.

        It does not wait for the streams: a grandchild may keep them open. Any number of threads may wait.
        """
        ...

    def terminate(self) -> None:
        """Ask the process and its group to end, and return at once. May do nothing. No error if it has ended."""
        ...

    def kill(self) -> bool:
        """End the process and all it started, by force. Bounded, idempotent, no error if it has ended already.

        Returns whether the process is gone (False: the kernel could not end it in time).
        """
        ...

    def diagnose(self) -> str:
        """What may have gone wrong when the plugin did not start or said nothing, for the text of an error."""
        ...

    def close(self) -> None:
        """Kill a process that this runner started and that still runs, and give everything back. Nobody reads the streams any more.
        Idempotent, bounded."""
        ...


class Runner(AttachedRunner, Protocol):
    """One plugin process, from its start to its end. One runner starts one process, once.

    Order of the calls: ``start``; then, from any threads, reads of ``stdout`` and ``stderr``, ``wait``, ``terminate``
    and ``kill`` in any order and number; ``close`` last. ``name``, ``id`` and ``diagnose`` may be used at any time.

    Ownership: the runner owns the process, both streams and whatever it made for them, and gives them back in ``close``.
    The descriptors of ``pass_fds`` stay the caller's, who may close its copies as soon as ``start`` has returned.
    """

    @property
    def stdout(self) -> io.RawIOBase:
        """The plugin's stdout, unbuffered, from ``start`` on; ``fileno()`` can be polled.

        One thread polls and reads it as long as there is a plugin, so that it never blocks on a full pipe.
        """
        ...

    @property
    def stderr(self) -> io.RawIOBase:
        """The plugin's stderr; as ``stdout``."""
        ...

    @property
    def pass_fds(self) -> Sequence[int]:
        """Descriptors that are open in the plugin under the same numbers; empty when the runner cannot pass any."""
        ...

    @property
    def vouches(self) -> bool:
        """Whether the environment given to ``start`` reaches this plugin and nobody else, although the plugin's parent
        may be another process than this one (sudo, a sandbox). The fast protocol is then offered all the same."""
        ...


@runtime_checkable
class Detachable(Protocol):
    """A runner that can let its process go on without this host; one without it ends the process in ``close``."""

    def detach(self) -> None:
        """From now on the process is nobody's: ``close`` gives back what is this host's and does not end it."""
        ...


def can_detach(runner: object) -> TypeGuard[Detachable]:
    """Whether it is a Detachable. (In this form for mypy, which takes a runner that is one for impossible.)"""
    return isinstance(runner, Detachable)


@runtime_checkable
class AddressTranslator(Protocol):
    """A runner whose plugin sees other addresses than its host does: a container, a sandbox (go-plugin: ``runner.AddrTranslator``).

    ``network`` is "unix" or "tcp", ``address`` a path or ip:port. Both may be called from any thread; what they raise fails the start, or
    the call of the broker that needed the address.
    """

    def plugin_to_host(self, network: str, address: str) -> tuple[str, str]:
        """How this host reaches what the plugin calls ``address``: its listener (the handshake line), and those of its broker."""
        ...

    def host_to_plugin(self, network: str, address: str) -> tuple[str, str]:
        """How the plugin reaches what this host calls ``address``: the host's own listeners, for the broker, and the socket directory."""
        ...


class RunnerFactory(Protocol):
    """How a client makes its runner. ``env`` is the complete environment of the plugin, handshake variables included.

    ``stdin=`` (a descriptor) and ``executable=`` (what to execute in place of ``argv[0]``, for a pinned program) are passed only when the
    user asks for them; a factory without them then fails with ConfigError, and serves everybody else.
    """

    def __call__(
        self,
        argv: Sequence[str],
        /,
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        pass_fds: Sequence[int] = (),
        name: str | None = None,
    ) -> Runner: ...
