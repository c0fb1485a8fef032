"""The life of a client and its plugin process as one table of states and events. Pure: time comes in, actions go out.

`Lifecycle.feed` says what to do; the caller does it and feeds what came of it. `docs/lifecycle.md` shows the table as a
diagram; ``python -m fastplug.process.lifecycle`` prints that file.

Every step of a stop is a state of its own, so that the table alone tells that a stop ends: STOPPING (asked over the
connection) -> TERMINATING (SIGTERM) -> KILLING (SIGKILL) -> EXITED, each left after a bounded time.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator

from fastplug.errors import LocalProtocolError

__all__ = ["TIMERS", "TRANSITIONS", "Action", "Event", "Lifecycle", "State", "document", "mermaid"]

# go-plugin's StartTimeout: a plugin may have to be paged in from a slow disk, or import half of the world.
START_TIMEOUT_S = 60.0
# go-plugin's wait between Shutdown and SIGKILL.
STOP_GRACE_S = 2.0
# For a program that knows nothing of plugins but cleans up on SIGTERM; as long again.
TERM_GRACE_S = 2.0
# SIGKILL works within milliseconds except on a process that is stuck in the kernel, which nothing ends: give up then.
KILL_GRACE_S = 5.0


class State(enum.Enum):
    """Where a client is. NEW to EXITED, never back."""

    NEW = "new"
    STARTING = "starting"  # runner.start() is running
    HANDSHAKING = "handshaking"  # the process runs; its line is awaited, or the connection is being made
    CONNECTED = "connected"
    STOPPING = "stopping"  # it was asked over the connection to end
    TERMINATING = "terminating"  # SIGTERM was sent
    KILLING = "killing"  # SIGKILL was sent, or will be as soon as there is a process
    EXITED = "exited"


class Event(enum.Enum):
    """What happens to a client."""

    START_REQUESTED = "start requested"
    PROCESS_STARTED = "process started"
    START_FAILED = "start failed"
    LINE_RECEIVED = "line received"  # and it was a good one
    LINE_REFUSED = "line refused"
    CONNECTED = "connected"
    CONNECT_FAILED = "connect failed"
    START_TIMED_OUT = "start timed out"
    KILL_REQUESTED = "kill requested"
    SHUTDOWN_FAILED = "shutdown failed"  # the plugin could not be asked: its connection is broken
    STOP_GRACE_OVER = "stop grace over"
    TERM_GRACE_OVER = "term grace over"
    KILL_GRACE_OVER = "kill grace over"
    DETACHED = "detached"  # the plugin is to go on without this host
    PROCESS_EXITED = "process exited"


class Action(enum.Enum):
    """What the caller has to do, in the order given."""

    START_PROCESS = "start process"
    READ_LINE = "read line"
    CONNECT = "connect"
    SEND_SHUTDOWN = "send shutdown"
    SEND_SIGTERM = "send SIGTERM"  # to the process group
    SEND_SIGKILL = "send SIGKILL"  # to the process group and all descendants
    SWEEP = "sweep"  # SIGKILL what the process left behind in its group
    LET_GO = "let go"  # the process is nobody's any more: RELEASE must not end it
    RELEASE = "release"  # reap, tell the warden, close connection and streams
    ABANDON = "abandon"  # report that the process cannot be ended


_S, _E, _A = State, Event, Action
_EXIT = (_S.EXITED, (_A.SWEEP, _A.RELEASE))
_KILL = (_S.KILLING, (_A.SEND_SIGKILL,))

Transition = tuple[State, tuple[Action, ...]]

TRANSITIONS: dict[tuple[State, Event], Transition] = {
    (_S.NEW, _E.START_REQUESTED): (_S.STARTING, (_A.START_PROCESS,)),
    (_S.NEW, _E.KILL_REQUESTED): (_S.EXITED, ()),
    (_S.STARTING, _E.PROCESS_STARTED): (_S.HANDSHAKING, (_A.READ_LINE,)),
    (_S.STARTING, _E.START_FAILED): (_S.EXITED, (_A.RELEASE,)),
    (_S.STARTING, _E.START_TIMED_OUT): (_S.KILLING, ()),
    (_S.STARTING, _E.KILL_REQUESTED): (_S.KILLING, ()),
    (_S.HANDSHAKING, _E.LINE_RECEIVED): (_S.HANDSHAKING, (_A.CONNECT,)),
    (_S.HANDSHAKING, _E.CONNECTED): (_S.CONNECTED, ()),
    # No grace for what is no plugin of ours, as in go-plugin.
    (_S.HANDSHAKING, _E.LINE_REFUSED): _KILL,
    (_S.HANDSHAKING, _E.CONNECT_FAILED): _KILL,
    (_S.HANDSHAKING, _E.START_TIMED_OUT): _KILL,
    (_S.HANDSHAKING, _E.KILL_REQUESTED): (_S.TERMINATING, (_A.SEND_SIGTERM,)),
    (_S.HANDSHAKING, _E.PROCESS_EXITED): _EXIT,
    (_S.CONNECTED, _E.KILL_REQUESTED): (_S.STOPPING, (_A.SEND_SHUTDOWN,)),
    (_S.CONNECTED, _E.PROCESS_EXITED): _EXIT,
    (_S.CONNECTED, _E.DETACHED): (_S.EXITED, (_A.LET_GO, _A.RELEASE)),
    (_S.STOPPING, _E.SHUTDOWN_FAILED): (_S.TERMINATING, (_A.SEND_SIGTERM,)),
    (_S.STOPPING, _E.STOP_GRACE_OVER): (_S.TERMINATING, (_A.SEND_SIGTERM,)),
    (_S.STOPPING, _E.PROCESS_EXITED): _EXIT,
    (_S.TERMINATING, _E.TERM_GRACE_OVER): _KILL,
    (_S.TERMINATING, _E.PROCESS_EXITED): _EXIT,
    (_S.KILLING, _E.PROCESS_STARTED): _KILL,  # a kill that came while runner.start() was running
    (_S.KILLING, _E.START_FAILED): (_S.EXITED, (_A.RELEASE,)),
    (_S.KILLING, _E.PROCESS_EXITED): _EXIT,
    (_S.KILLING, _E.KILL_GRACE_OVER): (_S.EXITED, (_A.ABANDON, _A.RELEASE)),
    # runner.start() came back after it was given up
    (_S.EXITED, _E.PROCESS_STARTED): (_S.EXITED, (_A.SEND_SIGKILL, _A.RELEASE)),
    # A second kill asks for nothing new, whatever the first one has reached.
    **{(state, _E.KILL_REQUESTED): (state, ()) for state in (_S.STOPPING, _S.TERMINATING, _S.KILLING, _S.EXITED)},
    # Another thread may be in the middle of the handshake when the client is killed or the process ends: too late to matter.
    **{
        (state, event): (state, ())
        for state in (_S.TERMINATING, _S.KILLING, _S.EXITED)
        for event in (_E.LINE_RECEIVED, _E.LINE_REFUSED, _E.CONNECTED, _E.CONNECT_FAILED)
    },
    **{(state, _E.DETACHED): (state, ()) for state in (_S.STOPPING, _S.TERMINATING, _S.KILLING, _S.EXITED)},
    **{(state, _E.SHUTDOWN_FAILED): (state, ()) for state in (_S.TERMINATING, _S.KILLING, _S.EXITED)},
    **{(_S.EXITED, event): (_S.EXITED, ()) for event in (_E.START_FAILED, _E.PROCESS_EXITED)},
}

TIMERS: dict[State, tuple[Event, float]] = {
    State.STARTING: (Event.START_TIMED_OUT, START_TIMEOUT_S),
    State.HANDSHAKING: (Event.START_TIMED_OUT, START_TIMEOUT_S),  # goes on running: one time-out covers both
    State.STOPPING: (Event.STOP_GRACE_OVER, STOP_GRACE_S),
    State.TERMINATING: (Event.TERM_GRACE_OVER, TERM_GRACE_S),
    State.KILLING: (Event.KILL_GRACE_OVER, KILL_GRACE_S),
}
"""Which event comes by itself, and how many seconds after the state was entered (from a state with another event)."""


class Lifecycle:
    """One client's way through the table. Not thread-safe: the caller holds a lock around `feed` and `poll`.

    Args:
        start_timeout_s: seconds for the start and the handshake together.
        stop_timeout_s: seconds for the plugin to end after it was asked to, before it gets SIGTERM.
    """

    def __init__(self, *, start_timeout_s: float = START_TIMEOUT_S, stop_timeout_s: float = STOP_GRACE_S) -> None:
        self.state = State.NEW
        self._bounds_s = {Event.START_TIMED_OUT: start_timeout_s, Event.STOP_GRACE_OVER: stop_timeout_s}
        self._timer: tuple[Event, float] | None = None  # what comes by itself, and when

    def feed(self, event: Event, now_s: float) -> tuple[Action, ...]:
        """Take the step for ``event`` at ``now_s`` (any monotonic clock); returns what to do.

        Raises: LocalProtocolError for an event that cannot happen in this state; the state stays.
        """
        try:
            state, actions = TRANSITIONS[self.state, event]
        except KeyError:
            raise LocalProtocolError(
                f"{event.value!r} cannot happen to a client that is {self.state.value}: a bug in fastplug or its runner"
            ) from None
        self.state = state
        self._arm(now_s)
        return actions

    def poll(self, now_s: float) -> tuple[Action, ...]:
        """Take the steps that are due at ``now_s``; returns what to do, most often nothing."""
        if self._timer is None or now_s < self._timer[1]:
            return ()
        return self.feed(self._timer[0], now_s)

    def next_timeout_s(self, now_s: float) -> float | None:
        """Seconds from ``now_s`` until `poll` has something to do; None when nothing comes by itself."""
        return None if self._timer is None else max(0.0, self._timer[1] - now_s)

    def _arm(self, now_s: float) -> None:
        timer = TIMERS.get(self.state)
        if timer is None:
            self._timer = None
        elif self._timer is None or self._timer[0] is not timer[0]:
            event, seconds = timer
            self._timer = event, now_s + self._bounds_s.get(event, seconds)


def mermaid() -> str:
    """The table as a Mermaid state diagram, without the events that change nothing."""
    lines = ["stateDiagram-v2", f"    [*] --> {State.NEW.name}"]
    lines += _arrows()
    lines.append(f"    {State.EXITED.name} --> [*]")
    return "\n".join(lines) + "\n"


def _arrows() -> Iterator[str]:
    for (state, event), (after, actions) in TRANSITIONS.items():
        if after is state and not actions:
            continue
        timer = TIMERS.get(state)
        label = f"after {timer[1]:g} s" if timer is not None and timer[0] is event else event.value
        doing = " / " + ", ".join(action.value for action in actions) if actions else ""
        yield f"    {state.name} --> {after.name}: {label}{doing}"


def document() -> str:
    """The whole of docs/lifecycle.md."""
    ignored: dict[State, list[str]] = {}
    for (state, event), (after, actions) in TRANSITIONS.items():
        if after is state and not actions:
            ignored.setdefault(state, []).append(event.value)
    rows = "".join(f"| {state.name} | {', '.join(events)} |\n" for state, events in ignored.items())
    return f"""# The life of a client

Made from the table in `process/lifecycle.py` by `python -m fastplug.process.lifecycle > docs/lifecycle.md`; a test compares the two.
An arrow's label is the event and, after the slash, what is done. A time counts from the entry into the state; the
{START_TIMEOUT_S:g} s (`start_timeout_s`) cover STARTING and HANDSHAKING together, the {STOP_GRACE_S:g} s of STOPPING are `stop_timeout_s`.

```mermaid
{mermaid()}```

These events change nothing, because they come too late or twice. Any other event is a `LocalProtocolError`.

| state | events |
|---|---|
{rows}"""


if __name__ == "__main__":
    print(document(), end="")  # noqa: T201
