"""The life of one yamux stream as a table of states and events. Pure.

The states are those of hashicorp/yamux. ``docs/yamux.md`` shows the table as a diagram; ``python -m fastplug.yamux.stream`` prints it.

A stream's two directions end one by one (FIN), or both at once (RST). Whether the opener's SYN was answered is not a state of its own,
because a stream may be closed before it is: `Session` counts unanswered streams beside the table.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator

from fastplug.yamux.frames import INITIAL_WINDOW_BYTES, Flag

__all__ = ["TRANSITIONS", "Stream", "StreamAction", "StreamEvent", "StreamState", "document", "mermaid"]


class StreamState(enum.Enum):
    """Where a stream is."""

    INIT = "init"
    SYN_SENT = "SYN sent"
    SYN_RECEIVED = "SYN received"  # it waits to be accepted
    ESTABLISHED = "established"
    LOCAL_CLOSE = "closed here"  # this side sends no more
    REMOTE_CLOSE = "closed there"  # the peer sends no more
    CLOSED = "closed"
    RESET = "reset"


class StreamEvent(enum.Enum):
    """What this side does, or the peer's flags say."""

    OPEN = "open"
    ACCEPT = "accept"
    CLOSE = "close"
    RESET = "reset"
    CLOSE_TIMED_OUT = "close timed out"
    SYN = "SYN"
    ACK = "ACK"
    FIN = "FIN"
    RST = "RST"


class StreamAction(enum.Enum):
    """What the session has to do."""

    SEND_SYN = "send SYN"
    SEND_ACK = "send ACK"
    SEND_FIN = "send FIN"
    SEND_ACK_FIN = "send ACK and FIN"
    SEND_RST = "send RST"
    TELL_END = "tell the end of data"
    TELL_RESET = "tell the reset"


_S, _E, _A = StreamState, StreamEvent, StreamAction
Transition = tuple[StreamState, StreamAction | None]

TRANSITIONS: dict[tuple[StreamState, StreamEvent], Transition] = {
    (_S.INIT, _E.OPEN): (_S.SYN_SENT, _A.SEND_SYN),
    (_S.INIT, _E.SYN): (_S.SYN_RECEIVED, None),
    (_S.SYN_SENT, _E.ACK): (_S.ESTABLISHED, None),
    (_S.SYN_RECEIVED, _E.ACCEPT): (_S.ESTABLISHED, _A.SEND_ACK),
    # The opener may have sent all that it had, and its FIN, before it was accepted.
    (_S.REMOTE_CLOSE, _E.ACCEPT): (_S.REMOTE_CLOSE, _A.SEND_ACK),
    (_S.SYN_SENT, _E.CLOSE): (_S.LOCAL_CLOSE, _A.SEND_FIN),
    (_S.SYN_RECEIVED, _E.CLOSE): (_S.LOCAL_CLOSE, _A.SEND_ACK_FIN),
    (_S.ESTABLISHED, _E.CLOSE): (_S.LOCAL_CLOSE, _A.SEND_FIN),
    (_S.REMOTE_CLOSE, _E.CLOSE): (_S.CLOSED, _A.SEND_FIN),
    (_S.SYN_SENT, _E.FIN): (_S.REMOTE_CLOSE, _A.TELL_END),
    (_S.SYN_RECEIVED, _E.FIN): (_S.REMOTE_CLOSE, _A.TELL_END),
    (_S.ESTABLISHED, _E.FIN): (_S.REMOTE_CLOSE, _A.TELL_END),
    (_S.LOCAL_CLOSE, _E.FIN): (_S.CLOSED, _A.TELL_END),
    (_S.LOCAL_CLOSE, _E.CLOSE_TIMED_OUT): (_S.RESET, _A.SEND_RST),
    # Twice, as in hashicorp/yamux, is no offence.
    **{(state, _E.ACK): (state, None) for state in (_S.ESTABLISHED, _S.LOCAL_CLOSE, _S.REMOTE_CLOSE)},
    (_S.LOCAL_CLOSE, _E.CLOSE): (_S.LOCAL_CLOSE, None),
    **{(state, _E.RESET): (_S.RESET, _A.SEND_RST) for state in _S if state not in (_S.INIT, _S.CLOSED, _S.RESET)},
    **{(state, _E.RST): (_S.RESET, _A.TELL_RESET) for state in _S if state not in (_S.INIT, _S.CLOSED, _S.RESET)},
}

