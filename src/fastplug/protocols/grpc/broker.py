"""The broker of one connection, on either side: the numbers, the stream between the two brokers, what is served and dialled.

What goes over that stream, and how a connection then comes about, is a *Carrier*'s business: ``carrier.py`` makes a socket for each.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, Self

from google.protobuf import descriptor_pool

from fastplug.errors import Closed, HandshakeError, TlsRefused
from fastplug.protocols.grpc.channel import ByteStream, CallContext, Channel, Code, Engine, Limits, Server, Tls, code_of
from fastplug.protocols.grpc.messages import POOL, START_STREAM, ConnInfo
from fastplug.protocols.grpc.reflection import reflection_methods

__all__ = ["Broker", "Carrier", "Conversation", "Listening"]

# As grpc-go under go-plugin sends it over a connection without TLS.
AUTHORITY = "unused"
# Announcements that may wait for the peer's stream; more means a peer that does not read it.
OUTBOX_MAX = 256
# Calls at a time on one brokered connection. Threads are made when they are needed.
WORKERS = 64
# How long the accepting thread may take to notice that its listener is closed.
JOIN_TIMEOUT_S = 2.0
# A server with calls in hand when its broker is closed: they are cancelled at once, their threads end by themselves.
STOP_TIMEOUT_S = 2.0

_log = logging.getLogger("fastplug.grpc")

# Of a server for one connection: told when it has come, and when it is gone.
_Only = tuple[Callable[[], None], Callable[[], None]]


class Listening(Protocol):
    """Where connections for one number come in."""

    def accept(self) -> ByteStream | None:
        """Waits for one; None after close()."""
        ...

    def close(self) -> None:
        """Ends a waiting accept(). Idempotent."""


class Carrier(Protocol):
    """How brokered connections come about. Methods may be called from any thread."""

    tls_inside: bool
    """Whether it takes care of TLS itself, so that the streams it gives are in the clear."""

    def listen(self, service_id: int) -> Listening:
        """Announces ``service_id``, and listens for it."""
        ...

    def dial(self, service_id: int, timeout_s: float) -> ByteStream:
        """A connection to what the peer accepts under ``service_id``. Raises BrokerTimeout."""
        ...

    def received(self, info: Any) -> None:
        """Told of each ConnInfo that the peer sends. Must not wait."""

    def close(self) -> None:
        """Nobody waits for a number any more. Idempotent."""


class Broker:
    """fastplug.broker.GRPCBroker."""

    def __init__(
        self,
        engine: Engine,
        make_carrier: Callable[[Callable[[Any], None]], Carrier],
        tls: Tls | None,
        *,
        timeout_s: float,
        directory: str | None = None,
    ) -> None:
        self._directory = directory  # for the engine's own files
        self.timeout_s = timeout_s
        self._engine = engine
        self._ids = itertools.count(1)
        self._outbox: collections.deque[Any] = collections.deque()
        self._carrier = make_carrier(self._post)
        self._tls = None if self._carrier.tls_inside else tls
        self._authority = tls.server_name if tls is not None else AUTHORITY
        self._lock = threading.Lock()
        self._turn = threading.Condition(self._lock)  # something to say, another conversation, or the end
        self._open: set[_Listener | Channel] = set()
        self._talk: object = None  # the conversation that the peer reads; a new one takes over
        self._closed = ""

    def next_id(self) -> int:
        return next(self._ids)

    def accept(self, service_id: int) -> _Listener:
        self._check_open()
        made = _Listener(self, service_id, self._carrier.listen(service_id))
        self._keep(made)
        return made

    def accept_and_serve(
        self,
        service_id: int,
        register: Callable[[Any], object],
        *,
        interceptors: Sequence[Any] = (),
        options: Sequence[tuple[str, Any]] = (),
    ) -> _Server:
        listener = self.accept(service_id)
        try:
            return listener.serve(register, interceptors=interceptors, options=options)
        except BaseException:
            listener.close()
            raise

    def serve_one(
        self, service_id: int, register: Callable[[Any], object], *, dialled: Callable[[], None], ended: Callable[[], None]
    ) -> _Server:
        """``accept_and_serve`` for one connection: ``dialled`` is told when it has come, ``ended`` when it is gone."""
        listener = self.accept(service_id)
        try:
            return listener.serve(register, only=(dialled, ended))
        except BaseException:
            listener.close()
            raise

    def dial(self, service_id: int, *, timeout_s: float | None = None, options: Sequence[tuple[str, Any]] = ()) -> Any:
        self._check_open()
        stream = self._carrier.dial(service_id, self.timeout_s if timeout_s is None else timeout_s)
        try:
            channel = self._engine.connect(
                stream, self._tls, authority=self._authority, limits=Limits(), options=options, directory=self._directory
            )
        except BaseException:
            stream.close()
            raise
        channel.closed.add_done_callback(lambda ended: self._channel_ended(service_id, channel, ended.result()))
        self._keep(channel)
        if self._tls is not None:
            self._await_trust(service_id, channel, self.timeout_s if timeout_s is None else timeout_s)
        return channel

    def _await_trust(self, service_id: int, channel: Channel, timeout_s: float) -> None:
        """A refusal by either side is told here: the first call would know only that there is no connection.

        Raises TlsRefused, HandshakeError, Closed.
        """

        with contextlib.suppress(ValueError):  # closed meanwhile: ready says why
            channel.connect()
        try:
            channel.ready.result(timeout_s)
        except TimeoutError:
            pass  # the peer listens, and has nobody yet who serves: its calls will wait
        except (TlsRefused, Closed) as error:
            channel.close()
            self._check_open()
            kind = TlsRefused if isinstance(error, TlsRefused) else HandshakeError
            raise kind(f"the brokered connection {service_id}: {error}") from error

    def _channel_ended(self, service_id: int, channel: Channel, reason: str) -> None:
        if reason.startswith("TLS"):
            _log.error("the brokered connection %s: %s", service_id, reason)
        self._drop(channel)

    def _serve(
        self, listener: _Listener, register: Callable[[Any], object], interceptors: Sequence[Any], options: Any, only: _Only | None
    ) -> _Server:
        server = self._engine.server(
            workers=WORKERS, limits=Limits(), interceptors=interceptors, options=options, directory=self._directory
        )
        try:
            register(server)
            server.add_methods(reflection_methods(server.service_names, lambda: (POOL, descriptor_pool.Default(), *server.pools())))
            return _Server(listener, server, self._tls, only)
        except BaseException:
            server.stop(None)
            raise

    def _keep(self, made: _Listener | Channel) -> None:
        with self._lock:
            self._open.add(made)
            closed = self._closed
        if closed:
            made.close()
            self._drop(made)
            raise Closed(closed)

    def _drop(self, made: _Listener | Channel) -> None:
        with self._lock:
            self._open.discard(made)

    def _check_open(self) -> None:
        if self._closed:
            raise Closed(self._closed)

    # -- the stream between the two brokers

    def _post(self, info: Any) -> None:
        """For the carrier: sends one ConnInfo as soon as the peer reads. Raises Closed."""
        with self._turn:
            if self._closed:
                raise Closed(self._closed)
            if len(self._outbox) >= OUTBOX_MAX:
                raise Closed(f"the peer does not read the broker's stream: {OUTBOX_MAX} announcements wait already")
            self._outbox.append(info)
            self._turn.notify_all()

    def begin(self) -> object:
        """A conversation with the peer's broker begins; an earlier one is over."""
        with self._turn:
            self._talk = talk = object()
            self._turn.notify_all()
        return talk

    def end(self, talk: object) -> None:
        """That conversation is over; the broker waits for another one. Idempotent."""
        with self._turn:
            if self._talk is talk:
                self._talk = None
            self._turn.notify_all()

    def outgoing(self, talk: object) -> Iterator[Any]:
        """What this side has to say, until the broker is closed or the conversation over; for the engine."""
        while True:
            with self._turn:
                while not self._outbox and self._talk is talk and not self._closed:
                    self._turn.wait()  # ended by _post, begin, end or close
                if self._talk is not talk or self._closed:
                    return
                info = self._outbox.popleft()
            yield info

    def incoming(self, infos: Iterable[Any]) -> None:
        """Takes what the peer says, until it ends; for the thread that reads it."""
        for info in infos:
            self._carrier.received(info)

    def handle(self, requests: Iterator[Any], context: CallContext) -> Iterator[Any]:
        """GRPCBroker.StartStream in the plugin."""
        talk = self.begin()
        reader = threading.Thread(target=self._read, args=(requests, talk), name="fastplug-grpc-broker", daemon=True)
        reader.start()
        context.add_callback(lambda: self.end(talk))
        yield from self.outgoing(talk)

    def _read(self, requests: Iterator[Any], talk: object) -> None:
        try:
            self.incoming(requests)
        except Exception as error:  # noqa: BLE001  the engine's own kind: the call has ended
            _log.debug("the broker's stream has ended: %r", error)
        self.end(talk)

    def close(self, reason: str = "the broker is closed: the plugin, or the connection to it, has ended") -> None:
        """Ends all brokered servers and channels of this side. Idempotent."""
        with self._turn:
            if self._closed:
                return
            self._closed = reason
            kept = list(self._open)
            self._open.clear()
            self._turn.notify_all()
        self._carrier.close()
        for made in kept:
            made.close()


