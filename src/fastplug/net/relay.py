"""The owner's end of the relay process (`relay_main`): TLS and yamux that go on while Python code here holds the GIL.

`relay` gives the one of this process. It starts with the first connection, or the first `Relay.hold`, and ends with the last.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fastplug.errors import Closed, ConfigError, DeadlineExceeded, StartError, TlsRefused
from fastplug.net.relay_loop import MESSAGE_BYTES_MAX
from fastplug.process.child import Child
from fastplug.shm.watcher import watcher

if TYPE_CHECKING:
    from fastplug.config import Tls

__all__ = ["ENDED", "Hold", "Joint", "MuxSession", "Relay", "RelayedFuture", "relay"]

_log = logging.getLogger("fastplug.relay")

# The relay never blocks; when the socket to it stays full this long, it hangs, or is stopped.
SEND_TIMEOUT_S = 5.0
# When its owner hangs up, it ends within a millisecond.
EXIT_TIMEOUT_S = 2.0
# The reason of an end travels beside the end itself, and may come a moment later.
REASON_TIMEOUT_S = 1.0

_MAIN = Path(__file__).with_name("relay_main.py")
ENDED = "the relay process, which does TLS and yamux for this process, ended"


class Joint:
    """One relayed connection. Thread-safe.

    Attributes:
        socket: this process's end: plain bytes. Whoever takes it closes it, which ends the connection. None when ``inner`` was given.
        ready: done when both sides have accepted each other; fails with TlsRefused when one did not, with Closed when it ended before.
            A connecting side is accepted only when the first bytes of the peer have come (TLS 1.3 tells it no earlier).
        closed: the reason of the end, told before or a moment after ``socket`` ends.
    """

    def __init__(self, owner: Relay, number: int, own: socket.socket | None) -> None:
        self.socket = own
        self.ready: Future[None] = Future()
        self.closed: Future[str] = Future()
        self._owner, self._number = owner, number

    def close(self) -> None:
        """Ends the connection at once. Idempotent."""
        if not self.closed.done():
            self._owner.command({"do": "close", "id": self._number})
        if self.socket is not None:
            self.socket.close()

    def reason(self) -> str:
        """Why it ended; for whoever found the socket ended. Waits at most a second."""
        try:
            return self.closed.result(REASON_TIMEOUT_S)
        except FutureTimeoutError:
            return "the connection ended"

    def said(self, what: dict[str, Any]) -> None:
        """From the relay."""
        with contextlib.suppress(InvalidStateError):
            if what["say"] == "ready":
                self.ready.set_result(None)
            elif what["say"] == "closed":
                reason = what["reason"]
                if not self.ready.done():
                    self.ready.set_exception(TlsRefused(reason) if what["refused"] else Closed(reason))
                self.closed.set_result(reason)


class MuxSession:
    """One yamux session: many connections over one socket. Thread-safe.

    Attributes:
        closed: the reason of its end.
    """

    def __init__(self, owner: Relay, number: int) -> None:
        self.closed: Future[str] = Future()
        self._owner, self._number = owner, number
        self._accepted: queue.SimpleQueue[Joint | None] = queue.SimpleQueue()

    def open(self) -> Joint:
        """A new stream, usable at once. Raises Closed when the session has ended."""
        if self.closed.done():
            raise Closed(f"the multiplexed connection has ended: {self.closed.result()}")
        mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        return self._owner.joint({"do": "open", "mux": self._number}, [its], mine)

    def accept(self) -> Joint | None:
        """Waits for a stream that the peer opens; None when the session has ended. The streams' order is that of their opening."""
        joint = self._accepted.get()
        if joint is None:
            self._accepted.put(None)  # for whoever else waits
        return joint

    def ping_s(self, timeout_s: float) -> float:
        """The round trip to the peer's yamux, in seconds. Raises DeadlineExceeded, Closed."""
        answer: Future[float | None] = Future()
        self._owner.ping(self._number, answer)
        try:
            round_trip_s = answer.result(timeout_s)
        except FutureTimeoutError as error:
            raise DeadlineExceeded(f"the yamux peer has not answered a ping for {timeout_s:g} s") from error
        if round_trip_s is None:
            raise Closed(f"the yamux peer answered no ping; {self.closed.result() if self.closed.done() else 'it hangs'}")
        return round_trip_s

    def close(self) -> None:
        """Ends the session with all its streams. Idempotent."""
        if not self.closed.done():
            self._owner.command({"do": "close", "id": self._number})

    def taken(self, joint: Joint) -> None:
        """From the relay: the peer opened a stream."""
        self._accepted.put(joint)

    def said(self, what: dict[str, Any]) -> None:
        """From the relay."""
        if what["say"] == "closed":
            with contextlib.suppress(InvalidStateError):
                self.closed.set_result(what["reason"])
            self._accepted.put(None)


