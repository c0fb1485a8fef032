"""The host's role: start a plugin, shake hands, dispense its interfaces, end it (go-plugin: Client).

The road: Runner.start -> handshake line -> negotiation -> Protocol.connect. ``process/lifecycle.py`` decides, this module does.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Self, TypeVar

from fastplug.certificates import host_tls
from fastplug.config import BLOCKS_TIMEOUT_S, PING_TIMEOUT_S, ClientConfig
from fastplug.errors import Closed, ConfigError, HandshakeTimeout, PluginDied, PluginError, StartError
from fastplug.grpc_access import GrpcAccess
from fastplug.handshake.line import HandshakeLine
from fastplug.interfaces import interface_of
from fastplug.launch import Launch
from fastplug.plugin import GRPCPlugin, InterfacePlugin, PluginSet
from fastplug.process.lifecycle import Action, Event, Lifecycle, State
from fastplug.process.runner import Runner
from fastplug.process.stderr import OutputPump
from fastplug.process.target import Command, InProcess, resolve_target
from fastplug.process.warden import warden
from fastplug.protocol import ClientProtocol, HostContext, protocol_named
from fastplug.shm.watcher import watcher

if TYPE_CHECKING:
    import numpy.typing as npt


__all__ = ["Client"]

T = TypeVar("T")

_log = logging.getLogger("fastplug.client")

# A process that closed its connection is about to end: its exit code is worth a moment, not more.
REAP_TIMEOUT_S = 1.0
# What it said last is in the pipe already when it has ended; a logging handler that hangs must not hang the error.
SETTLE_TIMEOUT_S = 0.5
PUMP_STOP_TIMEOUT_S = 1.0
# kill() while another thread starts: that one sees the end of the streams at once, and then they may be closed.
CONNECT_END_TIMEOUT_S = 2.0
# The sum of what _release waits for at most, and the watcher's own bound.
RELEASE_TIMEOUT_S = 10.0

_live: weakref.WeakSet[Client] = weakref.WeakSet()


@atexit.register
def _kill_all() -> None:
    """A host that ends in order ends its plugins in order; the warden is for the other case."""
    for client in list(_live):
        client.kill()


class Client(GrpcAccess):
    """One plugin process and the connection to it. Thread-safe; not picklable (a ``Spec`` is); not restartable, as in go-plugin.

    ``start`` may be called by itself; ``with Client(config) as client`` starts and kills.
    """

    def __init__(self, config: ClientConfig) -> None:
        self.config = config
        self.name = config.name or ""
        self._owner_pid = os.getpid()
        self._starting = threading.Lock()  # one thread drives the start; another may kill meanwhile
        self._lock = threading.RLock()  # around the life cycle
        self._stopping = threading.Lock()  # one thread drives a stop
        self._life = Lifecycle(start_timeout_s=config.start_timeout_s, stop_timeout_s=config.stop_timeout_s)
        self._runner: Runner | None = None
        self._output: OutputPump | None = None
        self._protocol: ClientProtocol | None = None
        self._line: HandshakeLine | None = None
        self._plugins: PluginSet = {}
        self._killed = False
        self._ending: tuple[int | None, tuple[str, ...]] = (None, ())
        self._launched = threading.Event()  # there is a process, or there will be none
        self._socket_dir: str | None = None
        self._connected_or_not = threading.Event()  # nobody reads the process's first words
        self._connected_or_not.set()
        self._releasing = False
        self._released = threading.Event()
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
    def pid(self) -> int | None:
        """Process id of the plugin; None before the start and in-process."""
        return self._runner.pid if self._runner is not None else None

    @property
    def id(self) -> str:
        """What the runner calls the process; empty when there is none."""
        return self._runner.id if self._runner is not None else ""

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

    @property
    def exited(self) -> bool:
        """Has the plugin ended (also by itself)?"""
        ended = self._runner is not None and self._runner.returncode is not None  # known before the watcher's thread has dealt with it
        return ended or self._state() is State.EXITED

    def _state(self) -> State:
        """As of now: another thread may move it on at any time."""
        return self._life.state

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
            target = resolve_target(self.config.target, python=self.config.python)
            self.name = self.config.name or target.name
            if isinstance(target, InProcess):
                self._start_inproc(target)
            elif self.config.transport == "inproc":
                raise ConfigError(f"transport='inproc' needs a target of the form module:Class, got {self.config.target!r}")
            else:
                self._start_process(target)
            _live.add(self)
            return self

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
        self._plugins = self.config.offered_versions()[self.config.handshake.protocol_version]
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

    def _start_process(self, command: Command) -> None:
        self._request_start()
        try:
            launch = Launch(self.config, command, self.name)
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

    def _connect(self, launch: Launch) -> None:
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
        self._line = line
        self._plugins = self.config.offered_versions()[line.app_version]
        protocol = protocol_named(line.protocol)
        if choice is not None:
            launch.control = None  # the protocol owns it from here on, also when it fails
        self._adopt(protocol.connect(context))
        self._watch_exit(launch.runner)

    def _adopt(self, protocol: ClientProtocol) -> None:
        """The connection is there; another thread may have killed the plugin meanwhile, and what that gave back lacked this."""
        with self._lock:
            self._protocol = protocol
            self._life.feed(Event.CONNECTED, time.monotonic())
            killed = self._state() is not State.CONNECTED
        if killed:
            protocol.close()
            raise self._killed_meanwhile()

    def _killed_meanwhile(self) -> Closed:
        return Closed(f"plugin {self.name!r} was killed while it started; open it again to go on")

    # -- its end

    def _watch_exit(self, runner: Runner) -> None:
        if runner.pidfd is not None:
            watcher().add(runner.pidfd, self._on_exit)
            return
        threading.Thread(target=self._wait_exit, args=(runner,), name=f"fastplug end of {self.name}", daemon=True).start()

    def _wait_exit(self, runner: Runner) -> None:
        runner.wait(None)
        self._on_exit()

    def _on_exit(self) -> None:
        """The process has ended, wanted or not; on the watcher's thread."""
        runner, protocol = self._runner, self._protocol
        if runner is None:
            return
        if runner.pidfd is not None:
            watcher().remove(runner.pidfd)
        if protocol is not None:
            protocol.peer_exited()
        self._feed(Event.PROCESS_EXITED)

    def _refuse(self, error: BaseException, launch: Launch) -> None:
        """The start failed after the process ran: end it at once, and put what it said into the error."""
        event = Event.START_TIMED_OUT if isinstance(error, HandshakeTimeout) else Event.LINE_REFUSED
        if self._state() is State.CONNECTED:  # the connection was made, its watching was not
            event = Event.KILL_REQUESTED
        runner = launch.runner
        if isinstance(error, StartError | PluginDied):
            runner.wait(REAP_TIMEOUT_S)  # it ended by itself: its own exit code, not our SIGKILL
        returncode = runner.returncode
        self._feed(event)
        self._drive()
        if isinstance(error, PluginError):
            launch.explain(error, returncode, self._ending[1])
            self._failure = error

    def kill(self) -> None:
        """Ends the plugin: asks it to stop, then SIGTERM, then SIGKILL to its whole process group; each wait is bounded.

        Idempotent, from any thread; returns when the plugin is gone and everything it had is given back. In a forked child it does nothing.
        """
        if os.getpid() != self._owner_pid:
            return
        with self._stopping:
            with self._lock:
                self._killed = self._killed or not self.exited
                new = self._state() is State.NEW
            self._feed(Event.KILL_REQUESTED)
            self._drive()
            if not new:
                self._released.wait(RELEASE_TIMEOUT_S)  # another thread may be giving it back
                watcher().settle()

    def _drive(self) -> None:
        """Waits for the process's end step by step, each bounded by the life cycle's own timer."""
        while self._state() is not State.EXITED:
            with self._lock:
                now = time.monotonic()
                actions, left_s = self._life.poll(now), self._life.next_timeout_s(now)
            self._perform(actions)
            if self._state() is State.EXITED:
                break
            if not self._launched.is_set():
                self._launched.wait(left_s)
            elif self._runner is None:
                # in-process: there is nothing to wait for
                self._feed(Event.PROCESS_EXITED)
            elif self._runner.wait(left_s):
                self._on_exit()

    def _feed(self, event: Event) -> None:
        """Actions run without the lock: giving back waits for the watcher's thread, which may be about to feed an event of its own."""
        with self._lock:
            actions = self._life.feed(event, time.monotonic())
        self._perform(actions)

    def _perform(self, actions: tuple[Action, ...]) -> None:
        runner = self._runner
        for action in actions:
            if action is Action.SEND_SHUTDOWN and self._protocol is not None:
                self._protocol.request_stop()
            elif action is Action.SEND_SIGTERM and runner is not None:
                runner.terminate()
            elif action in (Action.SEND_SIGKILL, Action.SWEEP) and runner is not None:
                runner.kill()
            elif action is Action.ABANDON:
                _log.error("plugin %r (pid %s) cannot be ended: it hangs in the kernel", self.name, self.pid)
            elif action is Action.RELEASE:
                self._release()

    def _release(self) -> None:
        """Gives everything back. Runs once, when the process is gone."""
        with self._lock:
            if self._releasing:
                return
            self._releasing = True
        runner, output, protocol = self._runner, self._output, self._protocol
        self._connected_or_not.wait(CONNECT_END_TIMEOUT_S)
        if runner is not None:
            runner.wait(0)
            if output is not None:
                output.settle(SETTLE_TIMEOUT_S)
                self._ending = (runner.returncode, output.tail())
        if protocol is not None:
            protocol.close()
        if runner is not None:
            if runner.pidfd is not None:
                watcher().remove(runner.pidfd)
            warden.forget(runner)
            if output is not None:
                output.stop(PUMP_STOP_TIMEOUT_S)
            runner.close()
        if self._socket_dir is not None:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
        self._released.set()
        _live.discard(self)

    def _lost(self, method: str | None) -> Exception:
        """The error for a connection that ended, with what is known of the process."""
        if self._killed:
            return Closed(f"plugin {self.name!r} was ended by kill() in this process; open it again to go on")
        runner, output = self._runner, self._output
        if runner is None or output is None:
            return Closed(f"plugin {self.name!r} has ended")
        if not self._released.is_set():
            with contextlib.suppress(Closed):  # released meanwhile: then _ending has it
                runner.wait(REAP_TIMEOUT_S)
                output.settle(SETTLE_TIMEOUT_S)
        returncode, tail = self._ending if self._released.is_set() else (runner.returncode, output.tail())
        return PluginDied(self.name, returncode=returncode, stderr_tail=tail, calling=method)

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
        (``plugin_...``), and for shared memory the arena, the blocks that are lent, waits that spun and that slept."""
        return self._connected().stats()

    def empty(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike = "float64") -> npt.NDArray[Any]:
        """An uninitialised array that travels without a copy: born in shared memory (over other transports an ordinary one).

        Do not overwrite it while a call that got it, or an array that the plugin kept, is still in use; ``blocks`` takes care of that.

        Raises:
            ArenaExhausted: over ``arena_limit_bytes``.
        """
        return self._connected().empty(shape, dtype)

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
