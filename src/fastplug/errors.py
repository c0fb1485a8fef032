"""The errors of fastplug: one tree. The type says whose fault it is, the text what to do next.

    PluginError
    ├── ConfigError                 the caller's configuration or interface declaration is wrong; nothing was started
    ├── StartError                  the plugin process could not be started, or ended before it said anything
    │   ├── ProcessNotFound         the process to attach to does not exist
    │   └── ChecksumMismatch        the file is not the one that was pinned
    ├── HandshakeError              the process runs, but it is not a plugin that this host can talk to
    │   ├── HandshakeTimeout        (also TimeoutError) it said nothing in time
    │   ├── IncompatibleVersion     core or application version
    │   ├── UnsupportedProtocol     it speaks a protocol that the host does not allow
    │   ├── InterfaceMismatch       a method is missing or differs: which, expected, got
    │   └── TlsRefused              one side refused the other's certificate
    ├── ProtocolError               the conversation broke its own rules
    │   ├── LocalProtocolError      this side's fault: a bug in the caller, or in fastplug
    │   └── RemoteProtocolError     the peer's fault: it sent what it must not send
    ├── PluginDied                  the plugin process ended: exit code or signal, its last words, what was being called
    ├── ConnectionLost              the connection to the plugin ended, and its process runs on: why, if that is known
    ├── DeadlineExceeded            (also TimeoutError) the caller's own deadline ran out
    ├── Cancelled                   the caller cancelled the call
    ├── Closed                      the handle was used after close(), or in a forked child
    ├── ArgumentError               (also TypeError) an argument does not fit its parameter; nothing was sent
    ├── ResultError                 what the handler returned does not fit the declared result
    ├── ArenaExhausted              (also MemoryError) the shared memory budget is used up; names the oldest leases
    ├── CopyRequired                strict_zero_copy is set and this array would have to be copied
    ├── RpcError                    a gRPC status that no other error stands for
    ├── BrokerTimeout               no answer to a broker id in time
    └── RemoteError                 the handler raised: its type, message and traceback; for a builtin exception a class
                                    that is both, e.g. RemoteKeyError(RemoteError, KeyError)

Causes are kept: ``raise ... from`` wherever something lower failed. All classes are importable from ``fastplug``.
"""

from __future__ import annotations

import builtins
import signal
import sys
from collections.abc import Sequence
from typing import Any, Self, TypeVar

__all__ = [
    "ArenaExhausted",
    "ArgumentError",
    "BrokerTimeout",
    "Cancelled",
    "ChecksumMismatch",
    "Closed",
    "ConfigError",
    "ConnectionLost",
    "CopyRequired",
    "DeadlineExceeded",
    "HandshakeError",
    "HandshakeTimeout",
    "IncompatibleVersion",
    "InterfaceMismatch",
    "LocalProtocolError",
    "PluginDied",
    "PluginError",
    "ProcessNotFound",
    "ProtocolError",
    "RemoteError",
    "RemoteProtocolError",
    "ResultError",
    "RpcError",
    "StartError",
    "TlsRefused",
    "UnsupportedProtocol",
]


class PluginError(Exception):
    """The root of the tree: everything that fastplug raises on purpose."""


class ConfigError(PluginError):
    """The configuration or an interface declaration is wrong. Nothing was started."""


class StartError(PluginError):
    """The plugin process could not be started, or it ended before it said anything."""


class ProcessNotFound(StartError):
    """The process to attach to does not exist (go-plugin: ErrProcessNotFound)."""


class ChecksumMismatch(StartError):
    """The file to start is not the one that was pinned."""


class HandshakeError(PluginError):
    """The process runs, but it is no plugin that this host can talk to."""


class HandshakeTimeout(HandshakeError, TimeoutError):
    """The plugin did not print its handshake line within ``start_timeout_s``."""


class IncompatibleVersion(HandshakeError):
    """Host and plugin share no core or application protocol version."""


