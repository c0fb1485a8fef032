"""The table of the client's life: whatever happens in whatever order, a kill ends in EXITED, within a bound."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastplug.errors import LocalProtocolError
from fastplug.process import lifecycle
from fastplug.process.lifecycle import TIMERS, TRANSITIONS, Action, Event, Lifecycle, State

ROOT = Path(__file__).parents[2]
# All timers of a stop in a row, and some.
STOP_BOUND_S = lifecycle.STOP_GRACE_S + lifecycle.TERM_GRACE_S + lifecycle.KILL_GRACE_S

steps = st.lists(st.tuples(st.sampled_from(Event), st.floats(0, 100)), max_size=40)


def feed_legal(life: Lifecycle, event: Event, now_s: float) -> tuple[Action, ...]:
    try:
        return life.feed(event, now_s)
    except LocalProtocolError:
        return ()


def wander(life: Lifecycle, walk: list[tuple[Event, float]]) -> float:
    now_s = 0.0
    for event, wait_s in walk:
        now_s += wait_s
        life.poll(now_s)
        feed_legal(life, event, now_s)
    return now_s


@given(steps)
def test_a_kill_ends_in_exited_whatever_came_before(walk: list[tuple[Event, float]]) -> None:
    life = Lifecycle()
    now_s = wander(life, walk)
    killed_s = now_s
    life.feed(Event.KILL_REQUESTED, now_s)
    while life.state is not State.EXITED:
        timeout_s = life.next_timeout_s(now_s)
        assert timeout_s is not None
        now_s += timeout_s
        life.poll(now_s + 1e-6)
    assert now_s - killed_s <= STOP_BOUND_S + 1e-3


@given(steps)
def test_a_process_that_ended_is_released_once(walk: list[tuple[Event, float]]) -> None:
    life = Lifecycle()
    now_s, released, started = 0.0, 0, 0
    for event, wait_s in [*walk, (Event.KILL_REQUESTED, 0.0), (Event.PROCESS_EXITED, 0.0)]:
        now_s += wait_s
        for actions in (life.poll(now_s), feed_legal(life, event, now_s)):
            released += actions.count(Action.RELEASE)
            started += actions.count(Action.START_PROCESS)
    assert started <= 1
    late_starts = sum(event is Event.PROCESS_STARTED for event, _ in walk)
    assert released <= started + late_starts


@given(steps)
def test_nothing_leads_back(walk: list[tuple[Event, float]]) -> None:
    order = list(State)
    life = Lifecycle()
    now_s = 0.0
    for event, wait_s in walk:
        now_s += wait_s
        before = order.index(life.state)
        life.poll(now_s)
        feed_legal(life, event, now_s)
        assert order.index(life.state) >= before


@pytest.mark.parametrize("state", State)
def test_kill_is_legal_in_every_state(state: State) -> None:
    assert (state, Event.KILL_REQUESTED) in TRANSITIONS


@pytest.mark.parametrize("state", [state for state in State if state not in (State.NEW, State.CONNECTED, State.EXITED)])
def test_every_passing_state_is_left_by_its_timer(state: State) -> None:
    event, seconds = TIMERS[state]
    assert seconds > 0
    assert TRANSITIONS[state, event][0] is not state


@pytest.mark.parametrize("state", [State.HANDSHAKING, State.CONNECTED, State.STOPPING, State.TERMINATING, State.KILLING])
def test_the_end_of_the_process_is_the_end_of_the_client(state: State) -> None:
    assert TRANSITIONS[state, Event.PROCESS_EXITED] == (State.EXITED, (Action.SWEEP, Action.RELEASE))


def started(**bounds_s: float) -> Lifecycle:
    life = Lifecycle(**bounds_s)
    life.feed(Event.START_REQUESTED, 0.0)
    life.feed(Event.PROCESS_STARTED, 1.0)
    return life


def test_a_stop_goes_from_grace_to_sigterm_to_sigkill() -> None:
    life = started()
    assert life.feed(Event.LINE_RECEIVED, 2.0) == (Action.CONNECT,)
    assert life.feed(Event.CONNECTED, 3.0) == ()
    assert life.next_timeout_s(3.0) is None
    assert life.feed(Event.KILL_REQUESTED, 10.0) == (Action.SEND_SHUTDOWN,)
    assert life.poll(11.9) == ()
    assert life.poll(12.0) == (Action.SEND_SIGTERM,)
    assert life.feed(Event.KILL_REQUESTED, 13.0) == ()
    assert life.next_timeout_s(13.0) == 1.0
    assert life.poll(14.0) == (Action.SEND_SIGKILL,)
    assert life.poll(19.0) == (Action.ABANDON, Action.RELEASE)
    assert life.state is State.EXITED


def test_one_timeout_covers_start_and_handshake() -> None:
    life = started(start_timeout_s=5.0)
    assert life.next_timeout_s(1.0) == 4.0
    assert life.poll(5.0) == (Action.SEND_SIGKILL,)


def test_a_kill_during_the_start_reaches_the_process_that_comes_of_it() -> None:
    life = Lifecycle()
    life.feed(Event.START_REQUESTED, 0.0)
    assert life.feed(Event.KILL_REQUESTED, 0.1) == ()
    assert life.feed(Event.PROCESS_STARTED, 0.2) == (Action.SEND_SIGKILL,)


def test_an_illegal_event_says_so_and_changes_nothing() -> None:
    life = Lifecycle()
    with pytest.raises(LocalProtocolError, match="'connected' cannot happen to a client that is new"):
        life.feed(Event.CONNECTED, 0.0)
    assert life.state is State.NEW


def test_the_diagram_in_the_docs_is_current() -> None:
    current = (ROOT / "docs" / "lifecycle.md").read_text()
    assert current == lifecycle.document(), "run: python -m fastplug.process.lifecycle > docs/lifecycle.md"
