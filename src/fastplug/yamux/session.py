"""One yamux conversation: `Session` takes the peer's bytes and the time, and gives events, and bytes for the peer. Pure.

What a peer does against the rules ends the session as in hashicorp/yamux: GO_AWAY with "protocol error" is the last frame that leaves, and
the last event is `SessionEnded`. Nothing is raised for what a peer sent.
"""

from __future__ import annotations

import collections
import heapq
from typing import Final

from fastplug.errors import LocalProtocolError
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
from fastplug.yamux.frames import HEADER, HEADER_BYTES, LENGTH_MAX, VERSION, Flag, FrameType, GoAwayCode, header
from fastplug.yamux.stream import FLAGS, OVER, RECEIVING, SENDING, Stream, StreamAction, StreamEvent, StreamState

__all__ = ["Session"]

# A frame below this is copied behind its header, one buffer for the system call; a larger one is cheaper as a buffer of its own.
COALESCED_BYTES_MAX: Final = 16 * 1024
# A received piece this small next to the buffer that it came in is copied, or it would keep the whole buffer alive.
COPIED_BYTES_MAX: Final = 8 * 1024
# Answers to pings, window updates and resets that a peer may leave unread. Honest ones leave a few; these are 48 KiB.
ANSWERS_MAX: Final = 4096
# Pings under way: one of the keepalive, and those of callers. A peer that answers none of so many is gone.
PINGS_MAX: Final = 64
# Outdated timers beyond these are swept out, or short-lived streams would leave one each for minutes.
TIMERS_SPARE: Final = 64

_SYN, _ACK, _FIN, _RST = (int(flag) for flag in Flag)
_DATA, _WINDOW_UPDATE, _PING, _GO_AWAY = (int(kind) for kind in FrameType)


