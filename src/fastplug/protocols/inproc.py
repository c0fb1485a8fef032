"""In-process: the same codec and the same errors, on a thread of its own, without a process. For tests and for trusted code.

Values are copied through the codec as everywhere else, arrays too: what a handler gets is read-only and its own.
"""

from __future__ import annotations

import importlib
import logging
import operator
import queue
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastplug._wire import HandoverLink, Memory
from fastplug.errors import ConfigError, DeadlineExceeded, HandshakeTimeout, StartError
from fastplug.interfaces import interfaces_of
from fastplug.plugin import InterfacePlugin, served_interfaces, set_up
from fastplug.process.stacks import given_up
from fastplug.protocol import HostContext, PluginContext, Protocol, ServerProtocol
from fastplug.protocols._call import Caller
from fastplug.protocols._inline import DeferredPort
from fastplug.protocols._pool import Pool
from fastplug.protocols._serve import Server
from fastplug.protocols._waiting import TimedQueue
from fastplug.protocols.offering import announced, callback_thread, dispensed, end_callbacks, handlers, passes_callbacks

if TYPE_CHECKING:
    import numpy.typing as npt

    from fastplug.interfaces import Interface
    from fastplug.protocols._callbacks import Registry

__all__ = ["PROTOCOL", "InprocClient", "QueueLink", "load"]

# One call at a time, and late replies: more frames than this in a queue mean that nobody reads.
FRAMES_MAX = 1024
# Longest single wait: Python handles signals between them (a queue's wait is not interrupted on all platforms).
SLICE_S = 0.1
# A queue that is full of calls that were given up is looked at this often.
FULL_SLICE_S = 0.01
# The thread ends after the call in hand, as a process would; one that does not is left behind as a daemon.
STOP_TIMEOUT_S = 2.0

Frame = tuple[bytes, Memory, int]
# In the place of a frame: there is something else to look at.
STIR: Frame = (b"", Memory(1), 0)

_log = logging.getLogger("fastplug.inproc")


class QueueLink(HandoverLink):
    """One end of a pair of queues. None in a queue is the end."""

    def __init__(self, inbound: TimedQueue[Frame | None], outbound: TimedQueue[Frame | None]) -> None:
        super().__init__()
        self._inbound = inbound
        self._outbound = outbound
        self._gone = False
        self._stirred = False

    def send_frame(self, frame: Frame, until_s: float | None) -> bool:
        while not self._gone:
            if self._outbound.qsize() < FRAMES_MAX:
                self._outbound.put(frame)
                return True
            if self.asks and self.ready():
                return False
            if until_s is not None and time.monotonic() >= until_s:
                raise DeadlineExceeded("the plugin did not take the call before the deadline; nothing was sent")
            time.sleep(FULL_SLICE_S)
        raise EOFError("the other end is closed")

    def ready(self) -> bool:
        return not self._inbound.empty()

    def receive_frame(self, until_s: float | None) -> Frame | None:
        while True:
            left_s = SLICE_S if until_s is None else min(SLICE_S, until_s - time.monotonic())
            try:
                frame = self._inbound.get(left_s)
            except queue.Empty:
                if left_s <= 0:
                    return None
                if self._gone:
                    raise EOFError("the other end is closed") from None
                continue
            if frame is None:
                self._gone = True
                raise EOFError("the other end is closed")
            if frame is STIR:
                self._stirred = False
                return None
            return frame

    def stir(self) -> bool:
        """Any thread: whoever waits for a frame stops waiting once, as if the time were up."""
        if not self._stirred:
            self._stirred = True
            self._inbound.put(STIR)
        return False

    def peer_gone(self) -> None:
        """Any thread: whoever waits here ends with EOFError."""
        self._gone = True
        self._inbound.put(None)


