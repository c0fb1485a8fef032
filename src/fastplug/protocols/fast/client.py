"""The host's end of the fast protocol."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastplug.errors import DeadlineExceeded, HandshakeTimeout, LocalProtocolError, RemoteProtocolError
from fastplug.net._socket_link import SocketLink
from fastplug.protocols._call import Caller
from fastplug.protocols._inline import DeferredPort
from fastplug.protocols.fast.cancel import Cancels
from fastplug.protocols.fast.control import Body, Control, Message, check_hello, close_all
from fastplug.protocols.fast.lanes import HostLanes
from fastplug.protocols.fast.memory import SharedMemory
from fastplug.protocols.offering import callback_thread, dispensed, end_callbacks, offered, passes_callbacks
from fastplug.shm import files
from fastplug.shm.arena import numpy_in
from fastplug.shm.watcher import watcher

if TYPE_CHECKING:
    import numpy.typing as npt

    from fastplug._wire import ArrayPort
    from fastplug.interfaces import Interface
    from fastplug.protocol import HostContext
    from fastplug.shm._lane import Lane

__all__ = ["FastClient", "connect"]

_log = logging.getLogger("fastplug.fast")

# Host side of fast-transport's waiting: looks for signals at least this often.
SLICE_NS = 100_000_000
# stats() asks the plugin for its counters; one that does not answer in this time gets None for them.
STATS_TIMEOUT_S = 1.0


class FastClient:
    """A ClientProtocol over shared memory or a socket. Thread-safe; calls queue for the one connection."""

    def __init__(self, context: HostContext, control: Control, version: int, transport: str) -> None:
        self.version = version
        self.transport = transport
        self._context = context
        self._control = control
        self._memory: SharedMemory | None = None
        self._born: Callable[..., npt.NDArray[Any]] | None = None  # makes arrays in shared memory; loaded with the first
        self._caller: Caller
        self._lanes: HostLanes | None = None
        self._offers: list[Any] = []
        self._cancels: Cancels
        self._pings = itertools.count(1)
        self._pongs: dict[int, tuple[threading.Event, Body]] = {}
        self._lock = threading.Lock()
        self._callbacks: SocketLink | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self._broken: Exception | None = None

    # -- making the connection

    def shake_hands(self, timeout_s: float) -> None:
        """HELLO both ways. Raises HandshakeError, HandshakeTimeout, RemoteProtocolError, ArenaExhausted, EOFError, OSError."""
        config = self._context.config
        body: Body = {"fast": self.version, "transport": self.transport, "pid": os.getpid()}
        data: socket.socket | None = None
        theirs: socket.socket | None = None
        try:
            if self.transport == "shm":
                self._memory = SharedMemory(
                    self._control,
                    self._context.name,
                    limit_bytes=config.arena_limit_bytes,
                    shared=config.arena.memory() if config.arena is not None else None,
                    strict=config.strict_zero_copy,
                    slice_ns=SLICE_NS,
                    loops=True,
                )
                more, fds = self._memory.hello()
                self._control.send(Message.HELLO, body | more, fds)
            else:
                data, theirs = socket.socketpair()
                self._control.send(Message.HELLO, body, [theirs.fileno()])
            try:
                answer, received = self._control.receive(Message.HELLO, timeout_s)
            except TimeoutError as error:
                raise HandshakeTimeout(
                    f"{error}; it printed its line but does not go on. Look at its log, or raise connect_timeout_s."
                ) from error
            self._accept(answer, received, data)
            data = None
        finally:
            for sock in (data, theirs):
                if sock is not None:
                    sock.close()

    def _accept(self, answer: Body, fds: list[int], data: socket.socket | None) -> None:
        if self._memory is not None:
            self._memory.accept(answer, fds)
        elif fds:
            close_all(fds)
            raise RemoteProtocolError(f"{self._context.name} sent descriptors with HELLO of the socket transport")
        check_hello(answer, self.version, self.transport, self._control.peer)
        pid = self._context.pid if answer.get("pid") == self._context.pid else None  # not in another pid namespace
        self._cancels = Cancels(lambda body: self._control.send(Message.CANCEL, body), pid, answer.get("dump"))
        self._offers = offered(answer.get("interfaces"))
        if self._memory is not None:
            assert self._memory.lane is not None
            assert self._memory.port is not None
            if "files" in answer and answer["files"] == files.place():
                self._memory.name_files()
            self._caller = self._connect(self._memory.lane, self._memory.port, 0)
        else:
            assert data is not None
            self._caller = self._connect(SocketLink(data), DeferredPort(self._context.config.strict_zero_copy), 0)
        strict = self._context.config.strict_zero_copy
        self._lanes = HostLanes(self._control, self._memory, self._caller, answer, self._connect, strict=strict)
        if self.version < 2:  # such a plugin answers one request after another, and knows nothing else
            self._caller.in_flight_max = 1
        watcher().add(self._control.fileno(), self._on_control)

    def _connect(self, link: Lane | SocketLink, port: ArrayPort, number: int) -> Caller:
        """The caller of one lane."""
        caller = Caller(link, port, self._lost, self._caller.registry if number else None)
        caller.lane, caller.gave_up = number, self._cancels.give_up
        caller.version = self.version
        return caller

    def abandon(self) -> None:
        """No connection came of it: gives back what was made for one."""
        self._control.close()
        if self._memory is not None:
            self._memory.close()

    # -- ClientProtocol

    def dispense(self, interface: Interface) -> Any:
        """A handle. Raises InterfaceMismatch, Closed, PluginDied."""
        self._caller.check_usable()
        assert self._lanes is not None
        handle = dispensed(interface, self._offers, self._lanes.pool, self._context.name)
        if passes_callbacks(interface):
            self._open_callbacks()
        return handle

    def _open_callbacks(self) -> None:
        """Before the first callback is passed: the link for those that come when no call waits (wire.md, "Callbacks")."""
        with self._lock:
            if self._callbacks is not None or self._closed:
                return
            mine, theirs = socket.socketpair()
            self._callbacks = SocketLink(mine)
        try:
            self._control.send(Message.CALLBACKS, {}, [theirs.fileno()])
        except OSError as error:
            raise self._lost(None) from error
        finally:
            theirs.close()
        self._thread = callback_thread(self._callbacks, self._caller.registry, self._context.name)

    def ping(self, timeout_s: float) -> None:
        """The plugin's control thread answers, also while a handler runs. Raises DeadlineExceeded, PluginDied, Closed."""
        self._ping(timeout_s)

    def _ping(self, timeout_s: float) -> Body:
        self._caller.check_usable()
        number, answered, slot = next(self._pings), threading.Event(), Body()
        with self._lock:
            self._pongs[number] = (answered, slot)
        try:
            self._ask(number)
            if not answered.wait(timeout_s):
                raise DeadlineExceeded(
                    f"plugin {self._context.name!r} did not answer a ping within {timeout_s:g} s: it is stopped, or holds the GIL"
                )
        finally:
            with self._lock:
                self._pongs.pop(number, None)
        if "ended" in slot:
            raise self._lost(None)
        return slot

    def _ask(self, number: int) -> None:
        try:
            self._control.send(Message.PING, {"n": number})
        except TimeoutError as error:
            raise DeadlineExceeded(f"a ping could not be sent: {error}; it is stopped, or hangs") from error
        except OSError as error:
            raise self._lost(None) from error

    def request_stop(self, failed: Callable[[], None]) -> None:
        """SHUTDOWN: the plugin finishes the call in hand and exits."""
        try:
            self._control.send(Message.SHUTDOWN, {})
        except OSError:
            failed()

    def peer_exited(self) -> None:
        """Wakes every caller; called on the watcher's or any other thread."""
        if self._lanes is not None:
            self._lanes.peer_gone()
        if self._callbacks is not None:
            self._callbacks.peer_gone()
        with self._lock:
            waiting, self._pongs = list(self._pongs.values()), {}
        for answered, slot in waiting:
            slot["ended"] = True
            answered.set()
        self._cancels.end()

    def close(self) -> None:
        """Ends the connection; received arrays stay readable."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        watcher().remove(self._control.fileno())
        self._caller.close(lambda: self._lost(None))
        self.peer_exited()
        if self._lanes is not None:
            self._lanes.close(lambda: self._lost(None))
        if self._callbacks is not None and end_callbacks(self._thread):
            self._callbacks.close()
        memory, self._memory = self._memory, None
        if memory is not None:
            memory.close()
        self._control.close()

    def stats(self) -> dict[str, Any]:
        """Counters of both sides; the plugin's are None when it does not answer within 1 s."""
        assert self._lanes is not None
        found: dict[str, Any] = {"transport": self.transport} | self._lanes.stats()
        remote: Body = {}
        with contextlib.suppress(Exception):  # stats of a plugin that is gone are those of this side
            remote = self._ping(STATS_TIMEOUT_S)
        found |= {f"plugin_{key}": remote.get(key) for key in ("calls", "copies", "copied_bytes")}
        return found | (self._memory.stats() if self._memory is not None else {})

    def empty(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """In the arena; over a socket an ordinary array. Raises ArenaExhausted, Closed."""
        self._caller.check_usable()
        if self._memory is None:
            import numpy as np

            return np.empty(shape, dtype)
        if self._born is None:
            from fastplug.shm._ndarray import empty

            self._born = empty
        return self._born(self._memory.arena, shape, dtype)

    def arena(self) -> contextlib.AbstractContextManager[None]:
        """Numpy's own arrays are born in shared memory, within the block; only over shm. Raises Closed."""
        self._caller.check_usable()
        assert self._memory is not None
        return numpy_in(self._memory.arena)

    def blocks(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike, count: int, timeout_s: float) -> Any:
        """A ring of arrays, see ``shm.blocks``."""
        from fastplug.shm.blocks import ring

        arrays = [self.empty(shape, dtype) for _ in range(count)]
        return ring(arrays, timeout_s, self._drain)

    def _drain(self) -> None:
        if self._lanes is not None:
            self._lanes.drain()

    # -- what comes

    def _lost(self, method: str | None) -> Exception:
        return self._broken or self._context.lost(method)

    def _on_control(self) -> None:
        try:
            alive = self._control.pump(self._handle)
        except (RemoteProtocolError, OSError, LocalProtocolError) as error:
            _log.error("the control socket of plugin %r is not used any more: %s", self._context.name, str(error))
            self._broken = error if isinstance(error, RemoteProtocolError) else None
            alive = False
        if not alive:
            watcher().remove(self._control.fileno())
            self.peer_exited()

    def _handle(self, kind: int, body: Body, fds: list[int]) -> None:
        if kind == Message.PONG:
            with self._lock:
                waiting = self._pongs.pop(body.get("n", 0) if isinstance(body.get("n"), int) else 0, None)
            if waiting is not None:
                waiting[1].update(body)
                waiting[0].set()
        elif kind == Message.STACK:
            self._cancels.answered(body)
        elif kind == Message.LANE and self._lanes is not None:
            self._lanes.answered(body, fds)
        elif self._memory is not None:
            self._memory.handle(kind, body, fds)
        else:
            close_all(fds)


def connect(context: HostContext) -> FastClient:
    """The connection that the handshake line's ``inherit`` address stands for."""
    if context.control is None:
        raise LocalProtocolError("the fast protocol needs the control socket that was offered")
    _, version, transport = context.address.split("/")
    client = FastClient(context, Control(context.control, f"plugin {context.name!r}"), int(version), transport)
    try:
        client.shake_hands(context.config.connect_timeout_s)
    except (EOFError, ConnectionError) as error:
        client.abandon()
        raise context.lost(None) from error
    except BaseException:
        client.abandon()
        raise
    return client