class RelayedFuture(Future[str]):
    """The reason of the end of a relayed connection, for somebody who sees the connection end: it is done by then."""

    def done(self) -> bool:
        if not super().done():
            relay().catch_up()
        return super().done()


class Hold:
    """Keeps the relay process up between connections. ``release`` is idempotent."""

    def __init__(self, owner: Relay) -> None:
        self._owner: Relay | None = owner

    def release(self) -> None:
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.unhold()


class Relay:
    """The relay process of this process, while something needs it. Thread-safe; a forked copy starts with none of its own."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._hearing = threading.Lock()  # around what the relay says, which has an order
        self._hearer = 0  # the thread that has it
        self._pid = os.getpid()
        self._process: Child | None = None
        self._control: socket.socket | None = None
        self._live: dict[int, Joint | MuxSession] = {}
        self._pings: dict[int, Future[float | None]] = {}
        self._holds = 0
        self._next_id = 1

    @property
    def pid(self) -> int | None:
        """The pid of the relay process; None while there is none."""
        return None if self._process is None else self._process.pid

    def hold(self) -> Hold:
        """Starts the process now, beside whatever else has to start, with TLS loaded. Raises StartError."""
        with self._lock:
            self._start()
            self._holds += 1
        self.command({"do": "prepare"})
        return Hold(self)

    def unhold(self) -> None:
        """See Hold.release."""
        with self._lock:
            self._holds -= 1
        self._stop_if_idle()

    def tls(self, outer: socket.socket, tls: Tls, *, server: bool, inner: socket.socket | None = None) -> Joint:
        """TLS on ``outer``, a connected socket, which goes over to the relay. ``inner`` goes over as well and carries the plain bytes;
        without it ``Joint.socket`` does. Raises StartError, ConfigError."""
        from fastplug.net.tls import to_json

        mine = None
        if inner is None:
            mine, inner = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        return self.joint({"do": "tls", "server": server, "tls": to_json(tls)}, [outer, inner], mine)

    def mux(self, outer: socket.socket, *, client: bool, tls: Tls | None = None, **limits: float) -> MuxSession:
        """A yamux session on ``outer``, a connected socket, which goes over to the relay; with TLS inside each stream if given: who opens a
        stream is its TLS client. ``limits`` are those of ``yamux.SessionConfig``. Raises StartError, ConfigError."""
        from fastplug.net.tls import to_json

        inside = None if tls is None else to_json(tls)
        command = {"do": "mux", "client": client, "tls": inside, "config": limits}
        return self._registered(lambda number: MuxSession(self, number), command, [outer])

    def joint(self, command: dict[str, Any], passed: list[socket.socket], own: socket.socket | None) -> Joint:
        """A connection that the command makes. ``passed`` goes over to the relay."""
        try:
            return self._registered(lambda number: Joint(self, number, own), command, passed)
        except BaseException:
            if own is not None:
                own.close()
            raise

    def ping(self, mux: int, answer: Future[float | None]) -> None:
        """See MuxSession.ping_s."""
        with self._lock:
            number = self._number()
            self._pings[number] = answer
        if not self.command({"do": "ping", "mux": mux, "id": number}):
            answer.set_result(None)

    def command(self, command: dict[str, Any]) -> bool:
        """Sends a command about something that may have ended; whether there was a relay to send it to."""
        with self._lock:
            try:
                return self._control is not None and self._pid == os.getpid() and self._send(self._control, command, [])
            except ConfigError:
                return False

    # -- inside

    def _number(self) -> int:
        self._next_id += 2
        return self._next_id

    def _registered(self, make: Callable[[int], _Live], command: dict[str, Any], passed: list[socket.socket]) -> _Live:
        """What answers to the relay's messages under the number of ``command``, and the command sent. ``passed`` is closed here."""
        try:
            with self._lock:
                self._start()
                assert self._control is not None
                number = self._number()
                made = self._live[number] = make(number)
                try:
                    sent = self._send(self._control, command | {"id": number}, passed)
                except BaseException:
                    del self._live[number]
                    raise
                if not sent:
                    del self._live[number]
                    raise StartError(f"{ENDED} or hangs; try again")
                return made
        finally:
            for one in passed:
                one.close()

    @staticmethod
    def _send(control: socket.socket, command: dict[str, Any], passed: list[socket.socket]) -> bool:
        message = json.dumps(command).encode()
        if len(message) > MESSAGE_BYTES_MAX:
            raise ConfigError(f"the TLS certificates and keys have {len(message)} bytes; at most {MESSAGE_BYTES_MAX} can be passed on")
        while True:
            try:
                socket.send_fds(control, [message], [one.fileno() for one in passed])
            except BlockingIOError:
                poller = select.poll()
                poller.register(control, select.POLLOUT)
                if not poller.poll(SEND_TIMEOUT_S * 1000):
                    return False
            except OSError:  # it ended
                return False
            else:
                return True

    def _start(self) -> None:
        """Starts the process unless it runs. With the lock held."""
        if self._control is not None:
            return
        if not sys.executable:
            raise StartError("sys.executable is empty (an embedded Python?), so no relay can be started: set it to a Python interpreter")
        mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pidfd = os.pidfd_open(os.getpid()) if hasattr(os, "pidfd_open") else -1
        try:
            argv = [sys.executable, "-I", "-S", str(_MAIN), str(its.fileno()), str(pidfd)]
            nowhere = subprocess.DEVNULL  # it must not keep anybody's pipe open
            fds = [its.fileno(), *([pidfd] if pidfd >= 0 else [])]
            self._process = Child(subprocess.Popen(argv, stdin=nowhere, stdout=nowhere, stderr=nowhere, cwd="/", pass_fds=fds))
        except OSError as error:
            mine.close()
            raise StartError(f"the relay process could not be started with {sys.executable}: {error}") from error
        finally:
            its.close()
            if pidfd >= 0:
                os.close(pidfd)
        mine.setblocking(False)
        self._control = mine
        watcher().add(mine.fileno(), self._hear)

    def catch_up(self) -> None:
        """Takes what the relay has said already: it tells of an end before the end can be seen, but on another socket."""
        if self._control is not None and self._pid == os.getpid() and self._hearer != threading.get_ident():
            self._hear()

    def _hear(self) -> None:
        """On the watcher's thread, or of whoever catches up: takes what the relay says."""
        with self._hearing:
            self._hearer = threading.get_ident()
            try:
                lives = self._take_messages()
            finally:
                self._hearer = 0
        # Without the lock: ending the process waits for the watcher, which may be waiting for the lock.
        if lives:
            self._stop_if_idle()
        else:
            self._lost()

    def _take_messages(self) -> bool:
        """Whether the relay lives."""
        while self._control is not None:
            try:
                message, fds, _, _ = socket.recv_fds(self._control, MESSAGE_BYTES_MAX, 1)
            except BlockingIOError:
                break
            except OSError:
                message, fds = b"", []
            if not message:
                return False
            self._take(json.loads(message), [socket.socket(fileno=fd) for fd in fds])
        return True

    def _take(self, what: dict[str, Any], passed: list[socket.socket]) -> None:
        if what["say"] == "accepted":
            self._accepted(what, passed)
        elif what["say"] == "pinged":
            self._pinged(what)
        elif what["say"] == "failed":
            _log.error("the relay process failed:\n%s", what["traceback"])
        elif what["say"] == "over":
            self._forget(what["id"])
        else:
            live = self._live.get(what["id"])
            if live is not None:
                live.said(what)

    def _accepted(self, what: dict[str, Any], passed: list[socket.socket]) -> None:
        mux = self._live.get(what["mux"])
        if not isinstance(mux, MuxSession) or not passed:  # no descriptor left here: the relay sees the other end closed
            for one in passed:
                one.close()
            return
        joint = Joint(self, what["id"], passed[0])
        with self._lock:
            self._live[what["id"]] = joint
        mux.taken(joint)

    def _pinged(self, what: dict[str, Any]) -> None:
        with self._lock:
            answer = self._pings.pop(what["id"], None)
        if answer is not None:
            answer.set_result(what["s"])

    def _forget(self, number: int) -> None:
        with self._lock:
            self._live.pop(number, None)

    def _lost(self) -> None:
        """The process ended by itself: a bug, or somebody killed it."""
        with self._lock:
            live, self._live = self._live, {}
            pings, self._pings = self._pings, {}
        for one in live.values():
            one.said({"say": "closed", "reason": ENDED, "refused": False})
        for answer in pings.values():
            answer.set_result(None)
        self._stop()

    def _stop_if_idle(self) -> None:
        with self._lock:
            idle = not self._live and not self._holds
        if idle:
            self._stop()

    def _stop(self) -> None:
        with self._lock:
            if self._live or (self._control is None and self._process is None):
                return  # somebody came meanwhile, or was faster
            control, self._control = self._control, None
            process, self._process = self._process, None
        if control is not None:
            watcher().remove(control.fileno())
            with self._hearing:
                control.close()
        if process is not None:
            if not process.wait(EXIT_TIMEOUT_S):
                os.kill(process.pid, signal.SIGKILL)
                process.wait(EXIT_TIMEOUT_S)
            process.reap()
            process.release()

    def after_fork_in_child(self) -> None:
        """The connections belong to the parent: drop the copies, tell nobody."""
        control, process = self._control, self._process
        self._begin()  # another thread may have held the lock
        if control is not None:
            control.close()
        if process is not None:
            process.release()


_Live = TypeVar("_Live", Joint, MuxSession)
_relay = Relay()


def relay() -> Relay:
    """The one of this process."""
    return _relay


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_relay.after_fork_in_child)