def load(module: str, attribute: str) -> list[tuple[Interface, Any]]:
    """What ``module:attribute`` serves: a class (called without arguments) or an implementation. Raises StartError, ConfigError."""
    try:
        found = operator.attrgetter(attribute)(importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise StartError(
            f"the in-process target {module}:{attribute} cannot be imported: {error}. Is it on sys.path, spelled as it is defined?"
        ) from error
    implementation = found() if isinstance(found, type) else found
    interfaces = interfaces_of(implementation)
    if not interfaces:
        raise ConfigError(f"{module}:{attribute} implements no fastplug interface: derive it from a class with @fastplug.interface")
    return served_interfaces({interface.name: InterfacePlugin(interface.cls, implementation) for interface in interfaces})


def _pair() -> tuple[QueueLink, QueueLink]:
    """The host's end and the plugin's."""
    to_plugin: TimedQueue[Frame | None] = TimedQueue()
    to_host: TimedQueue[Frame | None] = TimedQueue()
    return QueueLink(to_host, to_plugin), QueueLink(to_plugin, to_host)


class _Lane:
    """One pair of queues, its two ends, and the thread that serves it."""

    caller: Caller
    server: Server

    def __init__(
        self, context: HostContext, served_by: Any, first: _Lane | None, number: int, run: Callable[[Server], None], name: str
    ) -> None:
        self.near, self.far = _pair()
        registry: Registry | None = None if first is None else first.caller.registry
        self.caller = Caller(self.near, DeferredPort(context.config.strict_zero_copy), context.lost, registry)
        self.caller.lane = number
        self.server = Server(self.far, DeferredPort(), served_by, None if first is None else first.server)
        self.thread = threading.Thread(target=run, args=(self.server,), name=name, daemon=True)


class InprocClient:
    """A ClientProtocol whose plugin is a thread; with ``workers`` more, each with a lane of its own."""

    transport = "inproc"

    def __init__(self, context: HostContext) -> None:
        self._context = context
        self._offers = announced(context.implementations)
        self._callbacks: QueueLink | None = None
        self._callback_thread: threading.Thread | None = None
        self._served_by = handlers(context.implementations)
        first = _Lane(context, self._served_by, None, 0, self._serve, f"fastplug plugin {context.name}")
        self._lanes = [first]
        self._caller, self._server, self._thread = first.caller, first.server, first.thread
        workers = context.config.workers
        self._pool = Pool(first.caller, workers, spread=workers > 1, opener=self._open_lane)
        self._ready = threading.Event()
        self._refusal: BaseException | None = None
        self._caller.gave_up = self._give_up
        self._thread.start()
        self._closed = False
        self._await_set_up(context)

    def _await_set_up(self, context: HostContext) -> None:
        """As a process prints its line after its implementation was set up. Raises StartError, HandshakeTimeout."""
        if not self._ready.wait(context.config.start_timeout_s):
            self.close()
            raise HandshakeTimeout(
                f"the implementation of {context.name!r} was not set up within {context.config.start_timeout_s:g} s. "
                "A slow __enter__ needs a larger start_timeout_s."
            )
        if self._refusal is not None:
            self.close()
            told = f"{type(self._refusal).__name__}: {self._refusal}"
            raise StartError(f"the implementation of {context.name!r} could not be set up: {told}") from self._refusal

    def _open_lane(self, number: int) -> None:
        lane = _Lane(self._context, self._served_by, self._lanes[0], number, self._work, f"fastplug worker {number}")
        lane.caller.gave_up = self._give_up
        self._lanes.append(lane)
        lane.thread.start()
        self._pool.add(lane.caller)

    def _work(self, server: Server) -> None:
        server.run()

    def _serve(self, server: Server) -> None:
        try:
            with set_up(self._context.implementations):
                self._ready.set()
                server.run()
                self._stop_lanes()
                for lane in self._lanes[1:]:  # before the implementation is torn down
                    lane.thread.join(STOP_TIMEOUT_S)
                if server.tasks is not None:
                    server.tasks.close()
        except BaseException as error:  # noqa: BLE001  start() raises it; after that, __exit__ may have raised, and nobody waits for it
            if self._ready.is_set():
                _log.exception("the implementation of %r could not be torn down", self._context.name)
            self._refusal = error
        finally:
            self._ready.set()
            self.peer_exited()

    def _give_up(self, lane: int, call: int, want_stack: bool) -> tuple[str, str]:
        server = self._lanes[lane].server
        return given_up(server.thread, lambda: server.cancel(call), lambda: server.task_stack(call)), ""

    def dispense(self, interface: Interface) -> Any:
        self._caller.check_usable()
        if passes_callbacks(interface) and self._callbacks is None:
            self._callbacks, back = _pair()
            self._server.line.attach(back, DeferredPort())
            self._callback_thread = callback_thread(self._callbacks, self._caller.registry, self._context.name)
        return dispensed(interface, self._offers, self._pool, self._context.name)

    def ping(self, timeout_s: float) -> None:
        self._caller.check_usable()
        if not self._thread.is_alive():
            raise self._context.lost(None)

    def request_stop(self, failed: Callable[[], None]) -> None:
        self._stop()

    def _stop(self) -> None:
        self._server.line.close()
        self._stop_lanes()

    def _stop_lanes(self) -> None:
        for lane in list(self._lanes):
            lane.server.stopping = True
            lane.far.peer_gone()

    def peer_exited(self) -> None:
        for lane in list(self._lanes):
            lane.near.peer_gone()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._pool.refused()
        for lane in list(self._lanes):
            lane.caller.close(lambda: self._context.lost(None))
        self._stop()
        self.peer_exited()
        if self._callbacks is not None:
            self._callbacks.peer_gone()
            end_callbacks(self._callback_thread)
        if self._thread is not threading.current_thread():
            self._thread.join(STOP_TIMEOUT_S)
        self._caller.registry.close()

    def stats(self) -> dict[str, Any]:
        lanes = list(self._lanes)
        for lane in lanes:
            lane.caller.drain()
        near, far = [lane.caller.port for lane in lanes], [lane.server.port for lane in lanes]
        return {
            "transport": self.transport,
            "calls": sum(lane.caller.calls for lane in lanes),
            "late_replies": sum(lane.caller.late for lane in lanes),
            "lanes": len(lanes),
            "copies": sum(port.copies for port in near),
            "copied_bytes": sum(port.copied_bytes for port in near),
            "plugin_calls": sum(lane.server.calls for lane in lanes),
            "plugin_copies": sum(port.copies for port in far),
            "plugin_copied_bytes": sum(port.copied_bytes for port in far),
        }

    def empty(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        import numpy as np

        self._caller.check_usable()
        return np.empty(shape, dtype)

    def blocks(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike, count: int, timeout_s: float) -> Any:
        import itertools

        return itertools.cycle([self.empty(shape, dtype) for _ in range(count)])


def _serve(context: PluginContext) -> ServerProtocol:
    raise ConfigError("an in-process plugin is not served: the host names it as module:Class")


PROTOCOL = Protocol("inproc", InprocClient, _serve)
