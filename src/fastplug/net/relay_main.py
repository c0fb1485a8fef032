"""The relay: a small process that does TLS and yamux for its owner, a host or a plugin.

Run by path: ``python -I -S relay_main.py CONTROL OWNER``. CONTROL is a SOCK_SEQPACKET socket, the other end of which the owner holds;
OWNER a pidfd of the owner, or -1. It is a process of its own because its peers must be answered while Python code of the owner holds
the GIL: hashicorp/yamux gives up after ten seconds.

Commands of the owner (JSON, descriptors beside it):

    {"do": "tls", "id": n, "server": bool, "tls": {...}}      the peer's socket, the owner's private one: TLS between the two
    {"do": "mux", "id": n, "client": bool, "tls": {...}|null} the peer's socket: a yamux session on it, with TLS inside each stream
    {"do": "open", "id": n, "mux": m}                         a private socket: coupled with a new stream of the session
    {"do": "ping", "mux": m, "id": n}                         asks the session's peer
    {"do": "close", "id": n}                                  ends a session or one connection at once
    {"do": "prepare"}                                         TLS will be needed

What it says:

    {"say": "accepted", "mux": m, "id": n}                    with a private socket: the peer opened a stream. The ids it gives are even
    {"say": "ready", "id": n}                                 both sides accepted each other
    {"say": "closed", "id": n, "reason": text, "refused": bool}
    {"say": "over", "id": n}                                  nothing of this connection is left here
    {"say": "pinged", "id": n, "s": seconds|null}
    {"say": "failed", "traceback": text}                      a bug in it; the connection that it happened to has ended
"""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

if __name__ == "__main__":  # by path: -I leaves the script's folder out, and the package is found beside it
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))  # noqa: PTH100, PTH120

from fastplug.net.relay_joint import Joint, SocketOuter
from fastplug.net.relay_loop import READ, Control, Loop
from fastplug.net.relay_mux import Mux
from fastplug.net.relay_tls import TlsFilter
from fastplug.yamux.events import SessionConfig
from fastplug.yamux.session import Session

__all__ = ["Relaying", "main"]

# Of the innermost frames of a crash: they fit into a message.
TRACEBACK_FRAMES_MAX = 8
# What an owner that is gone had sent leaves at once, unless its peer does not read; nobody waits for this process to end.
LINGER_S = 1.0


