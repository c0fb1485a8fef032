"""Further lanes of a connection: asked for by the host when its first ones are taken, and where the plugin's run. docs/wire.md, "Lanes".

With one worker all lanes are read by the plugin's main thread, which sleeps on the doorbell of the first. With several workers each has
a lane of its own.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastplug.errors import ArenaExhausted, RemoteProtocolError
from fastplug.net._socket_link import SocketLink
from fastplug.protocols._group import Group
from fastplug.protocols._inline import DeferredPort
from fastplug.protocols._pool import LANES_MAX, Pool
from fastplug.protocols.fast.control import Body, Control, Message, close_all
from fastplug.shm import _lane, _rings
from fastplug.shm.watcher import wake_until_awake

if TYPE_CHECKING:
    from fastplug._wire import ArrayPort
    from fastplug.protocols._call import Caller
    from fastplug.protocols._serve import Server
    from fastplug.protocols.fast.memory import SharedMemory
    from fastplug.shm._segment import Segment

    FastLink = _lane.Lane | SocketLink

__all__ = ["HostLanes", "PluginLanes", "lanes_offered"]

_log = logging.getLogger("fastplug.fast")

# A handler in hand at the end may take as long as a host waits after SHUTDOWN (go-plugin: 2 s).
WORKER_TIMEOUT_S = 2.0
# A worker that has nothing to do is woken by frames and by the end; the main thread looks up twice a second for all.
WORKER_SLICE_NS = 10_000_000_000


def lanes_offered(workers: int, *, shared: bool) -> int:
    """How many lanes a plugin takes. One thread that reads several sockets would gain nothing over one socket."""
    if workers > 1:
        return min(workers, LANES_MAX)
    return LANES_MAX if shared else 1


def _number(body: Body, key: str, most: int) -> int:
    value = body.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise RemoteProtocolError(f"the peer sent {key}={value!r} in a control message; wanted a number from 0 to {most}")
    return value


class HostLanes:
    """The host's lanes of one connection. Thread-safe.

    Args:
        control, memory: of the connection; ``memory`` is None over sockets.
        first: the caller of the first lane.
        answer: the plugin's HELLO, which says how many lanes it takes, and with how many workers.
        connect: makes the caller of a further one: (link, port, its number).
        strict: CopyRequired instead of copies.
    """

    def __init__(
        self,
        control: Control,
        memory: SharedMemory | None,
        first: Caller,
        answer: Body,
        connect: Callable[[FastLink, ArrayPort, int], Caller],
        *,
        strict: bool,
    ) -> None:
        self._strict = strict
        self._control = control
        self._memory = memory
        self._connect = connect
        self._lock = threading.Lock()
        self._mine: Segment | None = None  # of the lane that was asked for
        self._closed = False
        limit = _number(answer, "lanes", LANES_MAX) if "lanes" in answer else 1
        workers = _number(answer, "workers", LANES_MAX) if "workers" in answer else 1
        self.callers: list[Caller] = [first]
        self.pool = Pool(first, limit, spread=workers > 1, opener=self._ask)

    def _ask(self, number: int) -> None:
        """Asks for one more. Raises OSError, ArenaExhausted."""
        if self._memory is not None:
            self._mine = mine = _rings.create_segment()
            self._control.send(Message.LANE, {"lane": number, "bytes": mine.bytes}, [mine.fd])
            return
        ours, theirs = socket.socketpair()
        try:
            self._control.send(Message.LANE, {"lane": number}, [theirs.fileno()])
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._add(SocketLink(ours), DeferredPort(self._strict), number)

    def answered(self, body: Body, fds: list[int]) -> None:
        """LANE came back, on the thread that reads the control socket. Owns ``fds``. Raises RemoteProtocolError."""
        mine, self._mine = self._mine, None
        if mine is None or self._memory is None or body.get("lane") != len(self.callers):
            close_all(fds)
            raise RemoteProtocolError(f"{self._control.peer} opened a lane that was not asked for")
        if not fds:
            self.pool.refused()
            return
        try:
            lane, port = self._memory.further_lane(mine, body, fds)
        except ArenaExhausted as error:
            _log.warning("a further lane to %s cannot be mapped: %s", self._control.peer, error)
            self.pool.refused()
            return
        self._add(lane, port, len(self.callers))

    def _add(self, link: FastLink, port: ArrayPort, number: int) -> None:
        caller = self._connect(link, port, number)
        with self._lock:
            self.callers.append(caller)
            closed = self._closed
        if closed:
            self._end(caller)
        self.pool.add(caller)

    def _end(self, caller: Any) -> None:
        link = caller.link
        if link is not None:
            link.peer_gone()
            wake_until_awake(link)
            caller.wake_loops()

    def drain(self) -> None:
        """Drops late replies that have come meanwhile, where no call is under way."""
        for caller in list(self.callers):
            caller.drain()

    def stats(self) -> dict[str, Any]:
        """Counters, over all lanes."""
        self.drain()
        ports = [caller.port for caller in self.callers]
        return {
            "calls": sum(caller.calls for caller in self.callers),
            "late_replies": sum(caller.late for caller in self.callers),
            "lanes": len(self.callers),
            "copies": sum(port.copies for port in ports),
            "copied_bytes": sum(port.copied_bytes for port in ports),
        }

    def peer_gone(self) -> None:
        """Whoever waits on a lane ends. Idempotent."""
        for caller in list(self.callers):
            self._end(caller)
        self.pool.refused()

    def close(self, error: Callable[[], Exception]) -> None:
        """Calls raise from now on, and the lanes' memory goes back. Idempotent."""
        with self._lock:
            self._closed = True
        self._mine = None
        for caller in self.callers:
            caller.close(error)
        links: list[Any] = [caller.link for caller in self.callers]
        self.peer_gone()
        for caller, link in zip(self.callers, links, strict=True):
            caller.release()
            if link is not None:
                link.close()


