"""A host that breaks the protocol: the plugin says so in its log and ends in order; it never crashes."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from tests.adversity.hosts import environment
from tests.adversity.processes import WATCHDOG_S
from tests.adversity.running import COMMAND
from tests.plugins.hostile import HEADER, Peer, array_value
from tests.plugins.hostile_plugin import CONTROLS, HELLOS, REPLIES, SEGMENTS

from fastplug.config import DEFAULT_HANDSHAKE
from fastplug.handshake.environment import Offer, host_environment

PLUS_ONE = "plus_one"
# A frame of kind REPLY is what a host must not send; an unknown call id is what a host may choose.
REQUESTS = {name: dict(wrong) for name, wrong in REPLIES.items() if not name.startswith(("call", "kind: a request", "kind: an error"))}
REQUESTS |= {
    "kind: a reply": {"kind": 2},
    "kind: an error": {"kind": 3},
    "interface: there is none": {"interface": 9},
    "method: there is none": {"method": 999},
    "arguments: more than declared": {"payload": b"\x09\0" + array_value() * 9},
    "arguments: fewer than needed": {"payload": b"\0\0"},
    "arguments: 65535 announced": {"payload": b"\xff\xff"},
    "arguments: no count": {"payload": b""},
}


class HostileHost:
    """A plugin process and the other end of everything it has."""

    def __init__(self) -> None:
        self.before = set(os.listdir("/proc/self/fd"))
        mine, theirs = socket.socketpair()
        with theirs:
            offer = Offer(os.getpid(), theirs.fileno(), transports=("shm",))
            env = host_environment(environment(), {}, DEFAULT_HANDSHAKE, versions=[1], offer=offer)
            pipe = subprocess.PIPE
            self.plugin = subprocess.Popen(COMMAND, env=env, stdout=pipe, stderr=pipe, text=True, pass_fds=[theirs.fileno()])
        self.peer = Peer(mine)
        assert self.plugin.stdout is not None
        assert self.plugin.stdout.readline().endswith("|fast|\n")

    def hello(self) -> dict[str, Any]:
        self.peer.send(1, self.peer.hello(), [self.peer.lane_fd, self.peer.table_fd, self.peer.arena_fd])
        _, body, fds = self.peer.receive()
        self.peer.map_theirs(body, fds)
        for fd in fds:
            os.close(fd)
        return body

    def said(self) -> str:
        """What the plugin logged, once it has ended (by itself, or because its host has hung up)."""
        self.peer.control.shutdown(socket.SHUT_WR)
        _, stderr = self.plugin.communicate(timeout=WATCHDOG_S)
        assert self.plugin.returncode in (0, 1), (self.plugin.returncode, stderr)
        return stderr

    def close(self) -> None:
        if self.plugin.poll() is None:
            self.plugin.kill()
        self.plugin.communicate()
        self.peer.control.close()
        for memory in (self.peer.lane, self.peer.table, self.peer.arena, getattr(self.peer, "theirs", self.peer.lane)):
            memory.close()
        for fd in set(os.listdir("/proc/self/fd")) - self.before:  # what broke a rule left its own behind
            try:
                os.close(int(fd))
            except OSError:
                pass  # that of the listing itself


@pytest.fixture
def host() -> Iterator[HostileHost]:
    made = HostileHost()
    yield made
    made.close()


def places(body: dict[str, Any]) -> tuple[int, int]:
    """Interface and method of plus_one."""
    for index, interface in enumerate(body["interfaces"]):
        names = [method["name"] for method in interface["methods"]]
        if PLUS_ONE in names:
            return index, names.index(PLUS_ONE)
    raise AssertionError(body)


def test_a_correct_one_is_served(host: HostileHost) -> None:
    interface, method = places(host.hello())
    host.peer.publish(b"\x01\0" + array_value(), call=7, kind=1, interface=interface, method=method)
    header = HEADER.unpack(host.peer.next_frame()[: HEADER.size])
    assert (header[1], header[3]) == (2, 7)
    assert "protocol" not in host.said()


@pytest.mark.parametrize("how", REQUESTS)
def test_a_broken_request(host: HostileHost, how: str) -> None:
    interface, method = places(host.hello())
    wrong = dict(REQUESTS[how])
    payload = wrong.pop("payload", None)
    if payload is None:
        payload = b"\x01\0" + array_value(**wrong.pop("array", {}))
    elif how.startswith(("tag", "value")):
        payload = b"\x01\0" + payload
    host.peer.publish(payload, call=7, **{"kind": 1, "interface": interface, "method": method, **wrong})
    ended = host.plugin.wait(WATCHDOG_S)
    said = host.said()
    assert ended in (0, 1)
    assert "the host broke the protocol" in said
    assert "Fatal Python error" not in said


@pytest.mark.parametrize("how", CONTROLS)
def test_broken_control_messages(host: HostileHost, how: str) -> None:
    if how.startswith("call"):
        pytest.skip("a host may choose any call id")
    host.hello()
    CONTROLS[how](host.peer)
    assert host.plugin.wait(WATCHDOG_S) in (0, 1)
    assert "is not used any more" in host.said()


@pytest.mark.parametrize("how", [*SEGMENTS, *(name for name in HELLOS if "interface" not in name)])
def test_a_broken_connection(host: HostileHost, how: str) -> None:
    if how in SEGMENTS:
        SEGMENTS[how](host.peer)
        host.peer.send(1, host.peer.hello(), [host.peer.lane_fd, host.peer.table_fd, host.peer.arena_fd])
    else:
        HELLOS[how](host.peer)
    assert host.plugin.wait(WATCHDOG_S) in (0, 1)
    said = host.said()
    assert "the host" in said
    assert "uncaught" not in said


def test_a_host_that_hangs_up_before_hello(host: HostileHost) -> None:
    assert "the host ended before it connected" in host.said()


def test_a_host_that_hangs_up_afterwards(host: HostileHost) -> None:
    host.hello()
    host.said()
    assert host.plugin.returncode == 0
