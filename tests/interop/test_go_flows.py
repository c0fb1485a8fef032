"""Streams and callbacks of a fastplug interface with go-plugin on the other side, which knows the .proto alone."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.interop.go_tool import ROOT, built
from tests.plugins.flows_api import Flows

import fastplug
from fastplug.config import DEFAULT_HANDSHAKE

pytestmark = pytest.mark.go

# The host starts Python and numpy; everything else is milliseconds.
RUN_TIMEOUT_S = 120
SOON_S = 60.0


def command(directory: Path, *arguments: str) -> list[str]:
    proto = directory / "flows.proto"
    proto.write_text(fastplug.proto_of(Flows))
    cookie = ["-key", DEFAULT_HANDSHAKE.magic_cookie_key, "-value", DEFAULT_HANDSHAKE.magic_cookie_value]
    return [str(built("flows")), "-proto", str(proto), *cookie, *arguments]


def test_a_go_host_reads_writes_and_is_called_back(tmp_path: Path) -> None:
    """Under AutoMTLS."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    ran = subprocess.run(
        command(tmp_path, "host", sys.executable, "-m", "tests.plugins.flows_plugin"),
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    steps = {step["step"]: step["found"] for step in map(json.loads, ran.stdout.splitlines())}
    assert steps.pop("broken").endswith("desc = KeyError: 3")
    assert steps == {"counted": [0, 1, 2, 3, 4], "left": [0, 1, 2], "totalled": [42], "doubled": [2, 4], "called back": [18]}


@pytest.fixture(params=[{}, {"auto_mtls": True}, {"auto_mtls": True, "grpc_broker_multiplex": True}], ids=["plain", "mtls", "multiplexed"])
def flows(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Flows]:
    with fastplug.start(command(tmp_path, "plugin"), transport="grpc", **request.param) as client:
        yield client.dispense(Flows)


def test_a_go_plugin_streams_and_calls_back(flows: Flows) -> None:
    assert list(flows.count(1000)) == list(range(1000))
    stream = flows.count(10**9)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    del stream
    gc.collect()
    assert flows.total(range(100)) == sum(range(100))
    assert list(flows.doubled(range(100))) == [2 * n for n in range(100)]
    here = threading.current_thread()
    threads: set[threading.Thread] = set()

    def tell(n: int) -> int:
        threads.add(threading.current_thread())
        return 3 * n + sum(flows.count(n))

    assert flows.each(5, tell) == 3 * 10 + sum(sum(range(n)) for n in range(5))
    assert threads == {here}
    assert list(fastplug.map(flows.total, [range(n) for n in range(5)])) == [0, 0, 1, 3, 6]

    def failing(n: int) -> int:
        raise LookupError("here")

    with pytest.raises(fastplug.RpcError, match="LookupError: here"):
        flows.each(1, failing)

    def broken() -> Iterator[int]:
        yield 1
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        flows.total(broken())


def test_a_go_plugin_keeps_a_callback_and_lets_it_go(flows: Flows) -> None:
    told: list[int] = []
    event, gone = threading.Event(), threading.Event()

    def tell(n: int) -> int:
        told.append(n)
        event.set()
        return n

    weakref.finalize(tell, gone.set)
    flows.keep(tell)
    del tell
    assert event.wait(SOON_S)
    assert told == [42]
    assert gone.wait(SOON_S), "the callback is held though the plugin closed its connection"