class PluginLanes:
    """The plugin's lanes of one connection.

    Args:
        control, memory: of the connection; ``memory`` is None over sockets.
        first: the server of the first lane, which the main thread runs.
        workers: handlers at a time.
        connect: makes the server of a further lane: (link, port).
        broken: called from a worker's thread when the host broke the protocol there.
    """

    def __init__(
        self,
        control: Control,
        memory: SharedMemory | None,
        first: Server,
        workers: int,
        connect: Callable[[FastLink, ArrayPort], Server],
        broken: Callable[[], None],
    ) -> None:
        self._control = control
        self._memory = memory
        self._connect = connect
        self._broken = broken
        self._limit = lanes_offered(workers, shared=memory is not None)
        self._workers = workers
        self.servers: list[Server] = [first]
        self._links: list[FastLink] = [first.link]  # type: ignore[list-item]
        self._group: Group | None = None
        self._threads: list[threading.Thread] = []
        self._stopped = False

    def open(self, body: Body, fds: list[int]) -> None:
        """LANE came, on the thread that reads the control socket. Owns ``fds``. Raises RemoteProtocolError."""
        number = _number(body, "lane", LANES_MAX - 1)
        if number != len(self.servers) or number >= self._limit or len(fds) > 1:
            close_all(fds)
            raise RemoteProtocolError(f"the host asked for lane {number}; it has {len(self.servers)} and may have {self._limit}")
        if self._memory is None:
            if fds:
                self._add(SocketLink(socket.socket(fileno=fds[0])), DeferredPort())
            return
        answer: Body = {"lane": number}
        own: list[int] = []
        if fds:  # else it was lost on the way
            with contextlib.suppress(ArenaExhausted):
                mine = _rings.create_segment()
                lane, port = self._memory.further_lane(mine, body, fds)
                fds = []
                self._add(lane, port)
                answer["bytes"], own = mine.bytes, [mine.fd]
                self._memory.add_eventfd(lane, answer, own)
        with contextlib.suppress(OSError):  # a host that has left meanwhile
            self._control.send(Message.LANE, answer, own)

    def _add(self, link: FastLink, port: ArrayPort) -> None:
        server = self._connect(link, port)
        self.servers.append(server)
        self._links.append(link)
        if self._stopped:
            link.finish()
        if self._workers == 1:
            self._group = self._group or Group(self.servers[0])
            self._group.add(server)
            return
        if isinstance(link, _lane.Lane):
            link.slice_ns = WORKER_SLICE_NS
        thread = threading.Thread(target=self._run, args=(server,), name=f"fastplug worker {len(self._threads) + 1}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _run(self, server: Server) -> None:
        try:
            server.run()
        except RemoteProtocolError:
            _log.exception("the host broke the protocol; the plugin ends")
            self._broken()

    def stop(self) -> None:
        """Any thread: what is in hand is finished, then everybody who serves returns."""
        self._stopped = True
        for server in list(self.servers):
            server.stopping = True
        for link in list(self._links):
            link.finish()
            wake_until_awake(link)

    def join(self) -> None:
        """After the main thread's part is over: waits for the workers' handlers, at most 2 s."""
        for thread in self._threads:
            thread.join(WORKER_TIMEOUT_S)
        if self._group is not None:
            self._group.close()

    def close(self) -> None:
        """Gives descriptors back; the memory is the connection's."""
        for link in self._links:
            link.close()
