"""One yamux session in the relay process: a socket, a `Session`, and a joint for each of its streams."""

from __future__ import annotations

import collections
import socket
from typing import Protocol

from fastplug.net.relay_joint import Joint
from fastplug.net.relay_loop import BUFFER_BYTES, READ, WRITE, Loop, Piece
from fastplug.yamux import events as yamux
from fastplug.yamux.session import Session

__all__ = ["Mux", "MuxOwner"]

# Each takes a descriptor here and one in the owner, which usually may have 1024. hashicorp/yamux lets 256 wait to be accepted.
STREAMS_MAX = 400
# sendmsg takes at most IOV_MAX pieces, which is 1024 on Linux.
PIECES_MAX = 64


class MuxOwner(Protocol):
    """Who is told of a session."""

    def stream_accepted(self, mux: Mux, stream_id: int) -> None:
        """The peer opened a stream: couple it with `Mux.couple`."""

    def ping_answered(self, mux: Mux, ping_id: int, round_trip_s: float | None) -> None: ...
    def mux_closed(self, mux: Mux, reason: str) -> None:
        """Its joints are told after this."""


class StreamOuter:
    """A yamux stream as the peer's side of a joint."""

    def __init__(self, mux: Mux, stream_id: int) -> None:
        self._mux, self._id = mux, stream_id

    def send(self, data: Piece) -> int:
        return self._mux.send(self._id, data)

    def consumed(self, count: int) -> None:
        self._mux.consumed(self._id, count)

    def finish(self) -> None:
        self._mux.finish(self._id)

    def close(self) -> None:
        self._mux.reset(self._id)

    def release(self) -> None:
        self._mux.release(self._id)


