"""What a handler raised, as a gRPC status and back."""

from __future__ import annotations

from typing import Any

from fastplug._wire import pack_error, unpack_error
from fastplug.errors import RemoteProtocolError, RpcError
from fastplug.protocols.grpc.channel import Code

__all__ = ["ERROR_KEY", "HOST_KEY", "Malformed", "remote_error_in", "status_of"]

# Trailing metadata with the payload of wire.md, "Errors". Only for hosts that announce themselves: others have small limits on headers.
ERROR_KEY = "fastplug-error-bin"
HOST_KEY = "fastplug-host"
# The status text is a header of its own; gRPC peers allow 8 KiB of headers.
MESSAGE_CHARACTERS_MAX = 1024


class Malformed(RemoteProtocolError):
    """A message that is no message of its method. gRPC tells the calls of a connection apart, so the others go on."""

    next_step = "Only this call failed. If it comes back, the interfaces of the two sides do not fit, or one is broken."


def status_of(error: BaseException, *, fastplug_host: bool) -> RpcError:
    """UNKNOWN with ``KeyError: 'x'``, which any peer can show, and for a fastplug host the whole error."""
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception as broken:  # noqa: BLE001  the handler's own class
        text = f"{type(error).__name__}: <its str() raised {type(broken).__name__}>"
    text = text.encode("utf-8", "backslashreplace").decode()[:MESSAGE_CHARACTERS_MAX]
    trailers: list[tuple[str, Any]] = [(ERROR_KEY, pack_error(error))] if fastplug_host else []
    return RpcError(Code.UNKNOWN, text, b"", trailers)


def remote_error_in(status: RpcError, method: str, raised_by: str = "plugin") -> Exception | None:
    """The error that a fastplug peer packed into the status; None if there is none."""
    for key, value in status.trailers:
        if key == ERROR_KEY and isinstance(value, bytes):
            try:
                error: Exception = unpack_error(value, method, raised_by)
            except RemoteProtocolError as malformed:
                return malformed
            return error
    return None
