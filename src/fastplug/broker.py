"""What a plugin or a host does with a broker: further connections to the peer, by number (go-plugin: GRPCBroker)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self

__all__ = ["BrokerListener", "BrokerServer", "GRPCBroker"]


class BrokerServer(Protocol):
    """What is served under one number. Handlers run on threads of the engine, several at a time. Also a context manager."""

    def wait(self, timeout_s: float | None = None) -> bool:
        """Waits until it is closed, at most ``timeout_s`` seconds (None: as long as the broker lives). Returns whether it is."""
        ...

    def close(self) -> None:
        """Ends its connections, and the calls on them. Idempotent, from any thread."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *exc_info: object) -> None: ...


class BrokerListener(Protocol):
    """A number that this side accepts under: ``serve`` once, ``close`` at any time, from any thread. Also a context manager."""

    @property
    def service_id(self) -> int: ...

    def serve(
        self, register: Callable[[Any], object], *, interceptors: Sequence[Any] = (), options: Sequence[tuple[str, Any]] = ()
    ) -> BrokerServer:
        """Serves what ``register`` adds, and returns at once. See ``GRPCBroker.accept_and_serve``."""
        ...

    def close(self) -> None:
        """Takes no more connections, and ends those that there are. Idempotent."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *exc_info: object) -> None: ...


class GRPCBroker(Protocol):
    """Further gRPC connections to the peer, by number. Thread-safe.

    One side takes a number (``next_id``), accepts under it, and tells it the other in a message of its own; the other dials it. A number is
    good for one accept and one dial; either may come first, within ``timeout_s`` (5 s, as in go-plugin) of each other. Connections
    are secured as the main one is.

    fastplug makes it: a plugin gets it in ``GRPCPlugin.grpc_server``, or through ``grpc_plugin``; a host has ``client.broker``.
    """

    timeout_s: float

    def next_id(self) -> int:
        """A number that this side has not used yet: 1, 2, ... Each side counts for itself."""
        ...

    def accept(self, service_id: int) -> BrokerListener:
        """Announces ``service_id`` to the peer; serve on the result, or close it.

        Raises:
            Closed: the broker is closed, or the peer has none.
        """
        ...

    def accept_and_serve(
        self,
        service_id: int,
        register: Callable[[Any], object],
        *,
        interceptors: Sequence[Any] = (),
        options: Sequence[tuple[str, Any]] = (),
    ) -> BrokerServer:
        """``accept`` and ``serve`` in one. Returns at once (in go-plugin it blocks): it serves until the result, or the broker, is closed.

        Args:
            service_id: of ``next_id``; tell it the peer.
            register: gets the server, to add servicers to: ``lambda server: add_AdderServicer_to_server(Adder(), server)``.
            interceptors, options: as for ``grpc.server``.

        Raises:
            Closed: as ``accept``.
        """
        ...

    def dial(self, service_id: int, *, timeout_s: float | None = None, options: Sequence[tuple[str, Any]] = ()) -> Any:
        """A ``grpc.Channel`` to what the peer accepts under ``service_id``. Close it when it is no longer needed.

        Args:
            timeout_s: how long to wait for the peer's announcement, and with TLS for its certificate; the broker's own by default.
            options: as for ``grpc.insecure_channel``; they win over fastplug's own.

        Raises:
            BrokerTimeout: the peer did not announce it in time.
            HandshakeError: it did, and cannot be reached there. TlsRefused: one side refused the other's certificate; which, and why.
            Closed: the broker is closed, or the peer has none.
        """
        ...

    def close(self) -> None:
        """Ends all brokered servers and channels of this side. Idempotent. fastplug does it at the end of the connection."""
