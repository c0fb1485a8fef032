"""The matrix: a Go host with a Python plugin and a Python host with a Go plugin, each over every configuration, with every step.

A cell asserts a value that only the far side can have computed: a digest of its own process id and a nonce of the run. The peers of one
configuration run once and make all steps; each cell then looks at its own. ``make test`` has the newest go-plugin, ``make test-all`` the
others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
from tests.interop import peer_proto
from tests.interop.matrix import CONFIGURATIONS, LARGE_BYTES, NONCE, STEPS, Configuration, Run, go_host, python_host
from tests.interop.peer_proto import SERVICE, digest

import fastplug
from fastplug.protocols.grpc.channel import Code

pytestmark = pytest.mark.go

HOSTS = {"Go host": go_host, "Python host": python_host}


def either_host(test: Any) -> Any:
    """Every configuration, both directions."""
    marked = pytest.mark.parametrize("configuration", CONFIGURATIONS, scope="module")(test)
    return pytest.mark.parametrize("host", HOSTS, scope="module")(marked)


@functools.lru_cache(maxsize=1)
def steps_of(host: str, configuration: Configuration) -> Run:
    """All steps of one pair of peers, once."""
    return HOSTS[host](configuration, *STEPS)


@pytest.fixture(scope="module")
def run(host: str, configuration: Configuration) -> Run:
    return steps_of(host, configuration)


def got(run: Run, step: str) -> Any:
    assert step in run.found, f"{run.failed.get(step)!r}\n{run.output}"
    return run.found[step]


def answer(run: Run, name: str, nonce: str = NONCE, index: int = 0, shown: int | None = None) -> dict[str, Any]:
    """What the plugin answers, and nobody else can."""
    return {"pid": run.pid, "digest": digest(name, run.pid, nonce, index), "index": index if shown is None else shown, "version": 1}


def unary(run: Run) -> None:
    assert got(run, "unary") == answer(run, "Unary")


def server_stream(run: Run) -> None:
    assert got(run, "server_stream") == [answer(run, "ServerStream", index=index) for index in range(5)]


def client_stream(run: Run) -> None:
    assert got(run, "client_stream") == [answer(run, "ClientStream", ",".join(f"{NONCE}{i}" for i in range(3)), 3)]


def bidi_stream(run: Run) -> None:
    assert got(run, "bidi_stream") == [answer(run, "BidiStream", f"{NONCE}{index}", index) for index in range(3)]


def stdio(run: Run) -> None:
    line = digest("Print", run.pid, NONCE) + "\n"
    assert got(run, "stdio") == {"stdout": line, "stderr": line}


def large(run: Run) -> None:
    found = got(run, "large")
    assert (found["bytes"], found["turned"], found["digest"]) == (LARGE_BYTES, True, digest("Large", run.pid, NONCE))


def fail(run: Run) -> None:
    failed = run.failed["fail"]
    said = digest("Fail", run.pid, NONCE)
    if isinstance(failed, Exception):
        assert isinstance(failed, fastplug.RpcError)
        assert (failed.code, failed.message) == (Code.FAILED_PRECONDITION, said)
    else:
        assert (failed["code"], failed["message"]) == ("FailedPrecondition", said)


def broker_from_plugin_to_host(run: Run) -> None:
    """The plugin passes on what the host's own service said, whose version is 99."""
    assert got(run, "dial_back") == {"pid": run.host_pid, "digest": digest("Unary", run.host_pid, NONCE), "index": 0, "version": 99}


def broker_from_host_to_plugin(run: Run) -> None:
    assert got(run, "offer") == answer(run, "Unary")


def reflection(run: Run) -> None:
    """What the plugin says of itself, read by the other side's own library: grpc-go's messages in a Go host."""
    found = got(run, "reflection")
    assert SERVICE in found["services"]
    assert found["methods"] == [method.name for method in peer_proto.descriptors().file[-1].service[0].method]


def kill(run: Run) -> None:
    """Asked to stop, it stopped: no signal was needed. It left nothing."""
    stopped = got(run, "stopped")
    assert stopped["exited"]
    assert stopped.get("state", "exit status 0") == "exit status 0"
    assert stopped.get("returncode", 0) == 0
    assert not run.left