class Session:
    """One side of a yamux session. Not thread-safe.

    Args:
        client: the side that opens odd stream ids. One side is the client, the other is not.
        now_s: any monotonic clock, the same for all calls.

    Attributes:
        ended: why the session ended, in a sentence; None while it lives.
    """

    def __init__(self, *, client: bool, now_s: float, config: SessionConfig | None = None) -> None:
        self.config = config or SessionConfig()
        self.ended: str | None = None
        self._streams: dict[int, Stream] = {}
        self._next_id = 1 if client else 2
        self._waiting: set[int] = set()  # of the peer, to be accepted
        self._unanswered: set[int] = set()  # ours, not accepted yet
        self._local_go_away = self._remote_go_away = False
        # receiving
        self._head = b""  # less than a header
        self._payload_bytes = 0  # of the frame in hand, still to come
        self._reader: Stream | None = None  # who gets them; None drops them
        self._ends = False  # the frame in hand has FIN
        # sending
        self._outgoing: collections.deque[bytes | memoryview] = collections.deque()
        self._outgoing_bytes = 0
        self._queued_bytes = 0  # ever; counts on, so that a frame knows its place
        self._answers: collections.deque[int] = collections.deque()  # where those end that the peer caused
        # time
        self._now_s = now_s  # of the bytes in hand
        self._timers: list[tuple[float, int]] = []  # (when, stream id); outdated ones are left in
        self._next_ping = 0
        self._pings: dict[int, tuple[float, bool]] = {}  # sent when, by the keepalive
        self._keepalive_s = None if self.config.keepalive_interval_s is None else now_s + self.config.keepalive_interval_s
        self._events: list[Event] = []

    # -- the peer's bytes

    def receive(self, data: bytes, now_s: float) -> list[Event]:
        """Takes what came, split anywhere. After the end it is ignored."""
        events = self._events = []
        self._now_s = now_s
        view, at, size = memoryview(data), 0, len(data)
        while at < size and self.ended is None:
            if self._payload_bytes:
                end = min(size, at + self._payload_bytes)
                self._take_payload(view[at:end], size)
                at = end
            elif not self._head and size - at >= HEADER_BYTES:
                self._frame(*HEADER.unpack_from(view, at))
                at += HEADER_BYTES
            else:
                end = min(size, at + HEADER_BYTES - len(self._head))
                self._head += view[at:end]
                at = end
                if len(self._head) == HEADER_BYTES:
                    head, self._head = self._head, b""
                    self._frame(*HEADER.unpack(head))
        return events

    def receive_end(self, reason: str = "the peer closed the connection") -> list[Event]:
        """The connection is gone."""
        self._events = []
        self._end(f"{reason} in the middle of a yamux frame" if self._head or self._payload_bytes else reason)
        return self._events

    def _frame(self, version: int, kind: int, flags: int, stream_id: int, length: int) -> None:
        if version != VERSION:
            self._violated(f"a frame of version {version}")
        elif kind in (_DATA, _WINDOW_UPDATE):
            self._stream_frame(kind, flags, stream_id, length)
        elif kind == _PING:
            self._ping_frame(flags, length)
        elif kind == _GO_AWAY:
            self._go_away_frame(length)
        else:
            self._violated(f"a frame of type {kind}")

    def _stream_frame(self, kind: int, flags: int, stream_id: int, length: int) -> None:
        if flags & _SYN and not self._incoming(stream_id):
            return
        stream = self._streams.get(stream_id)
        if kind == _DATA:
            self._payload_bytes = length
            self._reader, self._ends = None, False
        if stream is None:
            return  # closed or reset here a moment ago: what the peer still had on the way is dropped
        receiving = stream.state in RECEIVING
        if flags and not self._flags(stream, flags):
            return
        if kind == _WINDOW_UPDATE:
            self._widen(stream, length)
        elif receiving:
            if length > stream.receive_window_bytes:
                self._violated(f"{length} bytes for stream {stream_id}, whose window has {stream.receive_window_bytes} left")
                return
            self._reader = stream
            self._ends = bool(flags & _FIN)
        if flags & _FIN and self.ended is None and not (kind == _DATA and length):
            self._told_end(stream)

    def _incoming(self, stream_id: int) -> bool:
        """Registers a stream of the peer's, or refuses it. False: the session ended."""
        if stream_id == 0 or stream_id % 2 == self._next_id % 2 or stream_id in self._streams:
            self._violated(
                f"SYN for stream {stream_id}, " + ("which is open" if stream_id in self._streams else "an id that is not its to give")
            )
            return False
        if self._local_go_away or len(self._waiting) >= self.config.accept_backlog:
            self._answer(header(_WINDOW_UPDATE, _RST, stream_id, 0))
            return self.ended is None
        stream = self._streams[stream_id] = Stream(stream_id)
        stream.step(StreamEvent.SYN)
        self._waiting.add(stream_id)
        self._events.append(StreamOpened(stream_id))
        return True

    def _flags(self, stream: Stream, flags: int) -> bool:
        """ACK, FIN and RST of the peer, in this order. False: stream or session is over."""
        if flags & _ACK and stream.can(StreamEvent.ACK):
            stream.step(StreamEvent.ACK)
            if stream.id in self._unanswered:
                self._unanswered.discard(stream.id)
                if stream.state is not StreamState.LOCAL_CLOSE:
                    stream.expires_s = None
                self._events.append(StreamAccepted(stream.id))
        if flags & _FIN:
            if not stream.can(StreamEvent.FIN):
                self._violated(f"FIN for stream {stream.id}, which is {stream.state.value}")
                return False
            stream.step(StreamEvent.FIN)
            stream.expires_s = None
        if flags & _RST:
            stream.state = StreamState.RESET
            self._events.append(ResetReceived(stream.id))
            self._forget(stream)
            return False
        return True

    def _told_end(self, stream: Stream) -> None:
        self._events.append(EndReceived(stream.id))
        if stream.state in OVER:
            self._events.append(StreamClosed(stream.id))
            self._forget(stream)

    def _widen(self, stream: Stream, more_bytes: int) -> None:
        if not more_bytes:
            return
        was_shut = stream.send_window_bytes == 0
        stream.send_window_bytes += more_bytes
        if stream.send_window_bytes > LENGTH_MAX:
            self._violated(f"a window of more than {LENGTH_MAX} bytes for stream {stream.id}")
        elif was_shut and stream.state in SENDING:
            self._events.append(SendWindowOpened(stream.id))

    def _take_payload(self, piece: memoryview, buffer_bytes: int) -> None:
        self._payload_bytes -= len(piece)
        stream = self._reader
        if stream is None:
            return
        if stream.state is not StreamState.RESET:  # by this side, in the middle of the frame
            stream.receive_window_bytes -= len(piece)
            stream.unread_bytes += len(piece)
            small = len(piece) <= COPIED_BYTES_MAX and len(piece) * 2 < buffer_bytes
            self._events.append(DataReceived(stream.id, bytes(piece) if small else piece))
            if self._ends and not self._payload_bytes:
                self._told_end(stream)

    def _ping_frame(self, flags: int, ping_id: int) -> None:
        if flags & _SYN:
            self._answer(header(_PING, _ACK, 0, ping_id))
        elif ping_id in self._pings:
            sent_s, keepalive = self._pings.pop(ping_id)
            if keepalive and self.config.keepalive_interval_s is not None:
                self._keepalive_s = self._now_s + self.config.keepalive_interval_s
            else:
                self._events.append(PingAnswered(ping_id, self._now_s - sent_s))

    def _go_away_frame(self, code: int) -> None:
        if code == GoAwayCode.NORMAL:
            self._remote_go_away = True
            self._events.append(GoAwayReceived())
            return
        known = {
            int(GoAwayCode.PROTOCOL_ERROR): "a protocol error of this side",
            int(GoAwayCode.INTERNAL_ERROR): "an internal error of its own",
        }
        self._end(f"the yamux peer went away for {known.get(code, f'an unknown reason ({code})')}")

    # -- what this side wants

    @property
    def can_open(self) -> bool:
        """Whether `open` would go through now. It waits for `StreamAccepted` while ``accept_backlog`` streams are unanswered."""
        return (
            self.ended is None
            and not self._remote_go_away
            and len(self._unanswered) < self.config.accept_backlog
            and self._next_id < LENGTH_MAX - 1
        )

    def open(self, now_s: float) -> int:
        """Opens a stream and returns its id. It may be used at once. Raises LocalProtocolError when `can_open` is False."""
        if not self.can_open:
            why = "the peer takes no more streams" if self._remote_go_away else f"{len(self._unanswered)} wait to be accepted there already"
            raise LocalProtocolError(f"no yamux stream can be opened: {self.ended or why}")
        stream = self._streams[self._next_id] = Stream(self._next_id)
        self._next_id += 2
        self._unanswered.add(stream.id)
        self._arm(stream, now_s + self.config.open_timeout_s)
        self._act(stream, stream.step(StreamEvent.OPEN))
        return stream.id

    def accept(self, stream_id: int) -> None:
        """Accepts a stream that `StreamOpened` told of. One that is over by now is ignored. Raises LocalProtocolError for another one."""
        stream = self._streams.get(stream_id)
        if stream is None or self.ended is not None:
            return
        if stream_id not in self._waiting:
            raise LocalProtocolError(f"yamux stream {stream_id} does not wait to be accepted")
        self._waiting.discard(stream_id)
        self._act(stream, stream.step(StreamEvent.ACCEPT))

    def send(self, stream_id: int, data: bytes | memoryview) -> int:
        """Queues as much of ``data`` as window and ``write_limit_bytes`` allow, and returns how many bytes that was.

        ``data`` must not change until it was sent: large pieces are not copied. Raises LocalProtocolError for a stream that is over, or
        was closed here.
        """
        stream = self._streams.get(stream_id)
        if stream is None or stream.state not in SENDING or self.ended is not None:
            state = stream.state.value if stream is not None else "over"
            raise LocalProtocolError(f"yamux stream {stream_id} cannot send: {self.ended or f'it is {state}'}")
        size = min(len(data), stream.send_window_bytes, max(0, self.config.write_limit_bytes - self._outgoing_bytes))
        if size <= 0:
            return 0
        stream.send_window_bytes -= size
        flags = 0
        if stream_id in self._waiting:  # the answer rides on the first frame
            self._waiting.discard(stream_id)
            stream.step(StreamEvent.ACCEPT)
            flags = _ACK
        head = header(_DATA, flags, stream_id, size)
        piece = memoryview(data)[:size]
        if size <= COALESCED_BYTES_MAX:
            self._queue(head + piece)
        else:
            self._queue(head)
            self._queue(piece)
        return size

    def sendable_bytes(self, stream_id: int) -> int:
        """What `send` would take now."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.state not in SENDING or self.ended is not None:
            return 0
        return min(stream.send_window_bytes, max(0, self.config.write_limit_bytes - self._outgoing_bytes))

    def consumed(self, stream_id: int, count: int) -> None:
        """The reader has done with ``count`` more bytes: the peer may send as many again. A stream that is over is ignored.

        Raises LocalProtocolError for more bytes than it was given.
        """
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if count > stream.unread_bytes:
            raise LocalProtocolError(f"{count} bytes of yamux stream {stream_id} cannot be done with; {stream.unread_bytes} are unread")
        stream.unread_bytes -= count
        if stream.state in RECEIVING and self.ended is None:
            due = stream.window_due_bytes(self.config.window_bytes)
            if due:
                self._answer(header(_WINDOW_UPDATE, 0, stream_id, due))

    def close(self, stream_id: int, now_s: float) -> None:
        """Sends no more on this stream; the peer may go on. Idempotent."""
        stream = self._streams.get(stream_id)
        if stream is None or self.ended is not None or not stream.can(StreamEvent.CLOSE):
            return
        self._waiting.discard(stream_id)
        action = stream.step(StreamEvent.CLOSE)
        if stream.state in OVER:
            self._forget(stream)
        elif action is not None:
            self._arm(stream, now_s + self.config.close_timeout_s)
        self._act(stream, action)

    def reset(self, stream_id: int) -> None:
        """Ends both directions of this stream at once. Idempotent."""
        stream = self._streams.get(stream_id)
        if stream is not None and self.ended is None:
            action = stream.step(StreamEvent.RESET)
            self._forget(stream)
            self._act(stream, action)

    def ping(self, now_s: float) -> int:
        """Asks for a `PingAnswered` with this id. Raises LocalProtocolError when 64 are under way."""
        if self.ended is not None or len(self._pings) >= PINGS_MAX:
            raise LocalProtocolError(f"no yamux ping can be sent: {self.ended or f'{PINGS_MAX} are under way'}")
        return self._send_ping(now_s, keepalive=False)

    def go_away(self) -> None:
        """Takes no more streams of the peer's. Those that are open go on. Idempotent."""
        if not self._local_go_away and self.ended is None:
            self._local_go_away = True
            self._queue(header(_GO_AWAY, 0, 0, GoAwayCode.NORMAL))

    @property
    def peer_went_away(self) -> bool:
        """Whether the peer takes no more streams."""
        return self._remote_go_away

    def is_waiting(self, stream_id: int) -> bool:
        """Whether the peer's stream waits to be accepted."""
        return stream_id in self._waiting

    @property
    def stream_count(self) -> int:
        """Streams that are not over."""
        return len(self._streams)

    # -- bytes for the peer

    def outgoing(self, pieces_max: int = 64) -> list[bytes | memoryview]:
        """The next pieces to send, in order; they stay until `sent`."""
        pieces = self._outgoing
        return list(pieces) if len(pieces) <= pieces_max else [pieces[at] for at in range(pieces_max)]

    def sent(self, count: int) -> None:
        """The connection took the next ``count`` bytes."""
        self._outgoing_bytes -= count
        pieces = self._outgoing
        while count:
            size = len(pieces[0])
            if size > count:
                pieces[0] = memoryview(pieces[0])[count:]
                break
            pieces.popleft()
            count -= size
        while self._answers and self._answers[0] <= self._queued_bytes - self._outgoing_bytes:
            self._answers.popleft()

    @property
    def outgoing_bytes(self) -> int:
        """What waits to be sent."""
        return self._outgoing_bytes

    # -- time

    def next_timeout_s(self, now_s: float) -> float | None:
        """Seconds from ``now_s`` until `poll` has something to do; None when nothing comes by itself."""
        if self.ended is not None:
            return None
        while self._timers and not self._is_armed(*self._timers[0]):
            heapq.heappop(self._timers)
        times = [self._timers[0][0]] if self._timers else []
        times += [sent_s + self.config.answer_timeout_s for sent_s, _ in self._pings.values()]
        if self._keepalive_s is not None:
            times.append(self._keepalive_s)
        return max(0.0, min(times) - now_s) if times else None

    def poll(self, now_s: float) -> list[Event]:
        """Does what is due at ``now_s``: keepalive, and the end of waits that took too long."""
        events = self._events = []
        while self._timers and self._timers[0][0] <= now_s and self.ended is None:
            self._expire(*heapq.heappop(self._timers), now_s)
        for ping_id, (sent_s, keepalive) in list(self._pings.items()):
            if now_s - sent_s >= self.config.answer_timeout_s and self.ended is None:
                del self._pings[ping_id]
                if keepalive:
                    self._end(f"keepalive timeout: the yamux peer has not answered a ping for {self.config.answer_timeout_s:g} s")
                else:
                    events.append(PingLost(ping_id))
        if self._keepalive_s is not None and now_s >= self._keepalive_s and self.ended is None:
            self._keepalive_s = None  # until the answer
            self._send_ping(now_s, keepalive=True)
        return events

    def _expire(self, when_s: float, stream_id: int, now_s: float) -> None:
        if not self._is_armed(when_s, stream_id):
            return
        stream = self._streams[stream_id]
        if stream_id in self._unanswered and stream.state is not StreamState.LOCAL_CLOSE:
            self._end(f"the yamux peer has not accepted a stream for {self.config.open_timeout_s:g} s")
            return
        action = stream.step(StreamEvent.CLOSE_TIMED_OUT)
        self._forget(stream)
        self._act(stream, action)
        self._events.append(StreamClosed(stream_id, timed_out=True))

    def _arm(self, stream: Stream, when_s: float) -> None:
        stream.expires_s = when_s
        if len(self._timers) > 2 * len(self._streams) + TIMERS_SPARE:
            self._timers = [timer for timer in self._timers if self._is_armed(*timer)]
            heapq.heapify(self._timers)
        heapq.heappush(self._timers, (when_s, stream.id))

    def _is_armed(self, when_s: float, stream_id: int) -> bool:
        stream = self._streams.get(stream_id)
        return stream is not None and stream.expires_s == when_s

    # -- the inside

    def _act(self, stream: Stream, action: StreamAction | None) -> None:
        """Sends the flags of a step, with what may be given to the peer at this occasion."""
        if action in FLAGS:
            flags = FLAGS[action]
            more = stream.window_due_bytes(self.config.window_bytes, anyway=True) if flags & (_SYN | _ACK) else 0
            self._queue(header(_WINDOW_UPDATE, flags, stream.id, more))

    def _send_ping(self, now_s: float, *, keepalive: bool) -> int:
        ping_id = self._next_ping
        self._next_ping = (ping_id + 1) & LENGTH_MAX
        self._pings[ping_id] = (now_s, keepalive)
        self._queue(header(_PING, _SYN, 0, ping_id))
        return ping_id

    def _queue(self, piece: bytes | memoryview) -> None:
        self._outgoing.append(piece)
        self._outgoing_bytes += len(piece)
        self._queued_bytes += len(piece)

    def _answer(self, frame: bytes) -> None:
        """Queues what the peer caused. One that asks on and on and reads nothing must not fill the memory."""
        if len(self._answers) >= ANSWERS_MAX:
            self._violated("one frame after another that wants an answer, and reads no answer")
        else:
            self._queue(frame)
            self._answers.append(self._queued_bytes)

    def _forget(self, stream: Stream) -> None:
        self._streams.pop(stream.id, None)
        self._waiting.discard(stream.id)
        self._unanswered.discard(stream.id)

    def _violated(self, what: str) -> None:
        self._queue(header(_GO_AWAY, 0, 0, GoAwayCode.PROTOCOL_ERROR))
        self._end(f"the yamux peer sent {what}, which the protocol forbids", violation=True)

    def _end(self, reason: str, *, violation: bool = False) -> None:
        if self.ended is None:
            self.ended = reason
            self._payload_bytes, self._head, self._reader = 0, b"", None
            self._events.append(SessionEnded(reason, violation))
