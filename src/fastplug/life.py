"""A client's hold on its plugin process: how it comes to be known, how it is ended, what is given back (go-plugin: Client.Kill)."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import shutil
import threading
import time
import weakref
from pathlib import Path

from fastplug.config import ClientConfig
from fastplug.errors import Closed, ConfigError, ConnectionLost, PluginDied
from fastplug.handshake.line import HandshakeLine
from fastplug.process.lifecycle import Action, Event, Lifecycle, State
from fastplug.process.runner import AttachedRunner, can_detach
from fastplug.process.stderr import OutputPump
from fastplug.process.warden import warden
from fastplug.protocol import ClientProtocol
from fastplug.reattach_config import ReattachConfig
from fastplug.reattachment import remove_socket
from fastplug.shm.watcher import watcher

__all__ = ["REAP_TIMEOUT_S", "PluginLife", "cleanup_clients", "live"]

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

live: weakref.WeakSet[PluginLife] = weakref.WeakSet()


def cleanup_clients() -> None:
    """Ends all plugins of this process that are ``managed``, side by side (go-plugin: CleanupClients).

    From any thread; returns when they are gone. It is also called when the interpreter exits: a host that ends in order ends its plugins
    in order, and the warden is for the other case.
    """
    clients = [client for client in list(live) if client.config.managed]
    for client in clients:
        client._ask_to_end()  # all of them first: their times of grace run side by side
    for client in clients:
        client.kill()


@atexit.register
def _at_exit() -> None:
    cleanup_clients()
    for client in list(live):
        client._let_go_of()  # those that are not managed; what this process has of them goes with it


class PluginLife:
    """One plugin process and the connection to it, from the start to the end. ``process/lifecycle.py`` decides, this class does.

    Thread-safe. Base of ``Client``, which adds the way into the connection and what is done with it.
    """

    def __init__(self, config: ClientConfig) -> None:
        self.config = config
        self.name = config.name or ""
        self._owner_pid = os.getpid()
        self._lock = threading.RLock()  # around the life cycle
        self._stopping = threading.Lock()  # one thread drives a stop
        self._life = Lifecycle(start_timeout_s=config.start_timeout_s, stop_timeout_s=config.stop_timeout_s)
        self._runner: AttachedRunner | None = None
        self._output: OutputPump | None = None
        self._protocol: ClientProtocol | None = None
        self._line: HandshakeLine | None = None
        self._killed = False
        self._ending: tuple[int | None, tuple[str, ...]] = (None, ())
        self._launched = threading.Event()  # there is a process, or there will be none
        self._socket_dir: str | None = None
        self._let_go = False
        self._reap_until_s: float | None = None  # from the first error of a connection that ended
        self._connected_or_not = threading.Event()  # nobody reads the process's first words
        self._connected_or_not.set()
        self._releasing = False
        self._released = threading.Event()

    @property
    def pid(self) -> int | None:
        """Process id of the plugin; None before the start and in-process."""
        return self._runner.pid if self._runner is not None else None

    @property
    def id(self) -> str:
        """What the runner calls the process; empty when there is none."""
        return self._runner.id if self._runner is not None else ""

    @property
    def returncode(self) -> int | None:
        """Exit code of the plugin, negative for the signal that ended it; None while it runs, in-process, and for an attached plugin, whose
        end only its parent is told."""
        runner = self._runner
        if self._released.is_set() or runner is None:
            return self._ending[0]
        return runner.returncode

    @property
    def exited(self) -> bool:
        """Has the plugin ended (also by itself)?"""
        runner = self._runner
        if self._state() is State.EXITED or runner is None or os.getpid() != self._owner_pid:
            return self._state() is State.EXITED
        with contextlib.suppress(Closed):  # it was just given back: then it has ended
            return runner.wait(0)  # also before the watcher's thread has dealt with it
        return True

    def _state(self) -> State:
        """As of now: another thread may move it on at any time."""
        return self._life.state

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

    def reattach_config(self) -> ReattachConfig | None:
        """How another process reaches this plugin while it runs; None before the start and after the end (go-plugin: ReattachConfig).

        Raises: ConfigError when no other process can: the fast protocol runs over a socket that only this process has, one-time
        certificates let nobody else in, and an in-process plugin has no process.
        """
        line = self._line
        if self._state() is not State.CONNECTED:
            return None
        how = ""
        if line is None or line.protocol == "fast":
            how = "it runs in this process" if line is None else "it runs over a socket that only this process has: use transport='grpc'"
        elif self.config.auto_mtls or self.config.grpc_broker_multiplex:  # as in go-plugin
            how = "its certificates" if self.config.auto_mtls else "its one multiplexed connection"
            how += " belong to this process: start it without auto_mtls and grpc_broker_multiplex"
        if line is None or how:
            raise ConfigError(f"plugin {self.name!r} cannot be attached to from elsewhere: {how}")
        test = self.config.reattach is not None and self.config.reattach.test
        return ReattachConfig(line.protocol, line.app_version, line.network, line.address, self.pid or 0, test=test)

    # -- its end

    def _watch_exit(self, runner: AttachedRunner) -> None:
        if runner.pidfd is not None:
            watcher().add(runner.pidfd, self._on_exit)
            return
        threading.Thread(target=self._wait_exit, args=(runner,), name=f"fastplug end of {self.name}", daemon=True).start()

    def _wait_exit(self, runner: AttachedRunner) -> None:
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
            self._feed(self._end_event())
            self._drive()
            if not new:
                self._released.wait(RELEASE_TIMEOUT_S)  # another thread may be giving it back
                watcher().settle()

    def _ask_to_end(self) -> None:
        """The first step of ``kill``, without a wait."""
        if os.getpid() == self._owner_pid:
            with self._lock:
                self._killed = self._killed or not self.exited
            self._feed(self._end_event())

    def _end_event(self) -> Event:
        """What ``kill`` means: a plugin in test mode belongs to whoever started it, so its host only lets go of it, as in go-plugin."""
        borrowed = self.config.reattach is not None and self.config.reattach.test
        return Event.DETACHED if borrowed and self._state() is State.CONNECTED else Event.KILL_REQUESTED

    def detach(self) -> ReattachConfig:
        """Lets go of the plugin: it goes on running, and another host may attach to it with what is returned (``fastplug.reattach``).

        This client is at its end then, as after ``kill``. The plugin loses the reader of its stdout and stderr: a Go plugin ends with
        SIGPIPE when it writes there, a plugin of fastplug does not. One of fastplug must be served with ``on_host_exit="stay"``, else it
        ends with this process.

        Raises:
            ConfigError: nobody else can reach it: the fast protocol (start it with transport="grpc"), in-process, a runner of your own.
            Closed, PluginDied: it is not running.
        """
        config = self.reattach_config()
        if config is None or os.getpid() != self._owner_pid:
            raise self._lost(None)
        if not can_detach(self._runner):
            raise ConfigError(f"the runner of plugin {self.name!r} has no detach(): end the plugin with kill(), or give the runner one")
        self._let_go_of()
        return config

    def _let_go_of(self) -> None:
        if os.getpid() != self._owner_pid or self._state() is not State.CONNECTED:
            return
        with self._stopping:
            self._killed = True  # from here on calls over this client are this process's own mistake
            self._feed(Event.DETACHED)
            self._released.wait(RELEASE_TIMEOUT_S)

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
                self._protocol.request_stop(lambda: self._feed(Event.SHUTDOWN_FAILED))
            elif action is Action.SEND_SIGTERM and runner is not None:
                runner.terminate()
            elif action in (Action.SEND_SIGKILL, Action.SWEEP) and runner is not None:
                runner.kill()
            elif action is Action.ABANDON:
                _log.error("plugin %r (pid %s) cannot be ended: it hangs in the kernel", self.name, self.pid)
            elif action is Action.LET_GO:
                self._let_go = True
                detachable = runner  # a name of its own: what is found out about it holds for no other action of the loop
                if can_detach(detachable):
                    detachable.detach()
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
            if self.config.managed and self.config.reattach is None:
                warden.forget(runner)
            if output is not None:
                output.stop(PUMP_STOP_TIMEOUT_S)
            runner.close()
        self._remove_sockets()
        self._released.set()
        live.discard(self)

    def _remove_sockets(self) -> None:
        """What a killed plugin could not remove itself. The socket of one that was let go stays."""
        reattach = self.config.reattach
        if self._let_go:
            with contextlib.suppress(OSError):  # its socket is in it, or it was attached to and there is none of ours
                Path(self._socket_dir or "").rmdir()
        elif self._socket_dir is not None:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
        elif reattach is not None and reattach.network == "unix" and self._line is not None:
            remove_socket(reattach.address)

    def _lost(self, method: str | None) -> Exception:
        """The error for a connection that ended, with what is known of the process."""
        if self._killed:
            return Closed(f"plugin {self.name!r} was ended by kill() in this process; open it again to go on")
        runner, output = self._runner, self._output
        if runner is None:
            return Closed(f"plugin {self.name!r} has ended")
        ended = True
        if not self._released.is_set():
            now_s = time.monotonic()
            if self._reap_until_s is None:
                self._reap_until_s = now_s + REAP_TIMEOUT_S
            with contextlib.suppress(Closed):  # released meanwhile: then _ending has it
                ended = runner.wait(max(0.0, self._reap_until_s - now_s))
                if output is not None:
                    output.settle(SETTLE_TIMEOUT_S)
        tail = output.tail() if output is not None else ()
        if not ended:
            return ConnectionLost(self.name, stderr_tail=tail, calling=method)
        returncode, tail = self._ending if self._released.is_set() else (runner.returncode, tail)
        return PluginDied(self.name, returncode=returncode, stderr_tail=tail, calling=method)
