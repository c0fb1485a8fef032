"""The host's role: start a plugin, shake hands, dispense its interfaces, end it (go-plugin: Client).

The road: Runner.start -> handshake line -> negotiation -> Protocol.connect. ``process/lifecycle.py`` decides, this module does.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Self, TypeVar

from fastplug.certificates import host_tls
from fastplug.config import BLOCKS_TIMEOUT_S, PING_TIMEOUT_S, ClientConfig
from fastplug.errors import Closed, ConfigError, HandshakeTimeout, PluginDied, PluginError, StartError
from fastplug.grpc_access import GrpcAccess
from fastplug.interfaces import interface_of
from fastplug.launch import Launch
from fastplug.life import REAP_TIMEOUT_S, PluginLife, live
from fastplug.plugin import GRPCPlugin, InterfacePlugin, PluginSet
from fastplug.process.lifecycle import Event, State
from fastplug.process.runner import AddressTranslator
from fastplug.process.target import InProcess, resolve_target
from fastplug.protocol import ClientProtocol, HostContext, protocol_named
from fastplug.reattachment import Reattachment

if TYPE_CHECKING:
    import numpy.typing as npt


__all__ = ["Client"]

T = TypeVar("T")


class Client(PluginLife, GrpcAccess):
    """One plugin process and the connection to it. Thread-safe; not picklable (a ``Spec`` is); not restartable, as in go-plugin.

    ``start`` may be called by itself; ``with Client(config) as client`` starts and kills.
    """

    def __init__(self, config: ClientConfig) -> None:
        super().__init__(config)
        self._starting = threading.Lock()  # one thread drives the start; another may kill meanwhile
        self._plugins: PluginSet = {}
        self._failure: PluginError | None = None

    def __repr__(self) -> str:
        pid = f", pid {self.pid}" if self.pid else ""
        transport = f", {self.transport}" if self.transport else ""
        return f"<fastplug Client of plugin {self.name or self.config.target!r}: {self._state().value}{transport}{pid}>"

    def __reduce__(self) -> Any:
        raise TypeError("a live Client cannot be pickled; pickle a fastplug.Spec and open it where it is needed")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.kill()

    # -- what it is

    @property
    def transport(self) -> str:
        """What carries the calls: "shm", "socket", "grpc" or "inproc"; empty before the connection."""
        return self._protocol.transport if self._protocol is not None else ""

    @property
    def protocol(self) -> str:
        """Field 5 of the line: "fast" or "grpc"; "inproc" without a process; empty before the handshake."""
        if self._line is not None:
            return self._line.protocol
        return "inproc" if self.transport == "inproc" else ""

    @property
    def negotiated_version(self) -> int | None:
        """The application version of the line; None before the handshake."""
        return self._line.app_version if self._line is not None else None

    # -- start

    def start(self) -> Self:
        """Starts the plugin and connects; returns self. Idempotent while it runs.

        Raises:
            ConfigError, StartError, HandshakeError and its kin; Closed when it was killed before.
        """
        with self._starting:
            if self._state() is State.CONNECTED:
                return self
            if self._state() is not State.NEW:
                raise self._failure or Closed(f"plugin {self.name!r} has ended; a Client starts one process, once: make a new one")
            reattach = self.config.reattach
            if reattach is not None:
                self.name = self.config.name or f"process {reattach.pid}"
                self._enter(lambda: Reattachment(self.config, reattach, self.name))
            else:
                self._start_target()
            live.add(self)
            return self

    def _start_target(self) -> None:
        assert self.config.target is not None
        target = resolve_target(self.config.target, python=self.config.python)
        self.name = self.config.name or target.name
        if isinstance(target, InProcess):
            self._start_inproc(target)
        elif self.config.transport == "inproc":
            raise ConfigError(f"transport='inproc' needs a target of the form module:Class, got {self.config.target!r}")
        else:
            self._enter(lambda: Launch(self.config, target, self.name))

    def _start_inproc(self, target: InProcess) -> None:
        from fastplug.protocols.inproc import load

        if self.config.transport not in ("auto", "inproc"):
            raise ConfigError(
                f"the target {self.config.target!r} runs in this process; "
                f"transport must be 'auto' or 'inproc', not {self.config.transport!r}"
            )
        served = load(target.module, target.attribute)
        self._request_start()
        self._feed(Event.PROCESS_STARTED)
        self._launched.set()
        context = HostContext(config=self.config, name=self.name, lost=self._lost, implementations=served)
        versions = self.config.offered_versions()
        self._plugins = versions.get(self.config.handshake.protocol_version, {})
        try:
            protocol = protocol_named("inproc").connect(context)
        except BaseException:
            self._feed(Event.KILL_REQUESTED)
            self._drive()
            raise
        self._adopt(protocol)

    def _request_start(self) -> None:
        with self._lock:
            if self._killed:
                raise self._killed_meanwhile()
            self._life.feed(Event.START_REQUESTED, time.monotonic())

    def _enter(self, make: Callable[[], Launch | Reattachment]) -> None:
        """From a process that is to be started, or that runs already, to the connection."""
        self._request_start()
        try:
            launch = make()
        except BaseException:
            self._launched.set()
            self._feed(Event.START_FAILED)
            raise
        self._socket_dir = launch.socket_dir
        try:
            try:
                launch.start()
            except BaseException:
                self._feed(Event.START_FAILED)
                raise
            else:
                self._runner, self._output = launch.runner, launch.output
                self._feed(Event.PROCESS_STARTED)
            finally:
                self._launched.set()
            try:
                self._connected_or_not.clear()
                try:
                    self._connect(launch)
                finally:
                    self._connected_or_not.set()
            except BaseException as error:
                self._refuse(error, launch)
                if self._killed and isinstance(error, Exception):
                    raise self._killed_meanwhile() from error
                raise
        finally:
            launch.release()

    def _connect(self, launch: Launch | Reattachment) -> None:
        """From the line to the connection."""
        line, choice = launch.negotiate()
        self._feed(Event.LINE_RECEIVED)
        context = HostContext(
            config=self.config,
            name=self.name,
            network=line.network,
            address=line.address,
            pid=launch.runner.pid,
            lost=self._lost,
            control=launch.control if choice is not None else None,
            tls=host_tls(self.config, launch.identity, line, self.name),
            socket_dir=launch.socket_dir,
        )
        if isinstance(launch.runner, AddressTranslator):
            context.plugin_to_host, context.host_to_plugin = launch.runner.plugin_to_host, launch.runner.host_to_plugin
        self._line = line
        self._plugins = self.config.offered_versions()[line.app_version]
        protocol = protocol_named(line.protocol)
        if choice is not None:
            launch.control = None  # the protocol owns it from here on, also when it fails
        self._adopt(protocol.connect(context))
        self._watch_exit(launch.runner)

    # -- its end

    def _refuse(self, error: BaseException, launch: Launch | Reattachment) -> None:
        """The start failed after the process ran: end it at once, and put what it said into the error."""
        event = Event.START_TIMED_OUT if isinstance(error, HandshakeTimeout) else Event.LINE_REFUSED
        if self._state() is State.CONNECTED:  # the connection was made, its watching was not
            event = Event.KILL_REQUESTED
        runner = launch.runner
        if isinstance(launch, Reattachment):
            launch.let_go()  # it may be a stranger's process
        if isinstance(error, StartError | PluginDied):
            runner.wait(REAP_TIMEOUT_S)  # it ended by itself: its own exit code, not our SIGKILL
        returncode = runner.returncode
        self._feed(event)
        self._drive()
        if isinstance(error, PluginError):
            launch.explain(error, returncode, self._ending[1])
            self._failure = error

    # -- use

    def _connected(self) -> ClientProtocol:
        if os.getpid() != self._owner_pid:
            raise Closed(
                f"this Client belongs to process {self._owner_pid}; this is process {os.getpid()}, forked from it. "
                "Open the plugin again here."
            )
        if self._state() is State.NEW:
            raise Closed(f"plugin {self.config.target!r} is not started: call start(), or use fastplug.start(...)")
        if self._state() is not State.CONNECTED or self._protocol is None:
            raise self._failure or self._lost(None)
        return self._protocol

    def dispense(self, iface: Callable[..., T] | str) -> T:
        """A handle with the interface's methods.

        Args:
            iface: the interface's class, or a name in the configured plugin set.

        Raises:
            InterfaceMismatch: the plugin lacks the interface or differs in a method: which, with both signatures.
            ConfigError: a name that is not in the plugin set.
            PluginDied, Closed.
        """
        protocol = self._connected()
        if isinstance(iface, str):
            plugin = self._plugins.get(iface)
            if isinstance(plugin, GRPCPlugin):
                dispensed: T = plugin.grpc_client(self.broker, self.channel)
                return dispensed
            if not isinstance(plugin, InterfacePlugin):
                known = ", ".join(self._plugins) or "none"
                raise ConfigError(f"unknown plugin type: {iface!r}. Names in the plugin set: {known}. Or pass the interface's class.")
            iface = plugin.iface
        handle = protocol.dispense(interface_of(iface))
        handle._fastplug_client = self
        found: T = handle
        return found

    def ping(self, timeout_s: float = PING_TIMEOUT_S) -> None:
        """Returns when the plugin answered. Raises DeadlineExceeded, PluginDied, Closed."""
        self._connected().ping(timeout_s)

    def stats(self) -> dict[str, Any]:
        """Counters since the start: transport, calls, late_replies, copies and copied_bytes of array data on this side, the plugin's own
        (``plugin_...``), and for shared memory the arena, what is lent and who holds the
        oldest, what is borrowed, waits that spun and that slept, and how often this process left the CPU that it shared with the plugin."""
        return self._connected().stats()

    def empty(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike = "float64") -> npt.NDArray[Any]:
        """An uninitialised array that travels without a copy: born in shared memory (over other transports an ordinary one).

        Do not overwrite it while a call that got it, or an array that the plugin kept, is still in use; ``blocks`` takes care of that.

        Raises:
            ArenaExhausted: over ``arena_limit_bytes``.
        """
        # A protocol knows itself when it is not to be used any more: to ask for the state, too, takes as long as the array.
        return (self._protocol or self._connected()).empty(shape, dtype)

    def arena(self) -> contextlib.AbstractContextManager[None]:
        """``with client.arena(): a = np.load(path)``: numpy's own arrays of 64 KiB and more are born in shared memory, as from ``empty``.

        It holds in the current thread or asyncio task. When the arena is full, and over other transports, they are ordinary arrays.
        """
        protocol = self._connected()
        if protocol.transport != "shm":
            return contextlib.nullcontext()
        from fastplug.protocols.fast.client import FastClient

        assert isinstance(protocol, FastClient)
        return protocol.arena()

    def blocks(
        self, shape: int | tuple[int, ...], dtype: npt.DTypeLike = "float64", count: int = 3, timeout_s: float = BLOCKS_TIMEOUT_S
    ) -> Iterator[npt.NDArray[Any]]:
        """An endless iterator over ``count`` such arrays in turn; waits while the next one is lent, at most ``timeout_s`` seconds.

        Raises:
            ConfigError: ``count`` is less than 1.
            ArenaExhausted: no memory, or the next block was not given back in time; names who holds it.
        """
        if count < 1:
            raise ConfigError(f"blocks(count=...) must be at least 1, got {count}")
        found: Iterator[npt.NDArray[Any]] = self._connected().blocks(shape, dtype, count, timeout_s)
        return found
