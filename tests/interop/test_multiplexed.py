"""Multiplexed connections: one socket and no other, and a plugin that answers its host's yamux while a handler holds the GIL."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.interop.go_tool import ROOT, built
from tests.interop.matrix import NONCE, PEER, RUN_TIMEOUT_S, plugin_environment, stubs_on_the_path
from tests.interop.peer_proto import SERVICE, digest

import fastplug
from fastplug.net.relay import MuxSession
from fastplug.protocols.grpc.client import GrpcClient

# go-plugin's host pings its plugin after 30 s and gives the session up when there is no answer for 10 s.
LONGER_THAN_A_PING_S = 45
STUCK = [sys.executable, "-m", "tests.plugins.stuck_peer_plugin"]
# Established, in /proc/net/unix.
CONNECTED = "03"


def sockets_below(directory: str) -> list[tuple[str, str]]:
    """(state, name) of the Unix sockets that plugins made in there."""
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    found = [(row[5], Path(row[7]).name) for row in rows if len(row) == 8 and row[7].startswith(directory + "/plugin")]
    return sorted(found)


@pytest.mark.go
@pytest.mark.parametrize("auto_mtls", [False, True])
def test_one_socket_carries_a_go_plugin_and_all_that_is_brokered(auto_mtls: bool) -> None:
    with stubs_on_the_path():
        import peer_pb2
        import peer_pb2_grpc
        from tests.plugins.peer_plugin import Peer

        command = [str(built("peer")), "plugin"]
        with fastplug.start(command, handshake=PEER, auto_mtls=auto_mtls, grpc_broker_multiplex=True) as client:
            assert client.pid is not None
            peer, broker = client.service(SERVICE), client.broker
            number = broker.next_id()
            with (
                broker.accept_and_serve(number, lambda server: peer_pb2_grpc.add_PeerServicer_to_server(Peer(99, broker), server)),
                broker.dial(peer.Offer(nonce=NONCE).id) as channel,
            ):
                back = peer_pb2_grpc.PeerStub(channel).Unary(peer_pb2.Ask(nonce=NONCE))
                assert back.digest == digest("Unary", client.pid, NONCE)
                assert peer.DialBack(id=number, nonce=NONCE).version == 99
                sockets = sockets_below(client._socket_dir)
            assert [state for state, _ in sockets].count(CONNECTED) == 1
            assert len({name for _, name in sockets}) == 1


def session_of(client: fastplug.Client) -> MuxSession:
    protocol = client._protocol
    assert isinstance(protocol, GrpcClient)
    assert protocol._connection._session is not None
    return protocol._connection._session


@pytest.mark.parametrize("seconds", [2, pytest.param(15, marks=pytest.mark.long)])
def test_a_handler_that_holds_the_gil_does_not_cost_the_session(seconds: int) -> None:
    """Its host's pings are answered meanwhile, and so is the next call afterwards."""
    options: dict[str, Any] = {"handshake": PEER, "auto_mtls": True, "grpc_broker_multiplex": True}
    environment = plugin_environment() | {"STUCK_S": str(seconds)}
    with fastplug.start(STUCK, env=environment, cwd=ROOT, **options) as client, ThreadPoolExecutor(1) as thread:
        peer = client.service(SERVICE)
        assert client.pid is not None
        stuck = thread.submit(peer.Unary, nonce=NONCE)
        pings = 0
        while not stuck.done():
            session_of(client).ping_s(1.0)  # raises when it takes longer
            pings += 1
        assert pings > 10
        assert stuck.result(RUN_TIMEOUT_S).digest == digest("Unary", client.pid, NONCE)
        assert peer.Unary(nonce="next").digest == digest("Unary", client.pid, "next")


@pytest.mark.go
@pytest.mark.long
def test_a_go_host_keeps_a_plugin_that_holds_the_gil() -> None:
    flags = ["-automtls", "-mux", "-nonce", NONCE, "-do", "unary,ping,dial_back,offer"]
    ran = subprocess.run(
        [str(built("peer")), "host", *flags, "--", *STUCK],
        cwd=ROOT,
        env=plugin_environment() | {"STUCK_S": str(LONGER_THAN_A_PING_S)},
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
    )
    steps = {line["step"]: line for line in map(json.loads, ran.stdout.splitlines())}
    assert not [line for line in steps.values() if "error" in line], ran.stdout + ran.stderr
    pid = steps["started"]["found"]["pid"]
    assert steps["unary"]["found"]["digest"] == digest("Unary", pid, NONCE)
    assert steps["offer"]["found"]["digest"] == digest("Unary", pid, NONCE)
    assert steps["stopped"]["found"]["state"] == "exit status 0"