class UnsupportedProtocol(HandshakeError):
    """The plugin speaks a protocol that the host does not allow."""


class InterfaceMismatch(HandshakeError):
    """The plugin's interface differs from the host's.

    Attributes: ``interface``, ``method`` (or None for a missing interface), ``expected`` and ``got`` (canonical
    signatures; ``got`` is None for what is missing).
    """

    def __init__(
        self, text: str, *, interface: str = "", method: str | None = None, expected: str | None = None, got: str | None = None
    ) -> None:
        super().__init__(text)
        self.interface = interface
        self.method = method
        self.expected = expected
        self.got = got


class TlsRefused(HandshakeError):
    """One side refused the other's certificate."""


class ProtocolError(PluginError):
    """The conversation broke its own rules. Raised only as one of its two subclasses."""


class LocalProtocolError(ProtocolError):
    """This side asked for something that the protocol forbids."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something that the protocol forbids. The connection is not used again; what to do is part of the text.

    Attributes: ``next_step``, what to do, the same for all but those that end one call only.
    """

    next_step = "The connection is not used again: start the plugin anew. If it comes back, the two sides do not fit, or one is broken."

    def __str__(self) -> str:
        return f"{super().__str__().rstrip('.')}. {self.next_step}"


def _ending(returncode: int | None) -> str:
    """How a process ended, in words: ``exit code 3`` or ``signal 9 (SIGKILL)``."""
    if returncode is None:
        return "its exit status is not known"
    if returncode >= 0:
        return f"exit code {returncode}"
    try:
        name = f" ({signal.Signals(-returncode).name})"
    except ValueError:
        name = ""
    return f"signal {-returncode}{name}"


def _during(calling: str | None) -> str:
    return f" while {calling} was being called" if calling else ""


def _last_lines(stderr_tail: Sequence[str]) -> str:
    return "\nIts last lines on stderr:\n  " + "\n  ".join(stderr_tail) if stderr_tail else ""


class PluginDied(PluginError):
    """The plugin process ended.

    Attributes: ``name``, ``returncode`` (negative for a signal, None when unknown), ``stderr_tail`` (its last lines),
    ``calling`` (the method in flight, or None).
    """

    def __init__(self, name: str, *, returncode: int | None = None, stderr_tail: Sequence[str] = (), calling: str | None = None) -> None:
        self.name = name
        self.returncode = returncode
        self.stderr_tail = tuple(stderr_tail)
        self.calling = calling
        how = _ending(returncode)
        super().__init__(f"plugin {name!r} died{_during(calling)}: {how}. Start it again to go on.{_last_lines(self.stderr_tail)}")


class ConnectionLost(PluginError):
    """The connection to the plugin ended, and the plugin's process runs on. This client has no other connection to it.

    Attributes: ``name``, ``reason`` (why it ended, when that is known), ``stderr_tail`` (the plugin's last lines), ``calling`` (the method
    in flight, or None).
    """

    def __init__(self, name: str, *, reason: str = "", stderr_tail: Sequence[str] = (), calling: str | None = None) -> None:
        self.name = name
        self.reason = reason
        self.stderr_tail = tuple(stderr_tail)
        self.calling = calling
        why = reason or "the plugin closed it"
        super().__init__(
            f"the connection to plugin {name!r} was lost{_during(calling)}: {why}. "
            f"Its process runs on: end it (kill()) and start it again.{_last_lines(self.stderr_tail)}"
        )


class _GivenUp(PluginError):
    """The caller did not wait for the answer to the end. Raised only as one of its two subclasses.

    Attributes: ``plugin_stack``, the stack of the plugin's Python code at that moment (text; empty when there is none), and ``no_stack``,
    why there is none. Both are part of what Python prints of the error.
    """

    plugin_stack: str = ""
    no_stack: str = ""

    def __str__(self) -> str:
        head = super().__str__()
        if self.plugin_stack:
            return f"{head}\n\nWhere the plugin was at that moment:\n{self.plugin_stack.rstrip()}"
        return f"{head} (the plugin's stack is not known: {self.no_stack})" if self.no_stack else head


