"""AutoMTLS when processes end badly: no plugin, no relay and no socket is left, and whoever waits is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from typing import Any

import grpc
import pytest
from tests.adversity.hosts import environment
from tests.adversity.processes import WATCHDOG_S, gone, open_pidfds
from tests.adversity.running import Running
from tests.conformance.test_grpc_services import COMMAND, Entry, auditing, options
from tests.plugins.ledger_stubs import ledger_pb2, ledger_pb2_grpc

import fastplug
from fastplug.net.relay import relay

# A host with a plugin, a brokered connection each way, and nothing that ends them. It prints its pid and theirs.
HOST = """
import json, os, signal, sys
import fastplug
from tests.conformance.test_grpc_services import COMMAND, Entry, auditing, options
from tests.plugins.ledger_stubs import ledger_pb2, ledger_pb2_grpc
from fastplug.net.relay import relay

client = fastplug.start(COMMAND, **options("auto", "auto", auto_mtls=True))
stub = client.dispense("ledger")
channel = client.broker.dial(stub.Offer(ledger_pb2.Nothing()).service_id)
assert ledger_pb2_grpc.AuditorStub(channel).Audit(Entry(amount=1)).pid == client.pid
served = client.broker.accept_and_serve(client.broker.next_id(), auditing)
children = lambda pid: [int(c) for t in os.listdir(f"/proc/{pid}/task") for c in open(f"/proc/{pid}/task/{t}/children").read().split()]
print(json.dumps({"plugin": client.pid, "relays": [relay().pid, *children(client.pid)], "directory": client._socket_dir}), flush=True)
signal.pause()
"""


def test_a_killed_host_leaves_nothing() -> None:
    process = subprocess.Popen([sys.executable, "-c", HOST], env=environment(), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told: dict[str, Any] = json.loads(process.stdout.readline())
    assert len(told["relays"]) == 2  # the host's and the plugin's
    with open_pidfds([told["plugin"], *told["relays"]]) as pidfds:
        process.kill()
        assert process.wait(WATCHDOG_S) == -signal.SIGKILL
        assert all(gone(pidfd) for pidfd in pidfds)
    process.stdout.close()
    # nothing_left_behind sees the rest: the directory of the plugin's sockets, and the engine's


def test_a_killed_plugin_takes_its_relay_along_and_is_told_as_dead() -> None:
    release = threading.Event()
    with fastplug.start(COMMAND, **options("auto", "auto", auto_mtls=True)) as client:
        stub = client.dispense("ledger")
        held = Running(lambda: list(stub.Echo(iter(lambda: release.wait(WATCHDOG_S), True))))
        assert client.pid is not None
        os.kill(client.pid, signal.SIGKILL)
        assert isinstance(held.error(), grpc.RpcError)
        with pytest.raises(fastplug.PluginDied, match="SIGKILL"):
            client.ping()
        release.set()


def test_a_killed_relay_ends_its_connections_and_the_next_plugin_gets_a_new_one() -> None:
    # Without its connection it cannot be asked to stop: nobody waits for that, or this would take ten minutes.
    made = options("auto", "auto", auto_mtls=True, stop_timeout_s=600)
    with fastplug.start(COMMAND, **made) as client:
        stub = client.dispense("ledger")
        stub.Put(Entry(amount=1))
        number = relay().pid
        assert number is not None
        os.kill(number, signal.SIGKILL)
        assert "relay process" in client.channel.closed.result(WATCHDOG_S)
        with pytest.raises(grpc.RpcError):
            stub.Put(Entry(amount=1), timeout=WATCHDOG_S)
        with fastplug.start(COMMAND, **made) as second:
            assert second.dispense("ledger").Put(Entry(amount=2)).amount == 2
            assert relay().pid != number


@pytest.mark.long
def test_a_hundred_brokered_connections_leave_nothing() -> None:
    with fastplug.start(COMMAND, **options("auto", "auto", auto_mtls=True)) as client:
        stub = client.dispense("ledger")
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(100):
            number = client.broker.next_id()
            with client.broker.accept_and_serve(number, auditing):
                assert stub.Audited(ledger_pb2.Via(service_id=number, entry=Entry(amount=3))).amount == 6
            with client.broker.dial(stub.Offer(ledger_pb2.Nothing()).service_id) as channel:
                assert ledger_pb2_grpc.AuditorStub(channel).Audit(Entry(amount=2)).amount == 4
        assert len(os.listdir("/proc/self/fd")) < before + 20
