"""The host's end over gRPC."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from fastplug.contexts import METADATA
from fastplug.deadlines import remaining_s
from fastplug.errors import (
    Cancelled,
    Closed,
    ConnectionLost,
    DeadlineExceeded,
    HandshakeError,
    InterfaceMismatch,
    RemoteError,
    RemoteProtocolError,
    RpcError,
    TlsRefused,
    seen_by_handler,
)
from fastplug.interfaces import Interface
from fastplug.process.stacks import process_state
from fastplug.protocol import HostContext
from fastplug.protocols._drawn import drawn
from fastplug.protocols.grpc.arrays import ArrayCopies
from fastplug.protocols.grpc.broker import Broker, Conversation
from fastplug.protocols.grpc.callbacks import INSIDE, Callbacks
from fastplug.protocols.grpc.calls import Calls
from fastplug.protocols.grpc.catalog import Catalog
from fastplug.protocols.grpc.channel import Channel, Code, Limits, select
from fastplug.protocols.grpc.codec import MethodCodec
from fastplug.protocols.grpc.connection import HostConnection
from fastplug.protocols.grpc.errors import HOST_KEY, Malformed, remote_error_in
from fastplug.protocols.grpc.exchange import Exchange, ResultStream
from fastplug.protocols.grpc.host_stdio import HostStdio
from fastplug.protocols.grpc.messages import DESCRIBE, HEALTH_CHECK, SHUTDOWN, STACK, STATS, Empty, HealthRequest, Json
from fastplug.protocols.grpc.schema import schema_of
from fastplug.protocols.grpc.stdio import STDERR, STDOUT
from fastplug.protocols.grpc.stream import WITHOUT_A_WORD
from fastplug.protocols.grpc.streaming import StreamCalls
from fastplug.protocols.grpc.workers import CALL_KEY, DEPTH_KEY
from fastplug.protocols.handle import RemoteMethod, absent_method, make_handle
from fastplug.signature import InterfaceDescription, check_offer, checked_description, offered_index

if TYPE_CHECKING:
    import numpy.typing as npt

    from fastplug.protocols.grpc.many import GrpcCall, GrpcMapped, InFlight

__all__ = ["GrpcClient"]

# As grpc-go under go-plugin sends it over a socket without TLS.
AUTHORITY = "unused"
# Shutdown is answered at once or never: the plugin's main thread is not needed for it.
SHUTDOWN_TIMEOUT_S = 2.0
# What a plugin that has ended had printed is in the socket already.
STDIO_SETTLE_TIMEOUT_S = 0.5
# stats() must not hang on a plugin that hangs; a healthy one answers in milliseconds.
STATS_TIMEOUT_S = 1.0
# A stack may delay the error of a deadline by this much.
STACK_TIMEOUT_S = 0.1

Headers = tuple[tuple[str, str], ...]
# A peer that keeps the deadline, too, may be first: grpc-go then resets the stream, which counts as CANCELLED here. grpc-timeout has eight
# digits and is rounded; ten milliseconds are more than that and two clocks make.
DEADLINE_SLACK_S = 0.01
# Of a plugin that ends and does not come to a call any more, and of any call whose connection has ended.
REFUSED = (Code.UNAVAILABLE, Code.CANCELLED)
LOST = (*REFUSED, Code.UNKNOWN, Code.INTERNAL)
CANCELLED = f"{Cancelled.__module__}.{Cancelled.__qualname__}"
# A plugin describes its interfaces in a few KiB; more than this is no description.
DESCRIPTION_CHARACTERS_MAX = 16 << 20


class GrpcClient:
    """ClientProtocol over gRPC. Methods may be called from any thread of the process that made it."""

    transport = "grpc"

    def __init__(self, context: HostContext) -> None:
        self._context = context
        self._owner_pid = os.getpid()
        self._closed = False
        self._stopping = False  # the plugin was asked to end
        self._made = 0
        self._numbers = itertools.count(1)
        self._copies = ArrayCopies(strict=context.config.strict_zero_copy)
        self._offered: list[InterfaceDescription] | None = None
        self._asked = False
        self._shutdown: Any = None
        config = context.config
        engine = select(config.grpc_engine)
        self._connection = HostConnection(context)
        self.channel: Channel = engine.connect(
            self._connection.stream,
            self._connection.tls,
            authority=context.tls.server_name if context.tls is not None else AUTHORITY,
            limits=Limits(),
            options=config.grpc_dial_options,
        )
        carrier = self._connection.make_carrier
        self.broker = Broker(engine, carrier, context.tls, timeout_s=config.broker_timeout_s, directory=context.socket_dir)
        announced = ((HOST_KEY, "1"),)
        self._calls = Calls(self.channel, announced)
        self.streams = StreamCalls(self.channel, self._calls.post, announced)
        self._callbacks = Callbacks(self.broker, self._calls.run, self._copies, context.name)
        self.catalog = Catalog(self, f"plugin {context.name!r}", config.connect_timeout_s)
        self._conversation = Conversation(self.channel, self.broker)
        sinks = {STDOUT: config.sync_stdout, STDERR: config.sync_stderr}
        logger = config.logger or logging.getLogger(f"fastplug.plugin.{context.name}")
        self._stdio = HostStdio(self.channel, {number: sink for number, sink in sinks.items() if sink is not None}, logger)
        self._await_ready()

    def _await_ready(self) -> None:
        timeout_s = self._context.config.connect_timeout_s
        try:
            self.channel.ready.result(timeout_s)
        except TimeoutError as error:
            self.close()
            text = f"plugin {self._context.name!r} took the connection and did nothing with it for {timeout_s:g} s"
            raise HandshakeError(text) from error
        except Closed as error:
            lost = self._lost(None)
            self.close()
            raise lost from error
        except BaseException:
            self.close()
            raise

    def dispense(self, interface: Interface) -> Any:
        """An object with the interface's methods. Raises InterfaceMismatch; a plugin that does not describe itself is not checked."""
        offered = self._descriptions()
        lacking: set[str] = set()
        if offered is not None:
            places = check_offer(interface, offered[offered_index(interface, offered)])
            lacking = {name for name, place in places.items() if place is None}
        methods: dict[str, Callable[..., Any]] = {}
        for rpc in schema_of(interface).rpcs:
            name = rpc.method.name
            codec = MethodCodec(rpc, interface.name, self._copies)
            kind = AwaitedRemote if rpc.method.asynchronous else Remote
            methods[name] = absent_method(interface, rpc.method) if name in lacking else kind(self, codec)
            if rpc.callbacks:
                self._callbacks.start()
        return make_handle(interface, methods, self._context.name)

    def _descriptions(self) -> list[InterfaceDescription] | None:
        # Without a lock: two threads that ask at once get the same answer, and Ctrl-C finds none that it could leave taken.
        if not self._asked:
            self._offered = self._ask()
            self._asked = True
        return self._offered

    def _ask(self) -> list[InterfaceDescription] | None:
        try:
            what = "the question for the plugin's interfaces"
            answer = self._unary(DESCRIBE, Empty().SerializeToString(), self._context.config.connect_timeout_s, None, what)
        except RpcError as status:
            if status.code == Code.UNIMPLEMENTED:
                return None
            raise
        try:
            text = Json.FromString(answer).json
            described = json.loads(text) if len(text) <= DESCRIPTION_CHARACTERS_MAX else {}
            return [checked_description(one) for one in described["interfaces"]]
        except RemoteProtocolError:
            raise
        except Exception as error:
            raise Malformed(f"the plugin's description of its interfaces is malformed: {error!r:.200}") from error

    def call(self, remote: Remote, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One call. Raises what the class docstring of Remote says."""
        codec = remote.codec
        if codec.has_references:
            exchange, number = self.exchange(remote, args, kwargs, here=not codec.streams)
            if codec.streams:
                return ResultStream(exchange)
            with self._telling_where(number):
                return exchange.wait()
        request, timeout_s, number, metadata = self.prepared(remote, args, kwargs)
        with self._telling_where(number):
            return codec.decode_result(self._unary(codec.path, request, timeout_s, codec.qualified, f"{codec.qualified}()", metadata))

    def prepared(self, remote: Remote, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bytes, float | None, str, Headers]:
        """Of a call that is about to be made: request, remaining time, number, metadata."""
        self._check_usable(remote.codec.qualified)
        request = remote.codec.encode_arguments(args, kwargs)
        return request, *self._counted(remote)

    def _counted(self, remote: Remote) -> tuple[float | None, str, Headers]:
        timeout_s = remaining_s()
        if timeout_s is not None and timeout_s <= 0:
            raise DeadlineExceeded(f"{remote.codec.qualified}(): the deadline was over before the call; nothing was sent")
        self._made += 1  # two threads may lose one to each other; it is a statistic
        outer, number = METADATA.get(), str(next(self._numbers))
        own = ((CALL_KEY, number), (DEPTH_KEY, str(INSIDE.depth))) if INSIDE.depth else ((CALL_KEY, number),)
        return timeout_s, number, (*own, *(outer[0].items() if outer is not None else ()))

    def exchange(self, remote: Remote, args: tuple[Any, ...], kwargs: dict[str, Any], *, here: bool) -> tuple[Exchange, str]:
        """A call with streams or callbacks, which has been sent, and its number. ``here``: callbacks run on the thread that waits."""
        codec = remote.codec
        self._check_usable(codec.qualified)
        timeout_s, number, metadata = self._counted(remote)
        until_s = None if timeout_s is None else time.monotonic() + timeout_s

        def translate(status: RpcError) -> Exception:
            return self.failure(status, codec.qualified, f"{codec.qualified}()", None if until_s is None else until_s - time.monotonic())

        exchange = Exchange(codec, number, self._callbacks, translate, until_s=until_s, understands=bool(self._offered))
        exchange.begin(self.streams, args, kwargs, timeout_s, metadata, here=here)
        return exchange, number

    @contextlib.contextmanager
    def _telling_where(self, number: str) -> Iterator[None]:
        """DeadlineExceeded gets the plugin's stack."""
        try:
            yield
        except DeadlineExceeded as error:
            self.tell_where(error, number)
            raise

    def tell_where(self, error: Cancelled | DeadlineExceeded, number: str) -> None:
        """The error of that call, which was given up, gets the plugin's stack."""
        if not (isinstance(error, RemoteError) or error.plugin_stack or error.no_stack):
            error.plugin_stack, error.no_stack = self.stack(number)

    @functools.cached_property
    def in_flight(self) -> InFlight:
        """The submitted calls."""
        from fastplug.protocols.grpc.many import InFlight

        return InFlight()

    def begin(
        self, path: str, request: bytes, timeout_s: float | None, metadata: Headers, done: Callable[[bytes | RpcError], object]
    ) -> Any:
        """Sends a request; ``done`` is told the outcome, on a thread of the engine."""
        return self._calls.begin(path, request, timeout_s, metadata, done)

    def post(self, act: Callable[[], None]) -> None:
        """Has ``act``, which must not raise or wait, run on a thread that may touch the engine."""
        self._calls.post(act)

    def call_unary(self, path: str, request: bytes, timeout_s: float | None, what: str, metadata: Headers = ()) -> bytes:
        """One call of a service. Raises RpcError, DeadlineExceeded, PluginDied, Closed, what a fastplug plugin's handler raised."""
        self._made += 1
        return self._unary(path, request, timeout_s, None, what, metadata)

    def translated(self, status: RpcError, what: str) -> Exception:
        """The error of the tree for a failed call of a service."""
        return self._translated(status, None, what)

    def check_open(self, what: str) -> None:
        """Raises Closed, PluginDied or ConnectionLost."""
        self._check_usable(what)

    def stack(self, number: str) -> tuple[str, str]:
        """Where the plugin is in a call that was given up, and when that is not known, why."""
        stopped = process_state(self._context.pid) if self._context.pid is not None else ""
        if stopped or not self._offered:
            return "", stopped or "only fastplug's own plugins tell it"
        try:
            answer = self._calls.unary(STACK, Json(json=number).SerializeToString(), STACK_TIMEOUT_S)
            return Json.FromString(answer).json, ""
        except RpcError as status:
            if status.code == Code.DEADLINE_EXCEEDED:
                return "", "the plugin does not answer: C code holds its GIL, and over gRPC there is no other way to ask"
            return "", status.message

    def _unary(self, path: str, request: bytes, timeout_s: float | None, qualified: str | None, what: str, metadata: Headers = ()) -> bytes:
        """The response. Raises an error of the tree."""
        self._check_usable(qualified)
        until = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            return self._calls.unary(path, request, timeout_s, metadata)
        except RpcError as status:
            raise self.failure(status, qualified, what, None if until is None else until - time.monotonic()) from status

    def failure(self, status: RpcError, qualified: str | None, what: str, left_s: float | None) -> Exception:
        """The error of the tree for a failed call, which had so much time left."""
        error = self._translated(status, qualified, what)
        if left_s is None or left_s > DEADLINE_SLACK_S:
            return error
        # A handler that was told, by context().check() or by the end of its stream, may be first, too.
        if status.code == Code.CANCELLED or (isinstance(error, RemoteError) and error.type_name == CANCELLED):
            return DeadlineExceeded(f"{what} was ended by the plugin when its deadline was over")
        return error

    def _translated(self, status: RpcError, qualified: str | None, what: str) -> Exception:
        """The error of the tree for a failed call."""
        packed = remote_error_in(status, qualified or "")
        if packed is not None:
            return seen_by_handler(packed) if remaining_s() is not None else packed
        if status.code == Code.DEADLINE_EXCEEDED:
            return DeadlineExceeded(f"{what} had no answer before the deadline; a late one will be dropped")
        if status.code in (LOST if self.channel.closed.done() else REFUSED if self._stopping else ()):
            return self._lost(qualified)
        if status.code == Code.UNIMPLEMENTED and qualified:
            interface, _, method = qualified.rpartition(".")
            text = f"the plugin does not have {what}: {status.message}. Use a plugin built for {interface}."
            return InterfaceMismatch(text, interface=interface, method=method, expected=method, got=None)
        return RpcError(status.code, status.message, status.details, status.trailers)

    def _lost(self, method: str | None) -> Exception:
        """Why the connection has ended."""
        reason = self.channel.closed.result() if self.channel.closed.done() else ""
        if reason.startswith("TLS"):
            return TlsRefused(f"plugin {self._context.name!r}: {reason}")
        error = self._context.lost(method)
        if not isinstance(error, ConnectionLost):
            return error
        if reason.endswith(WITHOUT_A_WORD):
            return TlsRefused(
                f"plugin {self._context.name!r} closed the connection without a word, and runs on: it probably insists on TLS. "
                "Start it with auto_mtls=True, or give certificates (tls=)."
            )
        return ConnectionLost(error.name, reason=reason, stderr_tail=error.stderr_tail, calling=error.calling)

    def _check_usable(self, method: str | None) -> None:
        if os.getpid() != self._owner_pid:
            raise Closed(
                f"this handle belongs to process {self._owner_pid}; this is process {os.getpid()}, forked from it. "
                "Open the plugin again here (fastplug.Spec can be passed on)."
            )
        if self._closed or self.channel.closed.done():
            raise self._lost(method)

    def ping(self, timeout_s: float) -> None:
        """Health check of service "plugin", as go-plugin's Ping: any answer counts."""
        self._unary(HEALTH_CHECK, HealthRequest(service="plugin").SerializeToString(), timeout_s, None, "the ping")

    def request_stop(self, failed: Callable[[], None]) -> None:
        """GRPCController.Shutdown. A plugin may end before it answers, so that no answer counts as success; one without it says so."""

        def told(outcome: bytes | RpcError) -> None:
            if isinstance(outcome, RpcError) and outcome.code == Code.UNIMPLEMENTED:
                failed()

        if self._closed or os.getpid() != self._owner_pid:
            return
        self._stopping = True
        if self.channel.closed.done():
            failed()
        else:
            self._shutdown = self._calls.send(SHUTDOWN, Empty().SerializeToString(), SHUTDOWN_TIMEOUT_S, told)

    def peer_exited(self) -> None:
        """Every waiting call ends; what it had printed is taken first."""
        self._stdio.join(STDIO_SETTLE_TIMEOUT_S)
        self.close()

    def close(self) -> None:
        """Ends the connection. Idempotent; in a forked child it does nothing, the connection is the parent's."""
        if os.getpid() == self._owner_pid:
            self._closed = True
            self.broker.close()
            self.channel.close()
            self.streams.close()
            self._calls.close()
            self._callbacks.close()
            if "in_flight" in vars(self):
                self.in_flight.join()
            self._connection.close()
            self._conversation.join()
            self._stdio.join()
            self._shutdown = None

    def stats(self) -> dict[str, Any]:
        """Counters of both sides; the plugin's are None when it keeps none, or does not answer within 1 s."""
        found = {"transport": self.transport, "calls": self._made}
        found |= {"copies": self._copies.copies, "copied_bytes": self._copies.copied_bytes}
        remote: dict[str, Any] = {}
        with contextlib.suppress(Exception):  # stats of a plugin that is gone are those of this side
            answer = self._unary(STATS, Empty().SerializeToString(), STATS_TIMEOUT_S, None, "the question for counters")
            remote = json.loads(Json.FromString(answer).json)
        return found | {f"plugin_{key}": remote.get(key) for key in ("calls", "copies", "copied_bytes")}

    def empty(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """An ordinary array: gRPC copies every one. Raises Closed and what the plugin's end is told as."""
        self._check_usable(None)
        import numpy as np

        return np.empty(shape, dtype)

    def blocks(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike, count: int, timeout_s: float) -> Iterator[npt.NDArray[Any]]:
        """Ordinary arrays, each a new one: nothing here is shared that a reader could hold on to."""
        while True:
            yield self.empty(shape, dtype)


@RemoteMethod.register
class Remote:
    """One method of a dispensed interface, callable from any thread.

    Raises what the handler raises (as RemoteError), ArgumentError, DeadlineExceeded, PluginDied, Closed, InterfaceMismatch, CopyRequired,
    RemoteProtocolError, and RpcError for any other status.
    """

    def __init__(self, client: GrpcClient, codec: MethodCodec) -> None:
        self.codec = codec
        self.client = client
        self.__name__ = codec.method.name
        self.__qualname__ = codec.qualified
        self.__doc__ = codec.method.doc
        self.__signature__ = codec.method.signature

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.client.call(self, args, kwargs)

    def submit(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> GrpcCall:
        """A Call of this method. Raises what a call raises before it sends anything."""
        from fastplug.protocols.grpc.many import submitted

        return submitted(self, args, kwargs)

    def mapped(self, iterables: tuple[Iterable[Any], ...], in_flight: int, ordered: bool, goes_on: bool) -> GrpcMapped:
        """What ``fastplug.map`` gives."""
        from fastplug.protocols.grpc.many import GrpcMapped

        return GrpcMapped(self, zip(*iterables, strict=False), in_flight, ordered, goes_on)

    def __repr__(self) -> str:
        return f"<fastplug method {self.codec.qualified}>"

    def __reduce__(self) -> Any:
        raise TypeError("a live method cannot be pickled; pickle a fastplug.Spec and open it where it is needed")


class AwaitedRemote(Remote):
    """A method that is declared ``async def``: calling it gives a coroutine, and awaiting that makes the call."""

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return await self.submit(tuple(map(drawn, args)), {name: drawn(value) for name, value in kwargs.items()})
