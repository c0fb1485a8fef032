"""What a yamux session is told (`SessionConfig`) and what it tells (`Event`)."""

from __future__ import annotations

import dataclasses

from fastplug.errors import LocalProtocolError
from fastplug.yamux.frames import INITIAL_WINDOW_BYTES, LENGTH_MAX

__all__ = [
    "DataReceived",
    "EndReceived",
    "Event",
    "GoAwayReceived",
    "PingAnswered",
    "PingLost",
    "ResetReceived",
    "SendWindowOpened",
    "SessionConfig",
    "SessionEnded",
    "StreamAccepted",
    "StreamClosed",
    "StreamOpened",
]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SessionConfig:
    """Limits of a session; the defaults are those of hashicorp/yamux.

    Args:
        accept_backlog: streams that may wait to be accepted, here and, as both sides are taken to have the same, there.
        keepalive_interval_s: between two pings; None sends none.
        answer_timeout_s: how long an answer to a ping may take (ConnectionWriteTimeout there).
        open_timeout_s: how long a stream may wait to be accepted before the session counts as dead.
        close_timeout_s: how long a stream that was closed here may stay open there before it is reset.
        window_bytes: what a peer may send on one stream before it is read, at least 256 KiB.
        write_limit_bytes: how much may wait to be sent before `Session.send` takes no more.
    """

    accept_backlog: int = 256
    keepalive_interval_s: float | None = 30.0
    answer_timeout_s: float = 10.0
    open_timeout_s: float = 75.0
    close_timeout_s: float = 300.0
    window_bytes: int = INITIAL_WINDOW_BYTES
    write_limit_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        if not INITIAL_WINDOW_BYTES <= self.window_bytes <= LENGTH_MAX:
            raise LocalProtocolError(f"window_bytes must be from {INITIAL_WINDOW_BYTES} to {LENGTH_MAX}, got {self.window_bytes}")
        if self.accept_backlog < 1 or self.write_limit_bytes < 1:
            raise LocalProtocolError("accept_backlog and write_limit_bytes must be positive")


@dataclasses.dataclass(frozen=True, slots=True)
class StreamOpened:
    """The peer opened a stream, which waits for `Session.accept`, or `Session.reset`."""

    stream_id: int


@dataclasses.dataclass(frozen=True, slots=True)
class StreamAccepted:
    """The peer accepted a stream of ours."""

    stream_id: int


@dataclasses.dataclass(frozen=True, slots=True)
class DataReceived:
    """Bytes of a stream. They count against its window until `Session.consumed`."""

    stream_id: int
    data: bytes | memoryview


@dataclasses.dataclass(frozen=True, slots=True)
class EndReceived:
    """The peer sends no more on this stream (FIN)."""

    stream_id: int


@dataclasses.dataclass(frozen=True, slots=True)
class ResetReceived:
    """The peer ended this stream at once (RST). Nothing more comes of it."""

    stream_id: int


@dataclasses.dataclass(frozen=True, slots=True)
class StreamClosed:
    """The stream is over and forgotten: the peer's end came after this side's, or did not come in time (``timed_out``)."""

    stream_id: int
    timed_out: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class SendWindowOpened:
    """A stream whose window was used up may send again."""

    stream_id: int


@dataclasses.dataclass(frozen=True, slots=True)
class PingAnswered:
    """The answer to `Session.ping`."""

    ping_id: int
    round_trip_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class PingLost:
    """No answer to `Session.ping` within ``answer_timeout_s``."""

    ping_id: int


@dataclasses.dataclass(frozen=True, slots=True)
class GoAwayReceived:
    """The peer takes no more streams; those that are open go on."""


@dataclasses.dataclass(frozen=True, slots=True)
class SessionEnded:
    """The last event. What is still to be sent should be, then the connection be closed.

    ``reason`` is a sentence for users; ``violation``: the peer broke the rules, and was told so.
    """

    reason: str
    violation: bool = False


Event = (
    StreamOpened
    | StreamAccepted
    | DataReceived
    | EndReceived
    | ResetReceived
    | StreamClosed
    | SendWindowOpened
    | PingAnswered
    | PingLost
    | GoAwayReceived
    | SessionEnded
)