class DeadlineExceeded(_GivenUp, TimeoutError):
    """The caller's deadline ran out before the answer came. The late answer is dropped; the handle stays usable."""


class Cancelled(_GivenUp):
    """The caller cancelled the call."""


class Closed(PluginError):
    """A handle was used after close(), or in a process that was forked from its owner."""


class ArgumentError(PluginError, TypeError):
    """An argument does not fit its parameter; nothing was sent.

    Attributes: ``method``, ``parameter``, ``expected`` and ``got`` (both in words).
    """

    def __init__(self, text: str, *, method: str = "", parameter: str = "", expected: str = "", got: str = "") -> None:
        super().__init__(text)
        self.method = method
        self.parameter = parameter
        self.expected = expected
        self.got = got


class ResultError(PluginError):
    """What the handler returned does not fit the declared result (the plugin author's fault)."""


class ArenaExhausted(PluginError, MemoryError):
    """The shared memory budget (``arena_limit_bytes``) is used up; the text names the oldest leases."""


class CopyRequired(PluginError):
    """``strict_zero_copy`` is set and this array would have to be copied."""


class RpcError(PluginError):
    """A gRPC status that no other error of the tree stands for. Once grpc is imported it is a grpc.RpcError, too, and ``code()``,
    ``details()`` and ``trailing_metadata()`` give what they give there.

    Attributes: ``code`` (the number of the gRPC status), ``message``, ``details`` (bytes, may be empty), ``trailers``.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        return super().__new__(_grpc_kind(cls))

    def __init__(self, code: int, message: str, details: bytes = b"", trailers: Sequence[tuple[str, Any]] = ()) -> None:
        super().__init__(f"gRPC status {int(code)}: {message}")
        self.code = code
        self.message = message
        self.details = details
        self.trailers = tuple(trailers)

    def __reduce__(self) -> Any:
        return RpcError, (int(self.code), self.message, bytes(self.details), self.trailers)


class _StatusNumber(int):
    """``error.code`` is a number, and ``error.code()`` the grpc.StatusCode."""

    def __call__(self) -> Any:
        codes = sys.modules["grpc"].StatusCode
        return next((code for code in codes if code.value[0] == self), codes.UNKNOWN)


class _Details(bytes):
    """``error.details`` is the status as bytes, and ``error.details()`` the message."""

    message: str

    def __call__(self) -> str:
        return self.message


class _LikeGrpc:
    """What an RpcError has beside its own when grpc is there."""

    def __init__(self, code: int, message: str, details: bytes = b"", trailers: Sequence[tuple[str, Any]] = ()) -> None:
        own = _Details(details)
        own.message = message
        super().__init__(_StatusNumber(code), message, own, trailers)  # type: ignore[call-arg]

    def trailing_metadata(self) -> Any:
        return self.trailers  # type: ignore[attr-defined]


_grpc_kinds: dict[type, type] = {}


_Rpc = TypeVar("_Rpc", bound=RpcError)


def _grpc_kind(cls: type[_Rpc]) -> type[_Rpc]:
    """``cls``, or once grpc is imported a subclass of it that is a grpc.RpcError as well. Imports nothing."""
    foreign = getattr(sys.modules.get("grpc"), "RpcError", None)
    if foreign is None or issubclass(cls, foreign):
        return cls
    if cls not in _grpc_kinds:
        _grpc_kinds[cls] = type(cls.__name__, (_LikeGrpc, cls, foreign), {"__module__": cls.__module__, "__doc__": cls.__doc__})
    found: type[_Rpc] = _grpc_kinds[cls]
    return found


class BrokerTimeout(PluginError):
    """The peer did nothing about a broker id in time. Attributes: ``service_id``."""

    def __init__(self, text: str, *, service_id: int = 0) -> None:
        super().__init__(text)
        self.service_id = service_id


class RemoteError(PluginError):
    """The handler raised; in a plugin, what it was passed to call back or to iterate did.

    Attributes: ``type_name`` (qualified, as on the side that raised), ``message``, ``remote_traceback`` (text), ``method``, ``raised_by``
    (``plugin`` or ``host``). The traceback is part of what Python prints of the error. ``args`` are the remote ones if all are plain.
    """

    type_name: str = ""
    message: str = ""
    remote_traceback: str = ""
    method: str = ""
    raised_by: str = "plugin"

    def __str__(self) -> str:
        told = self.remote_traceback.rstrip() if self._has_frames() else ""
        return f"{self.headline}\n\nThe {self.raised_by}'s traceback:\n{told}" if told else self.headline

    @property
    def headline(self) -> str:
        """The text without the traceback."""
        where = f" (in {self.method})" if self.method else ""
        # what fastplug says about a result names the method already, and no frame of the plugin's author had a part in it
        return self.message if self.type_name in _OWN else f"{self.type_name}: {self.message}{where}"

    def _has_frames(self) -> bool:
        return self.type_name not in _OWN or "\n  File " in self.remote_traceback


# A plugin must not be able to end its host: these come as plain RemoteError, never as a class that also is one of them.
_NEVER_REBUILT = frozenset({"SystemExit", "KeyboardInterrupt", "GeneratorExit", "StopIteration", "StopAsyncIteration"})

# What fastplug itself raises in the plugin about a result keeps its type on the way to the host.
_OWN: dict[str, type[PluginError]] = {
    f"{cls.__module__}.{cls.__qualname__}": cls for cls in (ResultError, ArenaExhausted, CopyRequired, DeadlineExceeded)
}

_remote_classes: dict[str, type[RemoteError]] = {}


def _remote_class(name: str) -> type[RemoteError] | None:
    """``RemoteKeyError(RemoteError, KeyError)`` for ``KeyError``; None when there is no such class, or there must not be one."""
    known = _remote_classes.get(name)
    if known is not None:
        return known
    base = _OWN.get(name) or getattr(builtins, name, None)
    if not (isinstance(base, type) and issubclass(base, Exception)) or name in _NEVER_REBUILT or base is Exception:
        return None
    made = type(f"Remote{base.__name__}", (RemoteError, base), {"__module__": __name__, "__doc__": f"The handler raised {base.__name__}."})
    _remote_classes[name] = made
    return made


def remote_error(
    type_name: str,
    bases: Sequence[str],
    message: str,
    args: Sequence[Any],
    remote_traceback: str,
    method: str = "",
    raised_by: str = RemoteError.raised_by,
) -> RemoteError:
    """The error to raise for what a handler raised, or what it called back.

    Args: ``type_name`` qualified name of the class; ``bases`` names of its builtin ancestors, nearest first; ``args``
    its plain args. The first base that can be rebuilt from ``args`` decides the class; the rest is RemoteError.
    """
    for name in (type_name if type_name in _OWN else None, *bases) if not _NEVER_REBUILT.intersection(bases) else ():
        if name is None:
            continue
        cls = _remote_class(name)
        if cls is None:
            continue
        try:
            error = cls(*args)
            break
        except Exception:  # noqa: BLE001, S112  its constructor wants other arguments (UnicodeDecodeError): try the next base
            continue
    else:
        error = RemoteError(*args)
    error.type_name = type_name
    error.message = message
    error.remote_traceback = remote_traceback
    error.method = method
    error.raised_by = raised_by
    return error


def seen_by_handler(error: Exception) -> Exception:
    """For a call with a deadline: a handler that found it over may say so (``Context.check``) before the caller's own clock does."""
    if not isinstance(error, RemoteError) or error.type_name != f"{Cancelled.__module__}.{Cancelled.__qualname__}":
        return error
    found = DeadlineExceeded(f"{error.method}() was ended by its handler, since the deadline was over")
    found.plugin_stack = error.remote_traceback
    found.__cause__ = error
    return found
