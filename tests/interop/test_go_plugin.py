"""A fastplug host drives a plugin that it knows nothing of, in Go and in Python: its own reflection tells what there is to call."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
from collections.abc import Iterator

import pytest
from tests.interop.go_tool import built
from tests.interop.matrix import PEER, plugin_command, plugin_environment
from tests.interop.peer_proto import SERVICE, digest

import fastplug
from fastplug.protocols.grpc.channel import Code

pytestmark = pytest.mark.go


@contextlib.contextmanager
def started(language: str) -> Iterator[fastplug.Client]:
    if language == "Go":
        target, env = [str(built("peer")), "plugin"], {}
    else:
        target, env = plugin_command(), {"PYTHONPATH": plugin_environment()["PYTHONPATH"]}
    with fastplug.start(target, handshake=PEER, env=env) as client:
        client.ping()  # grpcio connects with the first call
        yield client


@pytest.fixture(scope="module", params=["Go", "Python"])
def client(request: pytest.FixtureRequest) -> Iterator[fastplug.Client]:
    with started(request.param) as made:
        yield made


def test_a_plugin_is_driven_without_stubs(client: fastplug.Client) -> None:
    assert (client.protocol, client.negotiated_version, client.services()) == ("grpc", 1, (SERVICE,))
    assert client.pid is not None
    peer = client.service(SERVICE)
    answer = peer.Unary(nonce="n")
    assert (answer.pid, answer.digest) == (client.pid, digest("Unary", client.pid, "n"))
    streamed = list(peer.ServerStream(nonce="n", count=50))
    assert [one.digest for one in streamed] == [digest("ServerStream", client.pid, "n", index) for index in range(50)]
    assert peer.ClientStream({"nonce": f"n{i}"} for i in range(3)).digest == digest("ClientStream", client.pid, "n0,n1,n2", 3)
    with peer.BidiStream() as call:
        for index in range(3):
            call.send(nonce=f"n{index}")
            assert next(call).digest == digest("BidiStream", client.pid, f"n{index}", index)


def test_the_plugin_reads_every_kind_of_field(client: fastplug.Client) -> None:
    at = dt.datetime(2020, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
    point = {"x": 1.5, "next": {"y": 2}}
    answer = client.service(SERVICE).Echo(
        truth=True, number=-3, ratio=0.5, text="é", data=b"\xff", color="COLOR_BLUE", point=point, points=[{}, point],
        colors=["COLOR_RED", 5],
        counts={"a": 1}, places={3: {"x": 1}}, spot={"y": 1}, maybe=0, at=at, lasts=dt.timedelta(seconds=3.5),
        loose={"a": [1, None, {"b": True}]},
        wrapped="w", times=[at], value=None, class_=4, shades={"a": "COLOR_RED"},
    )  # fmt: skip
    point = {"x": 1.5, "next": {"y": 2}}
    assert json.loads(answer.json) == {
        "truth": True, "number": "-3", "ratio": 0.5, "text": "é", "data": "/w==", "color": "COLOR_BLUE",
        "point": point, "points": [{}, point],
        "colors": ["COLOR_RED", "COLOR_BLUE"], "counts": {"a": 1}, "places": {"3": {"x": 1}}, "spot": {"y": 1}, "maybe": 0,
        "at": "2020-01-02T03:04:05Z", "lasts": "3.500s", "loose": {"a": [1, None, {"b": True}]}, "wrapped": "w",
        "times": ["2020-01-02T03:04:05Z"],
        "value": None, "class": 4, "shades": {"a": "COLOR_RED"},
    }  # fmt: skip
    assert answer.same.at.ToDatetime(dt.UTC) == at
    assert answer.same.WhichOneof("either") == "spot"


def test_errors_and_deadlines(client: fastplug.Client) -> None:
    assert client.pid is not None
    peer = client.service(SERVICE)
    with pytest.raises(fastplug.RpcError) as caught:
        peer.Fail(nonce="n")
    assert (caught.value.code, caught.value.message) == (Code.FAILED_PRECONDITION, digest("Fail", client.pid, "n"))
    with pytest.raises(fastplug.DeadlineExceeded), fastplug.deadline(after_s=0.1):
        peer.Wait(nonce="n")
    with pytest.raises(fastplug.DeadlineExceeded):
        peer.Wait(nonce="n", timeout_s=0.1)
    with pytest.raises(fastplug.InterfaceMismatch, match=f"it has: {SERVICE}"):
        client.service("no.Such")
    assert peer.Unary(nonce="after").pid == client.pid


@pytest.mark.parametrize("language", ["Go", "Python"])
def test_a_plugin_that_ends_in_a_call_is_told_with_its_exit_code(language: str) -> None:
    with started(language) as client:
        peer = client.service(SERVICE)
        stream = peer.BidiStream()
        with pytest.raises(fastplug.PluginDied) as caught:
            peer.Crash(nonce="n")
        assert caught.value.returncode == 7
        with pytest.raises(fastplug.PluginDied):
            next(stream)
        with pytest.raises(fastplug.PluginDied):
            peer.Unary(nonce="n")


def test_services_need_grpc() -> None:
    with (
        fastplug.start("tests.plugins.station_plugin:PythonStation", transport="inproc") as client,
        pytest.raises(fastplug.ConfigError, match="transport='grpc'"),
    ):
        client.services()
