"""One relayed connection in the relay process: the owner's private socket on one side, the peer on the other, TLS between them or not.

The peer's side is a socket of its own (`SocketOuter`) or one stream of a yamux session (relay_mux). Either side may end first; what it
had sent before is still delivered.
"""

from __future__ import annotations

import collections
import contextlib
import select
import socket
from collections.abc import Callable
from typing import Protocol

from fastplug.net.relay_loop import BUFFER_BYTES, HELD_BYTES_MAX, READ, WRITE, Loop, Piece
from fastplug.net.relay_tls import Refused, TlsFilter

__all__ = ["Joint", "Outer", "SocketOuter"]

# A peer that was told the end closes its own side in milliseconds.
LINGER_S = 2.0
# A handshake is three packets; whoever takes longer hangs, or never meant to speak TLS (a probe that only connects).
HANDSHAKE_TIMEOUT_S = 10.0


class Outer(Protocol):
    """The peer's side. It calls `Joint.outer_received`, `outer_ended`, `outer_failed` and `outer_writable`."""

    def send(self, data: Piece) -> int:
        """Takes as much as it can now, maybe nothing."""
        ...

    def consumed(self, count: int) -> None:
        """So many more received bytes have been passed on."""

    def finish(self) -> None:
        """No more will be sent."""

    def close(self) -> None:
        """Ends both directions at once."""

    def release(self) -> None:
        """Both directions are over, or nobody listens any more: an orderly end, without the joint."""