class _Listener:
    """fastplug.broker.BrokerListener."""

    def __init__(self, broker: Broker, service_id: int, listening: Listening) -> None:
        self.service_id = service_id
        self.listening = listening
        self._broker = broker
        self._server: _Server | None = None
        self._closed = False

    def serve(
        self,
        register: Callable[[Any], object],
        *,
        interceptors: Sequence[Any] = (),
        options: Sequence[tuple[str, Any]] = (),
        only: _Only | None = None,
    ) -> _Server:
        self._server = made = self._broker._serve(self, register, interceptors, options, only)
        if self._closed:
            made._stop()
            raise Closed(f"the listener of broker id {self.service_id} was closed")
        return made

    def close(self) -> None:
        self._closed = True
        self.listening.close()
        self._broker._drop(self)
        if self._server is not None:
            self._server._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class _Server:
    """fastplug.broker.BrokerServer."""

    def __init__(self, listener: _Listener, server: Server, tls: Tls | None, only: _Only | None = None) -> None:
        self._listener = listener
        self._server = server
        self._tls = tls
        self._only = only
        self._ended = threading.Event()
        self._acceptor = threading.Thread(target=self._accept, name=f"fastplug-grpc-broker-{listener.service_id}", daemon=True)
        self._acceptor.start()

    def _accept(self) -> None:
        try:
            while (stream := self._listener.listening.accept()) is not None:
                connection = self._server.attach(stream, self._tls)
                connection.closed.add_done_callback(lambda ended: self._tell(ended.result()))
                if self._only is not None:
                    self._listener.listening.close()
                    self._only[0]()
                    connection.closed.add_done_callback(self._only_gone)
                    return
        except Exception:  # noqa: BLE001  whatever it is, the peer is the one who would wait for nothing
            if not self._ended.is_set():
                _log.exception("the brokered server %s takes no more connections", self._listener.service_id)

    def _only_gone(self, ended: object) -> None:
        if self._only is not None:
            self._only[1]()

    def _tell(self, reason: str) -> None:
        if reason.startswith("TLS"):
            _log.error("the brokered server %s: %s", self._listener.service_id, reason)

    def wait(self, timeout_s: float | None = None) -> bool:
        return self._ended.wait(timeout_s)

    def close(self) -> None:
        self._listener.close()

    def _stop(self) -> None:
        if self._ended.is_set():
            return
        self._ended.set()
        self._server.stop(None).wait(STOP_TIMEOUT_S)
        if self._acceptor is not threading.current_thread():
            self._acceptor.join(JOIN_TIMEOUT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class Conversation:
    """The host's part of the stream between the brokers: opens it, and reads it on a thread, until the connection ends."""

    def __init__(self, channel: Channel, broker: Broker) -> None:
        self._channel = channel
        self._broker = broker
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fastplug-grpc-broker", daemon=True)
        self._thread.start()
        self._begun.wait(JOIN_TIMEOUT_S)

    def _run(self) -> None:
        talk = self._broker.begin()
        reason = "the broker is closed: the plugin, or the connection to it, has ended"
        try:
            start = self._channel.stream_stream(START_STREAM, ConnInfo.SerializeToString, ConnInfo.FromString)
            answers = start(self._broker.outgoing(talk))
            self._begun.set()
            self._broker.incoming(answers)
        except Exception as error:  # noqa: BLE001  the engine's own kind of error
            if code_of(error) == Code.UNIMPLEMENTED:
                reason = "the plugin has no broker (plugin.GRPCBroker is not implemented there)"
        self._begun.set()
        self._broker.end(talk)
        self._broker.close(reason)

    def join(self) -> None:
        """Waits for the thread, once the channel is closed."""
        if self._thread is not threading.current_thread():
            self._thread.join(JOIN_TIMEOUT_S)