class Relaying:
    """All that goes through one relay."""

    def __init__(self, control: socket.socket, owner_pidfd: int = -1) -> None:
        self.loop = Loop(self._broken)
        self._control = Control(self.loop, control, self._command, self._leave)
        self._joints: dict[int, Joint] = {}
        self._muxes: dict[int, Mux] = {}
        self._mux_tls: dict[Mux, tuple[int, Any]] = {}  # id, and the description of the TLS inside
        self._pings: dict[tuple[Mux, int], int] = {}
        self._next_id = 2
        self._leaves_s: float | None = None
        self._owner_pidfd = owner_pidfd
        if owner_pidfd >= 0:
            self.loop.watch(owner_pidfd, READ, self._owner_gone)

    def run(self) -> None:
        """Until the owner is gone, or hangs up."""
        try:
            self.loop.run()
        finally:
            for mux in list(self._muxes.values()):
                mux.close("the owner of the connection ended")
            for joint in list(self._joints.values()):
                joint.close("the owner of the connection ended")
            for lingering in [one for one in self.loop.timed if isinstance(one, SocketOuter)]:
                lingering.close()
            self._control.close()

    def _broken(self, part: object, error: Exception) -> None:
        """Tells the owner, which has a log, and ends the connection that it happened to; without one, all."""
        import traceback

        text = "".join(traceback.format_exception(error, limit=-TRACEBACK_FRAMES_MAX))
        self._control.say({"say": "failed", "traceback": text})
        found = part.joint if isinstance(part, SocketOuter) else part
        if isinstance(found, Joint | Mux):
            found.close(f"the relay process failed: {error}")
        else:
            self.loop.over = True

    def _owner_gone(self, events: int) -> None:
        self._leave()

    def _leave(self) -> None:
        """The owner is gone, or hung up. What it had sent before is still delivered, as the kernel would have done, for a while."""
        if self._leaves_s is None:
            self._leaves_s = self.loop.now_s + LINGER_S
            self._control.close()
            self.loop.watch(self._owner_pidfd, None, self._owner_gone)
            self.loop.timed.add(self)

    def next_timeout_s(self, now_s: float) -> float | None:
        """As Timed: once it leaves."""
        return None if self._leaves_s is None else max(0.0, self._leaves_s - now_s)

    def poll(self, now_s: float) -> None:
        """As Timed."""
        waits = self._joints or any(mux.has_to_send for mux in self._muxes.values())
        self.loop.over = not waits or (self._leaves_s is not None and now_s >= self._leaves_s)

    # -- commands

    def _command(self, command: dict[str, Any], fds: list[int]) -> None:
        sockets = [socket.socket(fileno=fd) for fd in fds]
        do, number = command["do"], command.get("id", 0)
        try:
            if command.get("lost") or len(sockets) != {"tls": 2, "mux": 1, "open": 1}.get(do, 0):
                raise OSError("the relay process has no descriptor left")
            self._obey(do, number, command, sockets)
        except Exception as error:  # noqa: BLE001  one connection that fails must not end the others
            for one in sockets:
                one.close()
            self._said(number, "closed", reason=str(error), refused=False)
            self._said(number, "over")

    def _obey(self, do: str, number: int, command: dict[str, Any], sockets: list[socket.socket]) -> None:
        if do == "tls":
            outer, inner = sockets
            joint = self._joint(number, inner, command["tls"], server=command["server"])
            joint.start(SocketOuter(self.loop, outer, joint))
        elif do == "mux":
            session = Session(client=command["client"], now_s=self.loop.now_s, config=SessionConfig(**command.get("config", {})))
            mux = self._muxes[number] = Mux(self.loop, sockets[0], session, self)
            self._mux_tls[mux] = (number, command["tls"])
        elif do == "open":
            found = self._muxes.get(command["mux"])
            if found is None:
                raise ConnectionError("the session has ended")
            if not found.has_room:
                raise ConnectionError("too many streams are open on this connection")
            found.open(self._joint(number, sockets[0], self._mux_tls[found][1], server=False))
        elif do == "ping":
            found = self._muxes.get(command["mux"])
            if found is None:
                self._control.say({"say": "pinged", "id": number, "s": None})
            else:
                self._pings[found, found.ping()] = number
        elif do == "close":
            if number in self._muxes:
                self._muxes[number].close()
            elif number in self._joints:
                self._joints[number].close()
        elif do == "prepare":
            import fastplug.net.tls  # noqa: F401

    def _joint(self, number: int, inner: socket.socket, tls: dict[str, Any] | None, *, server: bool) -> Joint:
        made = None
        if tls is not None:
            from fastplug.net.tls import from_json

            made = TlsFilter(from_json(tls), server=server)

        def said(what: str, **more: Any) -> None:
            self._said(number, what, **more)

        joint = self._joints[number] = Joint(self.loop, inner, said, made)
        return joint

    def _said(self, number: int, what: str, **more: Any) -> None:
        if what == "over":
            self._joints.pop(number, None)
        self._control.say({"say": what, "id": number, **more})

    # -- what sessions tell

    def stream_accepted(self, mux: Mux, stream_id: int) -> None:
        """Hands the owner one end of a new private socket."""
        number, tls = self._mux_tls[mux]
        if not mux.has_room:
            mux.refuse(stream_id)
            return
        try:
            inner, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError:  # no descriptor left
            mux.refuse(stream_id)
            return
        made, self._next_id = self._next_id, self._next_id + 2
        # Before the joint, which may end at once: whoever is told of an end must know of the beginning.
        self._control.say({"say": "accepted", "mux": number, "id": made}, its)
        mux.couple(stream_id, self._joint(made, inner, tls, server=True))

    def ping_answered(self, mux: Mux, ping_id: int, round_trip_s: float | None) -> None:
        """Tells the owner."""
        number = self._pings.pop((mux, ping_id), None)
        if number is not None:
            self._control.say({"say": "pinged", "id": number, "s": round_trip_s})

    def mux_closed(self, mux: Mux, reason: str) -> None:
        """Tells the owner, and forgets it."""
        number, _ = self._mux_tls.pop(mux)
        del self._muxes[number]
        for key in [key for key in self._pings if key[0] is mux]:
            self._control.say({"say": "pinged", "id": self._pings.pop(key), "s": None})
        self._control.say({"say": "closed", "id": number, "reason": reason, "refused": False})
        self._control.say({"say": "over", "id": number})


def main(control_fd: int, owner_pidfd: int) -> None:
    """Relay until the owner is gone or closes its end."""
    import signal

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # what ends an owner politely must not end its connections first
    Relaying(socket.socket(fileno=control_fd), owner_pidfd).run()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
    os._exit(0)  # the owner waits: taking the interpreter apart would take 20 ms more
