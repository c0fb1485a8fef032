"""What a handler gets for a callback: a connection of its own to the host, through the broker, and on it the methods to call."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

from fastplug.annotation import TypeNode
from fastplug.broker import GRPCBroker
from fastplug.deadlines import remaining_s
from fastplug.errors import Closed, DeadlineExceeded, RpcError
from fastplug.protocols.grpc.arrays import ArrayCopies
from fastplug.protocols.grpc.channel import Channel, Code, rpc_error
from fastplug.protocols.grpc.codec import MethodCodec
from fastplug.protocols.grpc.errors import HOST_KEY, remote_error_in
from fastplug.protocols.grpc.schema import Rpc
from fastplug.protocols.grpc.workers import CALL_KEY, Activation, Workers
from fastplug.protocols.handle import make_handle
from fastplug.signature import canonical

__all__ = ["Targets", "callback_codec"]

# The thread that closes connections has nothing to wait for but its queue.
JOIN_TIMEOUT_S = 2.0


def callback_codec(node: TypeNode, rpc: Rpc, copies: ArrayCopies) -> MethodCodec:
    """The codec of one method of a callback."""
    name = node.interface.name if node.interface is not None else canonical(node)
    return MethodCodec(rpc, name, copies, callback=True)


class _Passed:
    """The connection to one callback. It is closed when nobody refers to this any more."""

    def __init__(self, channel: Channel, activation: Activation, workers: Workers) -> None:
        self.channel = channel
        self.activation = activation
        self.workers = workers


class Target:
    """One method of what stays in the host. Callable from any thread of the plugin."""

    def __init__(self, passed: _Passed, codec: MethodCodec) -> None:
        self._passed = passed
        self._codec = codec
        self.__name__ = codec.method.name or "callback"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        passed, what = self._passed, f"{self._codec.qualified}()"
        request = self._codec.encode_arguments(args, kwargs)
        timeout_s = remaining_s()
        if timeout_s is not None and timeout_s <= 0:
            raise DeadlineExceeded(f"{what}: the deadline was over before the callback; nothing was sent")
        worker = passed.workers.here()
        inside = worker is not None and bool(worker.running) and worker.running[-1].activation is passed.activation
        metadata = ((HOST_KEY, "1"), (CALL_KEY, passed.activation.number if inside else "0"))
        answered: Future[bytes] = Future()
        try:
            pending = passed.channel.unary_unary(self._codec.path).future(request, timeout=timeout_s, metadata=metadata)
        except ValueError as error:  # the channel was closed
            raise Closed("the host is gone; it cannot be called back") from error
        pending.add_done_callback(lambda _: _settle(pending, answered))
        if worker is not None:
            answered.add_done_callback(lambda _: worker.wake())
            passed.workers.wait(answered.done)
        failed = answered.exception()  # ends with the answer, the deadline, or the connection
        if failed is not None:
            # Not raised itself: its traceback would keep this callback in a cycle.
            raise self._translated(failed)
        return self._codec.decode_result(answered.result())

    def _translated(self, status: BaseException) -> BaseException:
        if not isinstance(status, RpcError):
            return status
        raised = remote_error_in(status, self._codec.qualified, "host")
        if raised is not None:
            return raised
        if status.code == Code.DEADLINE_EXCEEDED:
            return DeadlineExceeded(f"{self!r} had no answer before the deadline; a late one will be dropped")
        if status.code in (Code.UNAVAILABLE, Code.CANCELLED):
            return Closed(f"the host cannot be called back any more: {status.message}")
        return status

    def __repr__(self) -> str:
        return f"<fastplug callback {self._codec.qualified}>"

    def __reduce__(self) -> Any:
        raise TypeError("a callback cannot be pickled: it lives in the host")


def _settle(pending: Any, answered: Future[bytes]) -> None:
    try:
        failed = pending.exception()
    except Exception as error:  # noqa: BLE001  a cancelled future raises its engine's own kind of error
        answered.set_exception(RpcError(Code.CANCELLED, str(error)))
        return
    if failed is not None:
        answered.set_exception(rpc_error(failed))
    else:
        answered.set_result(pending.result())


class Targets:
    """Makes the targets of one plugin, and closes their connections when the handlers have dropped them."""

    def __init__(self, broker: GRPCBroker, workers: Workers, copies: ArrayCopies) -> None:
        self._broker = broker
        self._workers = workers
        self._copies = copies
        self._codecs: dict[str, MethodCodec] = {}
        self._dropped: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._closer: threading.Thread | None = None
        self._lock = threading.Lock()

    def target(self, number: int, node: TypeNode, rpcs: tuple[Rpc, ...], activation: Activation) -> Any:
        """What stands for callback ``number``. Dials at once: an announcement does not wait for long. Raises BrokerTimeout, Closed."""
        self._start()
        channel = self._broker.dial(number)
        passed = _Passed(channel, activation, self._workers)
        weakref.finalize(passed, self._dropped.put, channel.close).atexit = False
        made = {rpc.method.name: Target(passed, self._codec(node, rpc)) for rpc in rpcs}
        return made[""] if node.interface is None else make_handle(node.interface, made, "the host (a callback)")

    def _codec(self, node: TypeNode, rpc: Rpc) -> MethodCodec:
        found = self._codecs.get(rpc.path)
        if found is None:
            found = self._codecs[rpc.path] = callback_codec(node, rpc, self._copies)
        return found

    def _start(self) -> None:
        with self._lock:
            if self._closer is None:
                closer = threading.Thread(target=self._close_dropped, name="fastplug-grpc-dropped", daemon=True)
                closer.start()  # before close() can see it
                self._closer = closer

    def _close_dropped(self) -> None:
        """A finalizer must not touch the engine: it may run anywhere, also inside of it."""
        while (close := self._dropped.get()) is not None:
            close()

    def close(self) -> None:
        """Ends the thread; the broker closes what is left. Idempotent."""
        self._dropped.put(None)
        if self._closer is not None:
            self._closer.join(JOIN_TIMEOUT_S)