STREAMS = (unary, server_stream, client_stream, bidi_stream)
CELLS = (*STREAMS, stdio, large, fail, broker_from_plugin_to_host, broker_from_host_to_plugin, reflection, kill)


@either_host
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.__name__)
def test_cell(host: str, configuration: Configuration, run: Run, cell: Callable[[Run], None]) -> None:
    cell(run)


@either_host
def test_reattach(host: str, configuration: Configuration, run: Run) -> None:
    """A second client finds the running plugin. Neither a one-time certificate nor the one multiplexed connection can be had twice."""
    if not configuration.auto_mtls and not configuration.multiplex:
        assert got(run, "reattach") == answer(run, "Unary")
        return
    failed = run.failed["reattach"]
    if host == "Python host":
        assert isinstance(failed, fastplug.ConfigError)
    else:
        assert failed["code"] in ("Unavailable", "Unknown")


@either_host
def test_sockets(host: str, configuration: Configuration, run: Run) -> None:
    """A brokered connection is a socket of its own; with multiplexing one socket carries everything."""
    assert got(run, "sockets") == (1 if configuration.multiplex else 2)


@either_host
def test_crash(host: str, configuration: Configuration, run: Run) -> None:
    """The plugin ends itself in a call: with the exit code that it chose."""
    crashed = HOSTS[host](configuration, "unary", "crash")
    assert got(crashed, "unary") == answer(crashed, "Unary")
    # What go-plugin leaves, too, and nothing of the engine's own. A multiplexing plugin has no use for it once its host is there.
    assert [name for name in crashed.left if not name.startswith("plugin")] == []
    assert len(crashed.left) <= (0 if configuration.multiplex else 1)
    failed = crashed.failed["crash"]
    if isinstance(failed, Exception):
        assert isinstance(failed, fastplug.PluginDied)
        assert failed.returncode == 7
    else:
        assert failed["code"] == "Unavailable"
        assert crashed.found["stopped"]["state"] == "exit status 7"


@either_host
def test_versions(host: str, configuration: Configuration, run: Run) -> None:
    """The highest shared application version, and its implementation; without one, a refusal that names both sides."""
    shared = HOSTS[host](configuration, "unary", offers="3,2", serves="1,2")
    assert shared.version == 2
    assert got(shared, "unary") == answer(shared, "Unary") | {"version": 2}
    if host == "Go host":
        refused = HOSTS[host](configuration, "unary", offers="7", serves="1,2")
        assert "ncompatible API version with plugin. Plugin version: 1, Client versions: [7]" in refused.output
        assert not refused.found
    else:
        with pytest.raises(fastplug.IncompatibleVersion, match="1"):
            HOSTS[host](configuration, "unary", offers="7", serves="1,2")


@pytest.mark.long
@pytest.mark.parametrize("auto_mtls", [False, True], ids=["plain", "AutoMTLS"])
class TestBeforeMultiplexing:
    """go-plugin before 1.6 cannot multiplex: a refusal at once, on either side."""

    asked = functools.partial(Configuration, "1.4.10", multiplex=True)

    def test_a_python_host_that_asks_is_told(self, auto_mtls: bool) -> None:
        with pytest.raises(fastplug.HandshakeError, match="multiplex"):
            python_host(self.asked(auto_mtls), "unary")

    def test_a_go_host_cannot_ask(self, auto_mtls: bool) -> None:
        refused = go_host(self.asked(auto_mtls), "unary")
        assert "this go-plugin cannot multiplex" in refused.output
        assert not refused.found

    def test_a_go_host_that_asks_without_knowing_it_does_not_hang(self, auto_mtls: bool) -> None:
        """By a variable that it hands down: the plugin then multiplexes a connection that the host does not."""
        confused = go_host(Configuration("1.4.10", auto_mtls, multiplex=False), "unary", env={"PLUGIN_MULTIPLEX_GRPC": "true"})
        assert "unary" not in confused.found
        assert "exit code 0" not in confused.output or "unary" in confused.failed
