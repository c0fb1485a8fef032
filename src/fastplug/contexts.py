"""What a call carries beside its arguments: the caller's metadata, and inside a handler the context of the call that it answers."""

from __future__ import annotations

import contextlib
import re
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, Final

from fastplug.errors import Cancelled, ConfigError, LocalProtocolError

__all__ = ["Context", "context", "metadata"]

# gRPC's usual limit for all the headers of a request; a trace id and a tenant's name are a hundred bytes.
METADATA_BYTES_MAX: Final = 8192
METADATA_ENTRIES_MAX: Final = 64
# What every protocol can carry as it is: HTTP/2 headers of gRPC are lower case, without a binary suffix, and their values printable ASCII.
_KEY = re.compile(r"[a-z0-9_.-]{1,128}")
_VALUE = re.compile(r"(?:[!-~](?:[ -~]*[!-~])?)?")
_RESERVED = ("grpc-", "fastplug-", ":")
# HTTP/2 and gRPC have a meaning of their own for these, and drop the caller's or refuse the request.
_HTTP = frozenset(
    {"user-agent", "te", "content-type", "content-length", "host"}
    | {"connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"}
)
_NONE: Mapping[str, str] = MappingProxyType({})

# The metadata of this thread's or task's calls, and the same as a value of docs/wire.md, section 3 (made once, not once a call).
METADATA: ContextVar[tuple[Mapping[str, str], bytes] | None] = ContextVar("fastplug.metadata", default=None)


def _packed(values: Mapping[str, str]) -> bytes:
    """A dict of str to str, wire.md section 3."""
    parts = [struct.pack("<BI", 0x0B, len(values))]
    parts += [struct.pack("<BI", 0x07, len(text)) + text.encode("ascii") for item in values.items() for text in item]
    return b"".join(parts)


def _check(values: Mapping[Any, Any]) -> None:
    for key, value in values.items():
        if not isinstance(key, str) or not _KEY.fullmatch(key) or key.startswith(_RESERVED) or key.endswith("-bin") or key in _HTTP:
            raise ConfigError(
                f"metadata: {key!r:.140} is no key; write lower-case ASCII letters, digits and _ . - (not grpc-..., fastplug-..., ...-bin, "
                "nor a header that HTTP/2 keeps for itself, such as content-type)"
            )
        if not isinstance(value, str) or not _VALUE.fullmatch(value):
            raise ConfigError(f"metadata: the value of {key!r} must be printable ASCII text without spaces at its ends, got {value!r:.140}")
    size = sum(len(key) + len(value) for key, value in values.items())
    if len(values) > METADATA_ENTRIES_MAX or size > METADATA_BYTES_MAX:
        raise ConfigError(
            f"metadata has {len(values)} entries of {size} bytes; at most {METADATA_ENTRIES_MAX} of {METADATA_BYTES_MAX}: "
            "send more as an argument"
        )


@contextlib.contextmanager
def metadata(values: Mapping[str, str] | None = None, /, **more: str) -> Iterator[None]:
    """Sends ``values`` and ``more`` with every fastplug call in the block; a handler reads them as ``fastplug.context().metadata``.

    Args:
        values, more: names to texts. Names are lower-case ASCII, values printable ASCII: over gRPC they are the headers of the request.

    Nested blocks add to each other, the inner one wins. It holds in the current thread or asyncio task.

    Raises:
        ConfigError: a name or value that cannot be carried, more than 64 entries, or more than 8 KiB.
    """
    outer = METADATA.get()
    both = {**(outer[0] if outer is not None else {}), **(values or {}), **more}
    _check(both)
    token = METADATA.set((both, _packed(both)))
    try:
        yield
    finally:
        METADATA.reset(token)


class Context:
    """The call that a handler answers: whether anybody still waits for the answer, for how long, and what the caller sent with it.

    Thread-safe: a handler may hand it to threads of its own.

    Attributes:
        metadata: what the caller set with ``fastplug.metadata``; over gRPC every text header of the request.
    """

    def __init__(self, until_ns: int | None = None, metadata: Mapping[str, str] | None = None) -> None:
        self.metadata: Mapping[str, str] = MappingProxyType(dict(metadata)) if metadata else _NONE
        self._until_ns = until_ns
        self._given_up = threading.Event()
        self._callbacks: list[Callable[[], object]] = []
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        remaining_s = self.remaining_s
        left = "" if remaining_s is None else f", {remaining_s:.3f} s left"
        return f"<fastplug context of a call{', cancelled' if self.cancelled else ''}{left}>"

    @property
    def remaining_s(self) -> float | None:
        """Seconds until the caller's deadline, 0.0 when it is over; None without one."""
        return None if self._until_ns is None else max(0.0, (self._until_ns - time.monotonic_ns()) / 1e9)

    @property
    def cancelled(self) -> bool:
        """Whether the caller has given up: its deadline is over, it cancelled the call, or it is gone. The answer will be dropped."""
        return self._given_up.is_set() or (self._until_ns is not None and time.monotonic_ns() >= self._until_ns)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Waits until the call is cancelled, at most ``timeout_s`` seconds; whether it is. Without either bound it may be for ever."""
        bounds = [bound for bound in (timeout_s, self.remaining_s) if bound is not None]
        self._given_up.wait(min(bounds) if bounds else None)
        return self.cancelled

    def check(self) -> None:
        """Raises Cancelled when the call is: a long computation calls this now and then."""
        if self.cancelled:
            raise Cancelled("the caller has given the call up; its answer would be dropped")

    def add_cancel_callback(self, callback: Callable[[], object]) -> None:
        """Runs ``callback()`` when the caller gives up, at once if it has; on another thread, so it must be quick."""
        with self._lock:
            if not self._given_up.is_set():
                self._callbacks.append(callback)
                return
        callback()

    def cancel(self) -> None:
        """Marks the call as given up; for the protocols. Idempotent."""
        with self._lock:
            self._given_up.set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()


class _Calls(threading.local):
    """Per thread that runs handlers: ``current()`` is the context of the one that runs."""

    current: Callable[[], Context | None] | None = None


CALLS = _Calls()
# Of an asynchronous handler, whose thread runs others as well.
TASK_CONTEXT: ContextVar[Context | None] = ContextVar("fastplug.context", default=None)


def context() -> Context:
    """The context of the call that this handler answers: ``cancelled``, ``remaining_s``, ``metadata``.

    For the thread, or the asyncio task, on which the handler runs; hand it on to others.

    Raises:
        LocalProtocolError: no handler runs here.
    """
    found = TASK_CONTEXT.get()
    if found is None and CALLS.current is not None:
        found = CALLS.current()
    if found is None:
        raise LocalProtocolError("fastplug.context() is for handlers of a plugin: no call is being answered on this thread")
    return found
