"""The yamux session as a conversation: what each frame does, what a peer against the rules gets, and when time runs out."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastplug.errors import LocalProtocolError
from fastplug.yamux import stream as stream_module
from fastplug.yamux.events import (
    DataReceived,
    EndReceived,
    Event,
    GoAwayReceived,
    PingAnswered,
    PingLost,
    ResetReceived,
    SendWindowOpened,
    SessionConfig,
    SessionEnded,
    StreamAccepted,
    StreamClosed,
    StreamOpened,
)
from fastplug.yamux.frames import HEADER, HEADER_BYTES, INITIAL_WINDOW_BYTES, LENGTH_MAX, Flag, FrameType, GoAwayCode, header
from fastplug.yamux.session import ANSWERS_MAX, PINGS_MAX, TIMERS_SPARE, Session
from fastplug.yamux.stream import OVER, TRANSITIONS, StreamEvent, StreamState

ROOT = Path(__file__).parents[2]
WINDOW = INITIAL_WINDOW_BYTES
PROTOCOL_ERROR = header(FrameType.GO_AWAY, 0, 0, GoAwayCode.PROTOCOL_ERROR)


def client(**limits: float) -> Session:
    return Session(client=True, now_s=0.0, config=SessionConfig(**limits))  # type: ignore[arg-type]


def server(**limits: float) -> Session:
    return Session(client=False, now_s=0.0, config=SessionConfig(**limits))  # type: ignore[arg-type]


def drain(session: Session) -> bytes:
    """What it wants to send, sent."""
    data = b"".join(session.outgoing(10**6))
    session.sent(len(data))
    assert session.outgoing_bytes == 0
    return data


def update(stream_id: int, flags: int = 0, length: int = 0) -> bytes:
    return header(FrameType.WINDOW_UPDATE, flags, stream_id, length)


def data(stream_id: int, payload: bytes, flags: int = 0) -> bytes:
    return header(FrameType.DATA, flags, stream_id, len(payload)) + payload


def frames(sent: bytes) -> list[tuple[int, int, int, int]]:
    """(type, flags, stream, length) of each frame."""
    found = []
    while sent:
        _, kind, flags, stream_id, length = HEADER.unpack(sent[:HEADER_BYTES])
        found.append((kind, flags, stream_id, length))
        sent = sent[HEADER_BYTES + (length if kind == FrameType.DATA else 0) :]
    return found


def opened(session: Session) -> int:
    """A stream of the session's own, accepted by its peer."""
    stream_id = session.open(0.0)
    session.receive(update(stream_id, Flag.ACK), 0.0)
    drain(session)
    return stream_id


def violated(session: Session, sent: bytes) -> str:
    """The session ends with a protocol error: told as the last event, in the last frame, and to whoever goes on."""
    events = session.receive(sent, 0.0)
    last = events[-1]
    assert isinstance(last, SessionEnded)
    assert last.violation
    assert drain(session).endswith(PROTOCOL_ERROR)
    assert session.receive(update(1, Flag.SYN), 1.0) == []
    assert session.poll(1000.0) == []
    assert session.next_timeout_s(1.0) is None
    with pytest.raises(LocalProtocolError, match="no yamux stream can be opened: the yamux peer sent"):
        session.open(1.0)
    return last.reason


def test_an_opener_sends_syn_and_may_send_at_once() -> None:
    session = client()
    assert [session.open(0.0), session.open(0.0)] == [1, 3]
    assert session.send(1, b"hello") == 5
    assert drain(session) == update(1, Flag.SYN) + update(3, Flag.SYN) + data(1, b"hello")
    assert session.receive(update(1, Flag.ACK) + data(1, b"you"), 0.0) == [StreamAccepted(1), DataReceived(1, b"you")]
    assert server().open(0.0) == 2


def test_an_accepted_stream_is_acknowledged_when_it_is_accepted() -> None:
    session = server()
    assert session.receive(update(1, Flag.SYN) + data(1, b"x") + data(3, b"y", Flag.SYN), 0.0) == [
        StreamOpened(1),
        DataReceived(1, b"x"),
        StreamOpened(3),
        DataReceived(3, b"y"),
    ]
    assert drain(session) == b""
    session.accept(1)
    session.send(3, b"z")  # the acknowledgement rides on the first frame
    assert drain(session) == update(1, Flag.ACK) + data(3, b"z", Flag.ACK)
    with pytest.raises(LocalProtocolError, match="does not wait"):
        session.accept(1)
    session.accept(99)  # over before it was accepted