# The peer may send no more, or this side is not to read more: what comes nevertheless is dropped, as hashicorp/yamux does in effect. It
# can come: there, a Close beside a Write may overtake it.
RECEIVING = frozenset({_S.SYN_SENT, _S.SYN_RECEIVED, _S.ESTABLISHED, _S.LOCAL_CLOSE})
SENDING = frozenset({_S.SYN_SENT, _S.SYN_RECEIVED, _S.ESTABLISHED, _S.REMOTE_CLOSE})
OVER = frozenset({_S.CLOSED, _S.RESET})

FLAGS: dict[StreamAction, Flag] = {
    _A.SEND_SYN: Flag.SYN,
    _A.SEND_ACK: Flag.ACK,
    _A.SEND_FIN: Flag.FIN,
    _A.SEND_ACK_FIN: Flag.ACK | Flag.FIN,
    _A.SEND_RST: Flag.RST,
}


class Stream:
    """One stream: its state and its two windows.

    Attributes:
        send_window_bytes: what may be sent before the peer gives more.
        receive_window_bytes: what the peer may still send.
        unread_bytes: received, and not yet consumed by the reader.
        expires_s: when the timer of its state fires; None without one.
    """

    __slots__ = ("expires_s", "id", "receive_window_bytes", "send_window_bytes", "state", "unread_bytes")

    def __init__(self, stream_id: int) -> None:
        self.id = stream_id
        self.state = StreamState.INIT
        self.send_window_bytes = INITIAL_WINDOW_BYTES
        self.receive_window_bytes = INITIAL_WINDOW_BYTES
        self.unread_bytes = 0
        self.expires_s: float | None = None

    def can(self, event: StreamEvent) -> bool:
        """Whether the table has a step for ``event``."""
        return (self.state, event) in TRANSITIONS

    def step(self, event: StreamEvent) -> StreamAction | None:
        """Takes the step. Raises KeyError for an event that ``can`` denies."""
        self.state, action = TRANSITIONS[self.state, event]
        return action

    def window_due_bytes(self, window_bytes_max: int, *, anyway: bool = False) -> int:
        """What to give the peer more, 0 while that is less than half of the window: an update for each read would double the frames."""
        due = window_bytes_max - self.unread_bytes - self.receive_window_bytes
        if due <= 0 or (due < window_bytes_max // 2 and not anyway):
            return 0
        self.receive_window_bytes += due
        return due


def mermaid() -> str:
    """The table as a Mermaid state diagram, without the events that change nothing, nor those that reset."""
    lines = ["stateDiagram-v2", f"    [*] --> {StreamState.INIT.name}", *_arrows()]
    lines += [f"    {state.name} --> [*]" for state in StreamState if state in OVER]
    return "\n".join(lines) + "\n"


def _arrows() -> Iterator[str]:
    for (state, event), (after, action) in TRANSITIONS.items():
        if event in (StreamEvent.RESET, StreamEvent.RST) or (after is state and action is None):
            continue
        yield f"    {state.name} --> {after.name}: {event.value}{f' / {action.value}' if action else ''}"


def document() -> str:
    """The whole of docs/yamux.md."""
    ignored = [
        f"| {state.name} | {event.value} |\n" for (state, event), (after, action) in TRANSITIONS.items() if after is state and not action
    ]
    resets = ", ".join(state.name for state, event in TRANSITIONS if event is StreamEvent.RST)
    return f"""# The life of a yamux stream

Made from the table in `yamux/stream.py` by `python -m fastplug.yamux.stream > docs/yamux.md`; a test compares the two.
An arrow's label is the event and, after the slash, what is done. Words in capitals are flags of the peer, the others what this side does.

```mermaid
{mermaid()}```

In {resets}, a reset (by this side, which sends RST, or by the peer's RST) leads to RESET.
SYN_SENT ends the whole session after `open_timeout_s`; LOCAL_CLOSE ends in RESET after `close_timeout_s`.

These events change nothing. Any other event of the peer ends the session with GO_AWAY (protocol error); any other of this side is a
`LocalProtocolError`.

| state | event |
|---|---|
{"".join(ignored)}"""


if __name__ == "__main__":
    print(document(), end="")  # noqa: T201