class Joint:
    """Couples ``inner``, which it owns, with an `Outer`.

    Args: ``said`` is told ``ready`` at most once, ``closed`` once, with the reason and whether it was TLS, before ``inner`` ends, and
        ``over`` at last.
    """

    def __init__(self, loop: Loop, inner: socket.socket, said: Callable[..., None], tls: TlsFilter | None = None) -> None:
        inner.setblocking(False)
        self._loop, self._inner, self._said, self._tls = loop, inner, said, tls
        self._fd = inner.fileno()
        self._outer: Outer | None = None
        self._to_inner: collections.deque[Piece] = collections.deque()
        self._to_inner_bytes = 0
        self._to_outer: collections.deque[Piece] = collections.deque()
        self._to_outer_bytes = 0
        self._unconsumed = 0  # of what the outer side gave
        self._inner_ended = self._outer_ended = False  # it sends no more
        self._inner_gone = False  # and reads no more
        self._outer_gone = False
        self._finished = False  # the outer side was told that no more comes
        self._told = self._ready = self._over = False
        self._expires_s: float | None = None

    def start(self, outer: Outer) -> None:
        """``outer`` may be used from now on."""
        self._outer = outer
        if self._tls is None:
            self._tell_ready()
        else:
            self._expires_s = self._loop.now_s + HANDSHAKE_TIMEOUT_S
            self._loop.timed.add(self)
            self._decrypt(None)
        self._watch()

    # -- time: the handshake

    def next_timeout_s(self, now_s: float) -> float | None:
        return None if self._expires_s is None else max(0.0, self._expires_s - now_s)

    def poll(self, now_s: float) -> None:
        if self._expires_s is not None and now_s >= self._expires_s and self._tls is not None:
            self._refuse(self._tls.timed_out(), answers=False)

    # -- the outer side

    def outer_received(self, data: Piece) -> None:
        """Bytes of the peer."""
        self._unconsumed += len(data)
        if self._tls is None:
            self._give(data)
        else:
            self._decrypt(data)
        self._write_inner()

    def outer_ended(self, reason: str = "the peer closed the connection") -> None:
        """The peer sends no more."""
        if self._tls is not None and not self._tls.ended and not self._over:
            self._decrypt(b"")
        if self._over:
            return
        self._tell_closed(reason)
        self._outer_ended = True
        self._write_inner()

    def outer_failed(self, reason: str) -> None:
        """The peer's side is gone. What it had sent is still delivered."""
        if not self._over:
            self._tell_closed(reason)
            self._outer_gone = self._outer_ended = self._finished = True
            self._to_outer.clear()
            self._to_outer_bytes = 0
            self._write_inner()

    def outer_writable(self) -> None:
        """The outer side takes bytes again."""
        self._write_outer()
        self._watch()

    def close(self, reason: str = "the connection was closed") -> None:
        """Ends it at once."""
        if not self._over:
            self._tell_closed(reason)
            self._end(self._outer.close if self._outer is not None else None)

    @property
    def over(self) -> bool:
        """Whether nothing is left of it."""
        return self._over

    @property
    def wants_more(self) -> bool:
        """Whether the outer side should read on."""
        return self._to_inner_bytes < HELD_BYTES_MAX and not self._outer_ended

    # -- the inner side

    def _ready_inner(self, events: int) -> None:
        if events & (READ | select.POLLHUP) and not self._inner_ended:
            self._read_inner()
        elif events & (select.POLLHUP | select.POLLERR):
            self._inner_gone = True
        if events & WRITE and not self._over:
            self._write_inner()
        self._watch()

    def _read_inner(self) -> None:
        try:
            data = self._inner.recv(BUFFER_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if data and self._outer_gone:
            return
        if data:
            if self._tls is None:
                self._queue_outer(data)
            elif not self._tls.send(data):
                self._inner_ended = True
                self._tell_closed("the peer closed the connection")
        else:
            self._end_inner()
        self._write_outer()

    def _end_inner(self) -> None:
        self._inner_ended = True
        self._tell_closed("the connection was closed")
        if self._tls is not None:
            self._tls.finish()

    def _give(self, data: Piece) -> None:
        if not self._inner_gone:
            self._to_inner.append(data)
            self._to_inner_bytes += len(data)

    def _write_inner(self) -> None:
        while self._to_inner and not self._over:
            try:
                sent = self._inner.sendmsg([self._to_inner[at] for at in range(min(64, len(self._to_inner)))])
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                self._inner_gone = True  # it reads no more; what it had written before is still to be read
                self._to_inner.clear()
                self._to_inner_bytes = 0
                break
            self._to_inner_bytes -= sent
            _drop(self._to_inner, sent)
        if self._over:
            return
        if self._to_inner_bytes < HELD_BYTES_MAX // 2 and self._unconsumed and self._outer is not None:
            count, self._unconsumed = self._unconsumed, 0
            self._outer.consumed(count)
        if self._outer_ended and not self._to_inner:
            with contextlib.suppress(OSError):  # the owner was first
                self._inner.shutdown(socket.SHUT_WR)
        self._watch()

    def _watch(self) -> None:
        """Waits for what can be done next, and finds out when nothing is left to do."""
        if self._over:
            return
        if self._outer_gone and not self._to_inner:
            self._end(None)
            return
        if self._inner_ended and not self._to_outer:
            if not self._finished and self._outer is not None:
                self._finished = True
                self._outer.finish()
            if self._inner_gone or (self._outer_ended and not self._to_inner):
                self._end(self._outer.release if self._outer is not None else None)
                return
        reads = (
            not (self._inner_ended or self._outer_gone)
            and self._to_outer_bytes < HELD_BYTES_MAX
            and (self._tls is None or self._tls.established)
        )
        events = (READ if reads else 0) | (WRITE if self._to_inner else 0)
        # Hung up and held back: poll() would report it again and again.
        idle = not events and (self._inner_gone or not self._inner_ended)
        self._loop.watch(self._fd, None if idle else events, self._ready_inner)

    # -- to the outer side

    def _queue_outer(self, data: Piece) -> None:
        self._to_outer.append(data)
        self._to_outer_bytes += len(data)

    def _write_outer(self) -> None:
        if self._tls is not None:
            while data := self._tls.outgoing():
                self._queue_outer(data)
        while self._to_outer and self._outer is not None and not self._outer_gone:
            sent = self._outer.send(self._to_outer[0])
            if not sent or not self._to_outer:  # it failed meanwhile, and all was dropped
                return
            self._to_outer_bytes -= sent
            _drop(self._to_outer, sent)

    # -- TLS

    def _decrypt(self, data: Piece | None) -> None:
        """Takes the peer's bytes; b"" for their end, None to begin."""
        tls = self._tls
        assert tls is not None
        try:
            for plain in tls.received(data):
                self._give(plain)
        except Refused as refused:
            self._refuse(str(refused), silent=data == b"" and not tls.heard)
            return
        if tls.established and self._expires_s is not None:
            self._expires_s = None
            self._loop.timed.discard(self)
        if tls.trusted:
            self._tell_ready()
        self._write_outer()
        if tls.ended and not self._outer_ended:
            self._tell_closed("the peer closed the connection")
            self._outer_ended = True
        self._watch()

    def _refuse(self, sentence: str, *, silent: bool = False, answers: bool = True) -> None:
        """The alert that says why still leaves, as far as the outer side takes it now. ``silent``: a probe, which said nothing;
        ``answers``: the peer is alive, and may be waited for."""
        self._tell_closed(sentence, refused=not silent)
        self._write_outer()
        if self._outer is not None:
            self._outer.finish()
        if self._outer is None:
            self._end(None)
        else:
            self._end(self._outer.release if answers else self._outer.close)

    # -- the end

    def _tell_ready(self) -> None:
        if not self._ready and not self._told:
            self._ready = True
            self._said("ready")

    def _tell_closed(self, reason: str, *, refused: bool = False) -> None:
        if not self._told:
            self._told = True
            self._said("closed", reason=reason, refused=refused)

    def _end(self, last: Callable[[], None] | None) -> None:
        if self._over:
            return
        self._tell_closed("the connection was closed")  # unless the reason was told before
        self._over = True
        self._expires_s = None
        self._loop.timed.discard(self)
        self._loop.watch(self._fd, None, self._ready_inner)
        self._inner.close()
        self._to_inner.clear()
        self._to_outer.clear()
        if last is not None:
            last()
        self._said("over")


def _drop(pieces: collections.deque[Piece], count: int) -> None:
    """Takes ``count`` bytes off the front."""
    while count:
        size = len(pieces[0])
        if size > count:
            pieces[0] = memoryview(pieces[0])[count:]
            return
        pieces.popleft()
        count -= size


class SocketOuter:
    """A socket of its own as the peer's side, which it owns."""

    def __init__(self, loop: Loop, outer: socket.socket, joint: Joint) -> None:
        outer.setblocking(False)
        self._loop, self._socket, self.joint = loop, outer, joint
        self._fd = outer.fileno()
        self._full = self._ended = self._closed = False
        self._lingers_until_s: float | None = None
        self._watch()

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._full = False
            self.joint.outer_writable()
        if not self._closed and events & ~WRITE and not self._ended:
            self._read()
        self._watch()

    def _read(self) -> None:
        try:
            data = self._socket.recv(BUFFER_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._ended = True
            if self._lingers_until_s is not None:
                self.close()
                return
            self.joint.outer_failed(f"the peer closed the connection ({error.strerror or error})")
            self.close()
            return
        if self._lingers_until_s is not None:
            if not data:
                self.close()
        elif data:
            self.joint.outer_received(data)
        else:
            self._ended = True
            self.joint.outer_ended()

    def _watch(self) -> None:
        if self._closed:
            return
        reads = not self._ended and (self.joint.wants_more or self._lingers_until_s is not None)
        events = (READ if reads else 0) | (WRITE if self._full else 0)
        self._loop.watch(self._fd, events or None, self._ready)

    def send(self, data: Piece) -> int:
        if self._full or self._closed:
            return 0
        try:
            return self._socket.send(data)
        except (BlockingIOError, InterruptedError):
            self._full = True
            self._watch()
        except OSError as error:
            if not self._ended:
                return len(data)  # what the peer has sent before, an alert perhaps, is still to be read
            self.joint.outer_failed(f"the peer closed the connection ({error.strerror or error})")
            self.close()
        return 0

    def consumed(self, count: int) -> None:
        self._watch()

    def finish(self) -> None:
        with contextlib.suppress(OSError):  # the peer was first
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._loop.timed.discard(self)
            self._loop.watch(self._fd, None, self._ready)
            self._socket.close()

    def release(self) -> None:
        """Reads on, for nobody, until the peer has ended, too: a socket closed with bytes unread takes back what was sent last, which may
        be the alert that says why."""
        if self._ended or self._closed:
            self.close()
            return
        self.finish()
        self._lingers_until_s = self._loop.now_s + LINGER_S
        self._loop.timed.add(self)
        self._watch()

    def next_timeout_s(self, now_s: float) -> float | None:
        return None if self._lingers_until_s is None else max(0.0, self._lingers_until_s - now_s)

    def poll(self, now_s: float) -> None:
        if self._lingers_until_s is not None and now_s >= self._lingers_until_s:
            self.close()