class Mux:
    """A session on ``outer``, a connected socket that it owns."""

    def __init__(self, loop: Loop, outer: socket.socket, session: Session, owner: MuxOwner) -> None:
        outer.setblocking(False)
        self._loop, self._socket, self._session, self._owner = loop, outer, session, owner
        self._fd = outer.fileno()
        self._joints: dict[int, Joint] = {}
        self._waiting: collections.deque[Joint] = collections.deque()  # for a stream, while too many are unanswered
        self._starved: dict[int, None] = {}  # streams that have more to send than they could, the longest waiting first
        self._full = self._deaf = self._closed = False
        loop.timed.add(self)
        self._watch()

    # -- what the owner wants

    def open(self, joint: Joint) -> None:
        """Couples ``joint`` with a new stream, as soon as the peer takes one."""
        self._waiting.append(joint)
        self._open_waiting()

    def _open_waiting(self) -> None:
        while self._waiting and self._session.can_open:
            joint = self._waiting.popleft()
            if not joint.over:
                self.couple(self._session.open(self._loop.now_s), joint)
        if self._session.ended is not None or self._session.peer_went_away:
            while self._waiting:
                self._waiting.popleft().outer_failed(self._session.ended or "the peer takes no more streams")

    def couple(self, stream_id: int, joint: Joint) -> None:
        """Makes ``joint`` the stream's; a stream of the peer's is accepted by it."""
        self._joints[stream_id] = joint
        if self._session.is_waiting(stream_id):
            self._session.accept(stream_id)
        joint.start(StreamOuter(self, stream_id))
        self._flush_later()

    def refuse(self, stream_id: int) -> None:
        """Takes no more than it can."""
        self._session.reset(stream_id)
        self._flush_later()

    def ping(self) -> int:
        """Asks the peer; `MuxOwner.ping_answered` has the id."""
        self._flush_later()
        return self._session.ping(self._loop.now_s)

    def close(self, reason: str = "the connection was closed") -> None:
        """Ends the session and every stream. What was queued still leaves, as far as the socket takes it now."""
        if not self._closed:
            self._flush()
            self._end(reason)

    @property
    def has_room(self) -> bool:
        """Whether one more stream may be coupled."""
        return len(self._joints) < STREAMS_MAX

    @property
    def has_to_send(self) -> bool:
        """Whether something is queued that the socket may still take."""
        return self._session.outgoing_bytes > 0 and not self._deaf

    # -- what the streams want

    def send(self, stream_id: int, data: Piece) -> int:
        if self._session.ended is not None:
            return 0
        sent = self._session.send(stream_id, data)
        if sent < len(data):
            self._starved[stream_id] = None
        if sent:
            self._flush_later()
        return sent

    def consumed(self, stream_id: int, count: int) -> None:
        self._session.consumed(stream_id, count)
        self._flush_later()

    def finish(self, stream_id: int) -> None:
        self._session.close(stream_id, self._loop.now_s)
        self._flush_later()

    def release(self, stream_id: int) -> None:
        """Nobody listens to this stream any more. It ends in order: the session waits for the peer's end."""
        self._drop(stream_id)
        self.finish(stream_id)

    def reset(self, stream_id: int) -> None:
        self._drop(stream_id)
        self._session.reset(stream_id)
        self._flush_later()

    def _drop(self, stream_id: int) -> None:
        self._joints.pop(stream_id, None)
        self._starved.pop(stream_id, None)

    # -- the socket

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._full = False
            self._flush_later()
        if events & ~WRITE and not self._closed:
            self._read()

    def _read(self) -> None:
        try:
            data = self._socket.recv(BUFFER_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._take(self._session.receive_end(f"the peer closed the connection ({error.strerror or error})"))
            return
        self._take(self._session.receive(data, self._loop.now_s) if data else self._session.receive_end())
        self._flush_later()

    def _take(self, events: list[yamux.Event]) -> None:
        for event in events:
            match event:
                case yamux.DataReceived(stream_id, data):
                    if stream_id in self._joints:
                        self._joints[stream_id].outer_received(data)
                    else:
                        self._session.consumed(stream_id, len(data))
                case yamux.EndReceived(stream_id) if stream_id in self._joints:
                    self._joints[stream_id].outer_ended()
                case yamux.ResetReceived(stream_id) if stream_id in self._joints:
                    joint = self._joints[stream_id]
                    self._drop(stream_id)
                    joint.outer_failed("the peer reset the stream")
                case yamux.StreamClosed(stream_id, timed_out) if timed_out and stream_id in self._joints:
                    joint = self._joints[stream_id]
                    self._drop(stream_id)
                    joint.outer_failed("the peer did not end the stream after this side had")
                case yamux.SendWindowOpened(stream_id) if stream_id in self._starved:
                    self._flush_later()
                case yamux.StreamOpened(stream_id):
                    self._owner.stream_accepted(self, stream_id)
                case yamux.PingAnswered(ping_id, round_trip_s):
                    self._owner.ping_answered(self, ping_id, round_trip_s)
                case yamux.PingLost(ping_id):
                    self._owner.ping_answered(self, ping_id, None)
                case yamux.SessionEnded(reason):
                    self._flush()
                    self._end(reason)
        self._open_waiting()

    def _flush_later(self) -> None:
        self._loop.later(self._flush)

    def _flush(self) -> None:
        """Sends what is queued, and lets those that had to wait queue more, as long as the socket takes it."""
        while not (self._closed or self._full or self._deaf):
            while pieces := self._session.outgoing(PIECES_MAX):
                try:
                    self._session.sent(self._socket.sendmsg(pieces))
                except (BlockingIOError, InterruptedError):
                    self._full = True
                    break
                except OSError:
                    self._deaf = True  # what it said before it went, and why it went, is still to be read
                    break
            if self._full or self._deaf or not self._feed_starved():
                break
        self._watch()

    def _feed_starved(self) -> bool:
        """Gives each stream that waits its turn; whether any of them queued something."""
        before = self._session.outgoing_bytes
        for stream_id in list(self._starved):
            if self._session.sendable_bytes(stream_id):
                del self._starved[stream_id]
                if stream_id in self._joints:
                    self._joints[stream_id].outer_writable()
        return self._session.outgoing_bytes > before

    def _watch(self) -> None:
        if not self._closed:
            self._loop.watch(self._fd, READ | WRITE if self._full else READ, self._ready)

    def _end(self, reason: str) -> None:
        if self._closed:
            return
        self._closed = True
        self._loop.timed.discard(self)
        self._loop.watch(self._fd, None, self._ready)
        self._socket.close()
        self._session.receive_end(reason)
        self._owner.mux_closed(self, reason)
        joints = [*self._joints.values(), *self._waiting]
        self._joints.clear()
        self._waiting.clear()
        for joint in joints:
            joint.outer_failed(reason)

    # -- time

    def next_timeout_s(self, now_s: float) -> float | None:
        return self._session.next_timeout_s(now_s)

    def poll(self, now_s: float) -> None:
        events = self._session.poll(now_s)
        if events:
            self._take(events)
        if self._session.outgoing_bytes and not self._full:
            self._flush_later()
