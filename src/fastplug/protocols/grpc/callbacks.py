"""What the host passes to be called back: each is served under a number of the broker, to the one connection that the plugin dials.

docs/wire.md, "The gRPC form". A callback runs on the thread that waits for the call which passed it, and otherwise on a thread of its own.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from queue import Empty
from typing import Any

from fastplug._wire_words import Unfit
from fastplug.annotation import TypeNode
from fastplug.errors import LocalProtocolError, RemoteProtocolError, RpcError
from fastplug.interfaces import check_implementation
from fastplug.protocols._waiting import TimedQueue
from fastplug.protocols.grpc.arrays import ArrayCopies
from fastplug.protocols.grpc.broker import Broker
from fastplug.protocols.grpc.channel import CallContext, Code, Handler, HandlerKind, MethodTable
from fastplug.protocols.grpc.codec import MethodCodec
from fastplug.protocols.grpc.errors import HOST_KEY, status_of
from fastplug.protocols.grpc.schema import Rpc
from fastplug.protocols.grpc.targets import callback_codec
from fastplug.protocols.grpc.workers import CALL_KEY

__all__ = ["INSIDE", "Asked", "Callbacks", "Entry"]

# Each takes a socket and a server of its own: more means a plugin that keeps what it does not need.
CALLBACKS_MAX = 256
# A fastplug plugin dials before the handler begins; what it dials for a call that was given up is noticed within this time.
GIVEN_UP_S = 0.25
# A callback in hand when the connection is closed may take this long.
JOIN_TIMEOUT_S = 1.0


class _Inside(threading.local):
    """How many calls this thread waits for, while it runs their callbacks and iterables."""

    depth = 0


INSIDE = _Inside()


class Asked:
    """A callback that the plugin asked for. ``done`` gets the response, or the RpcError that ``run`` returns."""

    def __init__(self, run: Callable[[], bytes | RpcError]) -> None:
        self.done: Future[bytes] = Future()
        self._run = run

    def perform(self) -> None:
        """Runs it, unless nobody wants it any more. Raises what must not stay in a callback: KeyboardInterrupt and its kin."""
        if not self.done.set_running_or_notify_cancel():
            return
        response = self._run()
        if not isinstance(response, RpcError):
            self.done.set_result(response)
            return
        interrupt, response.__cause__ = response.__cause__, None
        self.done.set_exception(response)
        if interrupt is not None:
            raise interrupt


class Entry:
    """One callback that was passed, by the call of that number."""

    def __init__(self, number: int, functions: dict[str, Callable[..., Any]], call: str) -> None:
        self.number = number
        self.functions = functions
        self.call = call
        self.server: Any = None
        self.dialled = False
        self.given_up = False
        self.until_s = math.inf  # nobody dialled while the call was under way: it is kept until then (monotonic)


class Callbacks:
    """What one connection has passed.

    Args: ``off_main(act)`` runs ``act`` where the engine may be touched, and gives what it gives; ``name`` is the plugin's.
    """

    def __init__(self, broker: Broker, off_main: Callable[[Callable[[], Any]], Any], copies: ArrayCopies, name: str) -> None:
        self._broker = broker
        self._off_main = off_main
        self._copies = copies
        self._name = name
        self._codecs: dict[str, MethodCodec] = {}
        self._entries: dict[int, Entry] = {}
        self._undialled: list[Entry] = []  # whose calls are over, for the thread
        self._waiting: dict[str, TimedQueue[Any]] = {}
        self._lock = threading.Lock()
        self._jobs: TimedQueue[Callable[[], None] | None] = TimedQueue()
        self._thread: threading.Thread | None = None

    def register(self, value: Any, node: TypeNode, rpcs: tuple[Rpc, ...], call: str) -> Entry:
        """Serves a callback from now on. Raises Unfit, ConfigError, LocalProtocolError, Closed."""
        if node.interface is None:
            if not callable(value):
                raise Unfit(f"{type(value).__qualname__}, which cannot be called")
            functions = {rpc.path: value for rpc in rpcs}
        else:
            implemented = {method.name for method in check_implementation(value, node.interface)}
            functions = {rpc.path: getattr(value, rpc.method.name) for rpc in rpcs if rpc.method.name in implemented}
        self.start()
        if len(self._entries) >= CALLBACKS_MAX:
            self._make_room()
        if len(self._entries) >= CALLBACKS_MAX:
            raise LocalProtocolError(f"the plugin keeps {CALLBACKS_MAX} callbacks; let it drop those that it does not need any more")
        entry = Entry(self._broker.next_id(), functions, call)
        self._entries[entry.number] = entry
        methods = {
            rpc.path: Handler(HandlerKind.UNARY, self._handler(entry, self._codec(node, rpc))) for rpc in rpcs if rpc.path in functions
        }
        try:
            entry.server = self._off_main(lambda: self._serve(entry, methods))
        except BaseException:
            self.release(entry)
            raise
        if entry.number not in self._entries:  # ended already
            self._jobs.put(entry.server.close)
        return entry

    def _codec(self, node: TypeNode, rpc: Rpc) -> MethodCodec:
        found = self._codecs.get(rpc.path)
        if found is None:
            found = self._codecs[rpc.path] = callback_codec(node, rpc, self._copies)
        return found

    def _serve(self, entry: Entry, methods: MethodTable) -> Any:
        def dialled() -> None:
            entry.dialled = True

        return self._broker.serve_one(
            entry.number, lambda server: server.add_methods(methods), dialled=dialled, ended=lambda: self.release(entry)
        )

    def release(self, entry: Entry) -> None:
        """It will not be called any more. Idempotent, from any thread."""
        if self._entries.pop(entry.number, None) is not None:
            entry.functions = {}
            self._jobs.put(lambda: entry.server.close() if entry.server is not None else None)

    def call_over(self, entry: Entry, *, given_up: bool) -> None:
        """The call that passed it is over. A plugin that wants it afterwards has dialled, or does so soon.

        Args: ``given_up``: the plugin is one of fastplug's, and nobody waited for its answer.
        """
        if not entry.dialled:
            entry.given_up = given_up
            entry.until_s = time.monotonic() + (GIVEN_UP_S if given_up else self._broker.timeout_s)
            self._jobs.put(lambda: self._undialled.append(entry))

    def _make_room(self) -> None:
        now = time.monotonic()  # the thread may be busy with a callback
        for entry in list(self._entries.values()):
            if (entry.given_up or entry.until_s <= now) and not entry.dialled:
                self.release(entry)

    def _release_late(self) -> float | None:
        """Releases what nobody dialled in time. Seconds until there is more; None without any. For the thread."""
        now = time.monotonic()
        self._undialled = [entry for entry in self._undialled if not entry.dialled and entry.number in self._entries]
        for entry in self._undialled:
            if entry.until_s <= now:
                self.release(entry)
        return min((entry.until_s - now for entry in self._undialled if entry.until_s > now), default=None)

    # -- where they run

    def wait_here(self, call: str, events: TimedQueue[Any]) -> None:
        """From now on, what the handler of this call asks for is put into ``events``; whoever reads them performs it."""
        with self._lock:
            self._waiting[call] = events

    def wait_no_more(self, call: str, events: TimedQueue[Any]) -> None:
        """What was put there and not performed goes its other way."""
        with self._lock:
            self._waiting.pop(call, None)
        while True:
            try:
                event = events.get_nowait()
            except Empty:
                return
            if isinstance(event, Asked):
                self._jobs.put(event.perform)

    def _handler(self, entry: Entry, codec: MethodCodec) -> Callable[[bytes, CallContext], bytes]:
        def handle(request: bytes, context: CallContext) -> bytes:
            headers = dict(context.invocation_metadata())
            asked = Asked(lambda: _answer(entry, codec, request, fastplug_host=HOST_KEY in headers))
            # Only fastplug's plugins know which handler asks. Of others it is the one of the call that passed it, as far as one can tell.
            self._hand_over(asked, str(headers.get(CALL_KEY, entry.call)))
            if not context.add_callback(asked.done.cancel):
                asked.done.cancel()
            try:
                return asked.done.result()  # ends with the answer, the asking call, or the connection
            except CancelledError as error:
                raise RpcError(Code.CANCELLED, "nobody waits for this callback any more") from error

        return handle

    def _hand_over(self, asked: Asked, call: str) -> None:
        with self._lock:
            events = self._waiting.get(call)
            if events is not None:
                events.put(asked)
            else:
                self._jobs.put(asked.perform)

    def start(self) -> None:
        """Starts the thread for callbacks that no call waits for. Idempotent."""
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name=f"fastplug callbacks {self._name}", daemon=True)
                    self._thread.start()

    def _run(self) -> None:
        INSIDE.depth = 1  # handlers wait for what runs here, if not their callers
        while (act := self._next()) is not None:
            try:
                act()
            except BaseException as error:  # noqa: BLE001  what a callback raised has been answered
                del error
            del act  # not kept until the next one comes

    def _next(self) -> Callable[[], None] | None:
        while True:
            try:
                return self._jobs.get(timeout=self._release_late())  # ends with a job, or close()
            except Empty:
                continue

    def close(self) -> None:
        """After the broker was closed: ends the thread. Idempotent."""
        for entry in list(self._entries.values()):
            self.release(entry)
        self._jobs.put(None)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(JOIN_TIMEOUT_S)


def _answer(entry: Entry, codec: MethodCodec, request: bytes, *, fastplug_host: bool) -> bytes | RpcError:
    """The response, or what the plugin gets instead; its cause is an error that must not stay in the callback."""
    function = entry.functions.get(codec.path)
    if function is None:
        return RpcError(Code.FAILED_PRECONDITION, f"{codec.qualified} was released")
    try:
        args, kwargs = codec.decode_arguments(request)
        return codec.encode_result(function(*args, **kwargs))
    except RemoteProtocolError as error:
        return RpcError(Code.INVALID_ARGUMENT, error.args[0])
    except BaseException as error:  # noqa: BLE001  the plugin gets it
        status = status_of(error, fastplug_host=fastplug_host)
        if not isinstance(error, Exception):
            status.__cause__ = error
        return status
