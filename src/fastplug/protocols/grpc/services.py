"""The services that every plugin has beside its own: health, controller, stdio, directory. Engine-neutral method tables."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

from fastplug.errors import RpcError
from fastplug.protocols.grpc.channel import CallContext, Code, Handler, HandlerKind, MethodTable
from fastplug.protocols.grpc.messages import (
    DESCRIBE,
    HEALTH_CHECK,
    HEALTH_WATCH,
    SHUTDOWN,
    STACK,
    STATS,
    STREAM_STDIO,
    Empty,
    HealthRequest,
    HealthResponse,
    Json,
    StdioData,
)
from fastplug.protocols.grpc.stdio import StdioFeed

__all__ = ["Services"]

SERVING = 1
# go-plugin sets "plugin"; "" stands for the whole server by the health protocol.
_HEALTHY = ("plugin", "")


class Services:
    """The internal services of one plugin.

    Args: ``describe`` gives the JSON of the interfaces, ``stats`` that of the counters; ``shutdown`` is told, once or more, that the
    host wants the end; ``stack`` says where the call of that number is; ``stdio`` has what is printed, for a host that streams it, None
    when there is nothing to stream.
    Handlers run on the engine's threads; ``end`` may be called from any.
    """

    def __init__(
        self,
        describe: Callable[[], str],
        stats: Callable[[], str],
        shutdown: Callable[[], None],
        stack: Callable[[str], str],
        stdio: StdioFeed | None = None,
    ) -> None:
        self._describe = describe
        self._stats = stats
        self._shutdown = shutdown
        self._stack = stack
        self._stdio = stdio
        self._ended = False
        self._held: set[threading.Event] = set()
        self._lock = threading.Lock()

    def methods(self) -> MethodTable:
        """Path to handler."""
        unary, stream = HandlerKind.UNARY, HandlerKind.SERVER_STREAM
        return {
            HEALTH_CHECK: Handler(unary, self._check, HealthRequest.FromString, HealthResponse.SerializeToString),
            HEALTH_WATCH: Handler(stream, self._watch, HealthRequest.FromString, HealthResponse.SerializeToString),
            SHUTDOWN: Handler(unary, self._stop, Empty.FromString, Empty.SerializeToString),
            STREAM_STDIO: Handler(stream, self._stream, Empty.FromString, StdioData.SerializeToString),
            DESCRIBE: Handler(unary, lambda request, context: Json(json=self._describe()), Empty.FromString, Json.SerializeToString),
            STACK: Handler(unary, lambda request, context: Json(json=self._stack(request.json)), Json.FromString, Json.SerializeToString),
            STATS: Handler(unary, lambda request, context: Json(json=self._stats()), Empty.FromString, Json.SerializeToString),
        }

    def end(self) -> None:
        """Ends the streams that are held open. Idempotent."""
        with self._lock:
            self._ended = True
            for event in self._held:
                event.set()
        if self._stdio is not None:
            self._stdio.end()

    def _check(self, request: Any, context: CallContext) -> Any:
        if request.service not in _HEALTHY:
            raise RpcError(Code.NOT_FOUND, f"unknown service {request.service[:200]!r}")
        return HealthResponse(status=SERVING)

    def _watch(self, request: Any, context: CallContext) -> Iterator[Any]:
        yield self._check(request, context)
        self._hold(context).wait()  # as long as the host wants to watch; end() ends it

    def _stop(self, request: Any, context: CallContext) -> Any:
        self._shutdown()
        return Empty()

    def _stream(self, request: Any, context: CallContext) -> Iterator[Any]:
        """Held open as long as the host listens: a go-plugin host takes its end for a plugin that went away."""
        feed = self._stdio
        if feed is None:
            self._hold(context).wait()
            return
        reader = object()
        if context.add_callback(lambda: feed.leave(reader)):
            for channel, data in feed.read(reader):
                yield StdioData(channel=channel, data=data)

    def _hold(self, context: CallContext) -> threading.Event:
        """An event that is set when the call, or the plugin, ends."""
        event = threading.Event()

        def release() -> None:
            event.set()
            with self._lock:
                self._held.discard(event)

        with self._lock:
            self._held.add(event)
            ended = self._ended
        if ended or not context.add_callback(release):
            release()
        return event
