"""The plugin's end of the fast protocol. Handlers run on the main thread; the control socket has a thread of its own."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

from fastplug.errors import LocalProtocolError, RemoteProtocolError
from fastplug.net._socket_link import SocketLink
from fastplug.process.stacks import DumpWriter, given_up
from fastplug.protocols._inline import DeferredPort
from fastplug.protocols._serve import Server
from fastplug.protocols.fast.control import Body, Control, Message, check_hello, close_all
from fastplug.protocols.fast.lanes import PluginLanes, lanes_offered
from fastplug.protocols.fast.memory import SharedMemory
from fastplug.protocols.offering import announced, handlers
from fastplug.shm import files
from fastplug.shm._placement import PLUGIN_PATIENCE
from fastplug.shm.watcher import watcher

if TYPE_CHECKING:
    from fastplug.protocol import PluginContext

__all__ = ["FastServer", "serve"]

_log = logging.getLogger("fastplug.fast")

# The host made its offer before it started this process; its HELLO is in the socket, or comes as soon as it has read the line.
HELLO_TIMEOUT_S = 30.0
# At most two wake-ups a second while nothing is to do (fast-transport, marks).
SLICE_NS = 500_000_000


class FastServer:
    """A ServerProtocol over the inherited control socket."""

    def __init__(self, context: PluginContext, control: Control) -> None:
        self.network = "inherit"
        self.address = f"{control.fileno()}/{context.version}/{context.transport}"
        self._context = context
        self._control = control
        self._transport = context.transport
        self._memory: SharedMemory | None = None
        self._server: Server | None = None
        self._lanes: PluginLanes | None = None
        self._dump: DumpWriter | None = None
        self._lock = threading.Lock()
        self._closed = False
        self.stopped = False

    def run(self) -> None:
        """HELLO, then calls, until SHUTDOWN or the end of the host."""
        try:
            self._shake_hands()
        except RemoteProtocolError:
            _log.exception("the host broke the protocol before it was connected; the plugin ends")
            return
        except (EOFError, TimeoutError, OSError) as error:
            _log.warning("the host ended before it connected: %s", error)
            return
        assert self._server is not None
        watcher().add(self._control.fileno(), self._on_control)
        try:
            self._server.run()
        except RemoteProtocolError:
            _log.exception("the host broke the protocol; the plugin ends")
        self.stop()
        if self._lanes is not None:
            self._lanes.join()
        if self._server.tasks is not None:
            self._server.tasks.close()

    def _shake_hands(self) -> None:
        body, fds = self._control.receive(Message.HELLO, HELLO_TIMEOUT_S)
        check_hello(body, self._context.version, self._transport, self._control.peer)
        served, version = self._context.interfaces, self._context.version
        references = version >= 2  # a host of version 1 would not understand what such methods say of themselves
        answer: Body = {
            "fast": version,
            "transport": self._transport,
            "pid": os.getpid(),
            "interfaces": announced(served, references=references),
        }
        answer |= self._offer_dump()
        served_by, workers = handlers(served, references=references), self._context.config.workers
        if version >= 2:
            answer |= {"workers": workers, "lanes": lanes_offered(workers, shared=self._transport == "shm")}
        if self._transport == "shm":
            memory = SharedMemory(
                self._control,
                "the host",
                limit_bytes=self._context.config.arena_limit_bytes,
                strict=False,
                slice_ns=SLICE_NS,
                patience=PLUGIN_PATIENCE,
            )
            memory.accept(body, fds)
            assert memory.lane is not None
            assert memory.port is not None
            more, own = memory.hello()
            memory.add_eventfd(memory.lane, more, own)
            here = files.place()
            if here is not None:
                more["files"] = here
                memory.open_files()
            self._memory = memory
            self._serve_lanes(Server(memory.lane, memory.port, served_by), served_by)
            self._control.send(Message.HELLO, answer | more, own)
        else:
            if len(fds) != 1:
                close_all(fds)
                raise RemoteProtocolError(f"the host's HELLO came with {len(fds)} descriptors; the socket transport has one")
            link = SocketLink(socket.socket(fileno=fds[0]))
            self._serve_lanes(Server(link, DeferredPort(), served_by), served_by)
            self._control.send(Message.HELLO, answer)

    def _serve_lanes(self, first: Server, served_by: Any) -> None:
        self._server = first
        first.version = self._context.version
        self._lanes = PluginLanes(
            self._control,
            self._memory,
            first,
            self._context.config.workers,
            lambda link, port: Server(link, port, served_by, first),
            self.stop,
        )

    def _offer_dump(self) -> Body:
        """A way to a stack of this process while C code holds its GIL; one without it works all the same."""
        try:
            self._dump = DumpWriter()
        except OSError:
            return {}
        return {"dump": [self._dump.signal, self._dump.reader_fd]}

    def _cancel(self, body: Body) -> None:
        """The caller gave a call up; with ``n`` it wants to know where this process is."""
        lane, call = body.get("lane", 0), body.get("call")
        servers = self._lanes.servers if self._lanes is not None else []
        if not isinstance(call, int) or not isinstance(lane, int) or not 0 <= lane < len(servers):
            return
        server = servers[lane]
        stack = given_up(server.thread, lambda: server.cancel(call), lambda: server.task_stack(call))
        if "n" in body:
            with contextlib.suppress(OSError):
                self._control.send(Message.STACK, {"n": body["n"], "stack": stack})

    def _on_control(self) -> None:
        try:
            alive = self._control.pump(self._handle)
        except (RemoteProtocolError, OSError, LocalProtocolError) as error:
            _log.error("the control socket is not used any more: %s", str(error))
            alive = False
        if not alive:
            watcher().remove(self._control.fileno())
            self.stop()

    def _handle(self, kind: int, body: Body, fds: list[int]) -> None:
        if kind == Message.PING:
            with contextlib.suppress(OSError):  # a host that has left meanwhile: its hang-up comes next
                self._control.send(Message.PONG, {"n": body.get("n")} | self._counters())
        elif kind == Message.CANCEL:
            self._cancel(body)
        elif kind == Message.SHUTDOWN:
            self.stop()
        elif kind == Message.CALLBACKS and len(fds) == 1 and self._server is not None:
            self._server.line.attach(SocketLink(socket.socket(fileno=fds[0])), DeferredPort())
        elif kind == Message.LANE and self._lanes is not None:
            self._lanes.open(body, fds)
        elif self._memory is not None:
            self._memory.handle(kind, body, fds)
        else:
            close_all(fds)

    def _counters(self) -> dict[str, Any]:
        servers = self._lanes.servers if self._lanes is not None else []
        ports = [server.port for server in servers]
        return {
            "calls": sum(server.calls for server in servers),
            "copies": sum(port.copies for port in ports),
            "copied_bytes": sum(port.copied_bytes for port in ports),
        }

    def stop(self) -> None:
        """Any thread: the call in hand is finished, then run() returns."""
        self.stopped = True
        if self._server is not None and self._lanes is not None:
            self._server.line.close()
            self._lanes.stop()

    def close(self) -> None:
        """Gives the socket and the memory back."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        watcher().remove(self._control.fileno())
        if self._dump is not None:
            self._dump.close()
        if self._lanes is not None:
            self._lanes.close()
        if self._memory is not None:
            self._memory.close()
        self._control.close()


def serve(context: PluginContext) -> FastServer:
    """Serves on the control socket that the offer named."""
    if context.control is None:
        raise LocalProtocolError("the fast protocol is served only on the control socket of an honoured offer")
    return FastServer(context, Control(context.control, "the host"))