def test_a_larger_window_is_announced_with_the_first_frame() -> None:
    larger = 1 << 20
    opener, acceptor = client(window_bytes=larger), server(window_bytes=larger)
    opener.open(0.0)
    sent = drain(opener)
    assert sent == update(1, Flag.SYN, larger - WINDOW)
    acceptor.receive(sent, 0.0)
    acceptor.accept(1)
    opener.receive(drain(acceptor), 0.0)
    assert acceptor.sendable_bytes(1) == larger
    assert opener.send(1, bytes(2 * larger)) == larger
    with pytest.raises(LocalProtocolError, match="window_bytes"):
        SessionConfig(window_bytes=WINDOW - 1)
    with pytest.raises(LocalProtocolError, match="positive"):
        SessionConfig(accept_backlog=0)


def test_the_window_stops_a_sender_until_the_reader_is_done() -> None:
    session = client()
    opened(session)
    assert session.send(1, bytes(WINDOW + 1)) == WINDOW
    assert session.send(1, b"x") == session.sendable_bytes(1) == 0
    assert session.receive(update(1, 0, 10), 0.0) == [SendWindowOpened(1)]
    assert session.receive(update(1, 0, 10), 0.0) == []
    assert session.sendable_bytes(1) == 20


def test_a_reader_gives_window_back_in_halves() -> None:
    session = client()
    opened(session)
    session.receive(data(1, bytes(WINDOW)), 0.0)
    session.consumed(1, WINDOW // 2 - 1)
    assert drain(session) == b""
    session.consumed(1, 1)
    assert drain(session) == update(1, 0, WINDOW // 2)
    with pytest.raises(LocalProtocolError, match="cannot be done with"):
        session.consumed(1, WINDOW)
    session.consumed(7, 1)


def test_bytes_that_are_announced_but_did_not_come_are_not_given_back() -> None:
    session = client()
    opened(session)
    session.receive(data(1, bytes(WINDOW))[: WINDOW // 2 + HEADER_BYTES], 0.0)
    session.consumed(1, WINDOW // 2)
    assert drain(session) == update(1, 0, WINDOW // 2)
    session.receive(bytes(WINDOW // 2), 0.0)
    assert "has 131072 left" in violated(session, header(FrameType.DATA, 0, 1, WINDOW // 2 + 1))


def test_the_write_limit_bounds_what_waits() -> None:
    session = client(write_limit_bytes=1000)
    opened(session)
    assert session.send(1, bytes(600)) == 600
    assert session.send(1, bytes(600)) == 1000 - 600 - HEADER_BYTES
    assert session.send(1, b"x") == session.sendable_bytes(1) == 0
    session.sent(500)
    assert session.sendable_bytes(1) == 500 - HEADER_BYTES


def test_large_pieces_are_not_copied_and_may_be_sent_in_parts() -> None:
    session = client()
    opened(session)
    payload = bytes(range(256)) * 256
    session.send(1, payload)
    head, piece = session.outgoing()
    assert isinstance(piece, memoryview)
    assert piece.obj is payload
    session.sent(HEADER_BYTES + 7)
    assert head == header(FrameType.DATA, 0, 1, len(payload))
    assert drain(session) == payload[7:]


def test_outgoing_gives_as_many_pieces_as_asked_for() -> None:
    session = client()
    for _ in range(5):
        session.open(0.0)
    assert session.outgoing(2) == [update(1, Flag.SYN), update(3, Flag.SYN)]


def test_each_direction_ends_by_itself() -> None:
    session = client()
    opened(session)
    session.close(1, 0.0)
    session.close(1, 0.0)
    assert drain(session) == update(1, Flag.FIN)
    with pytest.raises(LocalProtocolError, match="closed here"):
        session.send(1, b"x")
    assert session.sendable_bytes(1) == 0
    assert session.receive(data(1, b"still"), 0.0) == [DataReceived(1, b"still")]
    assert session.receive(data(1, b"last", Flag.FIN), 0.0) == [DataReceived(1, b"last"), EndReceived(1), StreamClosed(1)]
    assert session.stream_count == 0
    with pytest.raises(LocalProtocolError, match="it is over"):
        session.send(1, b"x")


def test_the_end_comes_behind_the_payload_however_it_is_split() -> None:
    session = client()
    opened(session)
    events: list[Event] = []
    for byte in data(1, b"abc", Flag.FIN):
        events += session.receive(bytes([byte]), 0.0)
    assert events == [DataReceived(1, b"a"), DataReceived(1, b"b"), DataReceived(1, b"c"), EndReceived(1)]
    session.close(1, 0.0)
    assert drain(session) == update(1, Flag.FIN)
    assert session.stream_count == 0


def test_a_stream_that_ended_before_it_was_accepted_is_still_acknowledged() -> None:
    session = server()
    assert session.receive(data(1, b"all", Flag.SYN | Flag.FIN), 0.0) == [StreamOpened(1), DataReceived(1, b"all"), EndReceived(1)]
    session.accept(1)
    assert drain(session) == update(1, Flag.ACK)
    session.receive(update(3, Flag.SYN), 0.0)
    session.close(3, 0.0)
    assert drain(session) == update(3, Flag.ACK | Flag.FIN)


def test_what_comes_after_the_end_is_dropped() -> None:
    """In hashicorp/yamux a Close may overtake a Write on another goroutine."""
    session = client()
    opened(session)
    assert session.receive(update(1, Flag.FIN) + data(1, b"late"), 0.0) == [EndReceived(1)]
    assert session.send(1, b"fine") == 4


def test_a_reset_ends_a_stream_and_its_late_frames_are_dropped() -> None:
    session = client()
    opened(session)
    head, rest = data(1, b"0123456789")[:15], data(1, b"0123456789")[15:]
    assert session.receive(head, 0.0) == [DataReceived(1, b"012")]
    session.reset(1)
    session.reset(1)
    assert drain(session) == update(1, Flag.RST)
    assert session.receive(rest + data(1, b"more") + update(1, Flag.FIN, 5) + update(5), 0.0) == []
    opened(session)
    assert session.receive(data(3, b"gone", Flag.RST) + data(3, b"x"), 0.0) == [ResetReceived(3)]
    assert session.stream_count == 0


def test_a_full_backlog_resets_what_is_too_much() -> None:
    session = server(accept_backlog=2)
    assert session.receive(b"".join(data(n, b"x", Flag.SYN) for n in (1, 3, 5)), 0.0)[::2] == [StreamOpened(1), StreamOpened(3)]
    assert drain(session) == update(5, Flag.RST)
    session.accept(1)
    assert session.receive(update(7, Flag.SYN), 0.0) == [StreamOpened(7)]


def test_opening_waits_while_a_backlog_of_streams_is_unanswered() -> None:
    session = client(accept_backlog=2)
    first, second = session.open(0.0), session.open(0.0)
    assert not session.can_open
    with pytest.raises(LocalProtocolError, match="2 wait to be accepted"):
        session.open(0.0)
    session.receive(update(first, Flag.ACK), 0.0)
    assert session.can_open
    session.open(0.0)
    session.receive(update(second, Flag.RST), 0.0)
    assert session.can_open


def test_ids_run_out() -> None:
    session = client()
    session._next_id = LENGTH_MAX - 2
    session.open(0.0)
    assert not session.can_open


def test_going_away_takes_no_more_streams() -> None:
    here, there = server(), client()
    there.open(0.0)
    here.receive(drain(there), 0.0)
    here.go_away()
    here.go_away()
    assert here.receive(update(3, Flag.SYN) + data(3, b"x"), 0.0) == []
    sent = drain(here)
    assert sent == header(FrameType.GO_AWAY, 0, 0, GoAwayCode.NORMAL) + update(3, Flag.RST)
    assert there.receive(sent, 0.0) == [GoAwayReceived()]
    with pytest.raises(LocalProtocolError, match="takes no more streams"):
        there.open(0.0)
    here.accept(1)
    assert there.receive(drain(here), 0.0) == [StreamAccepted(1)]


@pytest.mark.parametrize(("code", "words"), [(1, "a protocol error"), (2, "an internal error"), (77, "an unknown reason")])
def test_a_peer_that_goes_away_for_an_error_ends_the_session(code: int, words: str) -> None:
    (ended,) = client().receive(header(FrameType.GO_AWAY, 0, 0, code), 0.0)
    assert isinstance(ended, SessionEnded)
    assert not ended.violation
    assert words in ended.reason


def test_pings_are_answered_and_measured() -> None:
    session = client()
    assert session.receive(header(FrameType.PING, Flag.SYN, 0, 99), 0.0) == []
    assert drain(session) == header(FrameType.PING, Flag.ACK, 0, 99)
    ping_id = session.ping(1.0)
    assert drain(session) == header(FrameType.PING, Flag.SYN, 0, ping_id)
    assert session.receive(header(FrameType.PING, Flag.ACK, 0, ping_id), 1.5) == [PingAnswered(ping_id, 0.5)]
    assert session.receive(header(FrameType.PING, Flag.ACK, 0, ping_id), 1.5) == []
    lost = session.ping(2.0)
    assert session.poll(11.9) == []
    assert session.poll(12.0) == [PingLost(lost)]
    for _ in range(PINGS_MAX):
        session.ping(20.0)
    with pytest.raises(LocalProtocolError, match="are under way"):
        session.ping(20.0)


def test_keepalive_asks_and_ends_a_session_that_does_not_answer() -> None:
    session = client(keepalive_interval_s=30.0, answer_timeout_s=10.0)
    assert session.next_timeout_s(1.0) == 29.0
    assert session.poll(29.9) == []
    assert session.poll(30.0) == []
    assert drain(session) == header(FrameType.PING, Flag.SYN, 0, 0)
    assert session.next_timeout_s(30.0) == 10.0
    assert session.receive(header(FrameType.PING, Flag.ACK, 0, 0), 35.0) == []
    assert session.next_timeout_s(35.0) == 30.0
    session.poll(65.0)
    (ended,) = session.poll(75.0)
    assert isinstance(ended, SessionEnded)
    assert "keepalive timeout" in ended.reason
    assert client(keepalive_interval_s=None).next_timeout_s(0.0) is None  # type: ignore[arg-type]


def test_a_stream_that_nobody_accepts_ends_the_session() -> None:
    session = client(open_timeout_s=75.0)
    session.open(0.0)
    session.receive(update(session.open(0.0), Flag.ACK), 1.0)
    (ended,) = session.poll(75.0)
    assert isinstance(ended, SessionEnded)
    assert "has not accepted a stream for 75 s" in ended.reason


def test_a_close_that_the_peer_never_answers_ends_in_a_reset() -> None:
    session = client(close_timeout_s=300.0, keepalive_interval_s=None)  # type: ignore[arg-type]
    opened(session)
    session.close(1, 5.0)
    session.close(session.open(6.0), 6.0)
    drain(session)
    assert session.next_timeout_s(6.0) == 299.0
    assert session.poll(305.0) == [StreamClosed(1, timed_out=True)]
    assert drain(session) == update(1, Flag.RST)
    assert session.receive(update(3, Flag.ACK), 306.0) == [StreamAccepted(3)]
    assert session.poll(306.0) == [StreamClosed(3, timed_out=True)]


def test_timers_of_streams_that_are_over_are_swept_out() -> None:
    session = client()
    for _ in range(5 * TIMERS_SPARE):
        session.reset(opened(session))
    assert len(session._timers) <= TIMERS_SPARE + 3


def test_the_end_of_the_connection_is_told_once() -> None:
    assert client().receive_end() == [SessionEnded("the peer closed the connection")]
    session = client()
    session.receive(b"\0\0", 0.0)
    assert session.receive_end("broken pipe") == [SessionEnded("broken pipe in the middle of a yamux frame")]
    assert session.receive_end() == []


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"\1" + update(1)[1:], "version 1"),
        (header(4, 0, 0, 0), "type 4"),
        (header(255, 0, 0, 0), "type 255"),
        (update(2, Flag.SYN), "not its to give"),
        (update(0, Flag.SYN), "not its to give"),
        (update(1, Flag.SYN) * 2, "which is open"),
        (update(1, Flag.SYN | Flag.FIN) + update(1, Flag.FIN), "closed there"),
        (data(1, bytes(WINDOW), Flag.SYN) + data(1, b"x"), "has 0 left"),
        (header(FrameType.DATA, Flag.SYN, 1, LENGTH_MAX), "has 262144 left"),
        (update(1, Flag.SYN, LENGTH_MAX), "window of more"),
        (header(FrameType.PING, Flag.SYN, 0, 1) * (ANSWERS_MAX + 1), "reads no answer"),
        (b"".join(update(1 + 2 * n, Flag.SYN) for n in range(ANSWERS_MAX + 300)), "reads no answer"),
    ],
)
def test_a_violation_ends_the_session_with_a_protocol_error(sent: bytes, words: str) -> None:
    session = server()
    assert words in violated(session, sent)


def test_a_peer_that_reads_its_answers_may_ask_for_ever() -> None:
    session = server()
    for _ in range(3):
        session.receive(header(FrameType.PING, Flag.SYN, 0, 1) * ANSWERS_MAX, 0.0)
        session.sent(session.outgoing_bytes)
    assert session.ended is None


def test_an_unknown_flag_means_nothing() -> None:
    assert server().receive(update(1, Flag.SYN | 0x8000), 0.0) == [StreamOpened(1)]


def test_small_pieces_do_not_keep_their_buffer_alive() -> None:
    session = client()
    opened(session)
    opened(session)
    small, large = (event for event in session.receive(data(1, b"x") + data(3, bytes(1 << 16)), 0.0) if isinstance(event, DataReceived))
    assert isinstance(small.data, bytes)
    assert isinstance(large.data, memoryview)


def test_every_state_that_may_be_left_can_be_reset() -> None:
    for state in StreamState:
        over = state in OVER or state is StreamState.INIT
        assert ((state, StreamEvent.RESET) in TRANSITIONS) is not over
    assert not any(state in OVER for state, _ in TRANSITIONS)


def test_the_diagram_in_the_docs_is_current() -> None:
    current = (ROOT / "docs" / "yamux.md").read_text()
    assert current == stream_module.document(), "run: python -m fastplug.yamux.stream > docs/yamux.md"
