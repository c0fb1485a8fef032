"""A plugin that has nothing of go-plugin but its line: no health, no controller, no stdio, no broker. Many written in Python are such."""

from __future__ import annotations

import signal
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from tests.conformance.conftest import plugin_environment

import fastplug

BARE = """
    import os
    from concurrent import futures
    import grpc

    echo = grpc.unary_unary_rpc_method_handler(lambda request, context: request[::-1])
    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bare.Bare", {"Echo": echo}),))
    path = os.environ["PLUGIN_UNIX_SOCKET_DIR"] + "/s"
    server.add_insecure_port("unix:" + path)
    server.start()
    print(f"1|1|unix|{path}|grpc", flush=True)
    server.wait_for_termination()
"""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[fastplug.Client]:
    program = tmp_path_factory.mktemp("bare") / "plugin.py"
    program.write_text(textwrap.dedent(BARE))
    with fastplug.start([sys.executable, str(program)], env=plugin_environment(), name="bare") as started:
        yield started


def test_its_service_can_be_called(client: fastplug.Client) -> None:
    assert client.channel.unary_unary("/bare.Bare/Echo")(b"abc") == b"cba"


def test_what_it_lacks_is_told_when_it_is_asked_for(client: fastplug.Client) -> None:
    with pytest.raises(fastplug.RpcError) as raised:
        client.ping()
    assert raised.value.code == grpc.StatusCode.UNIMPLEMENTED.value[0]
    with pytest.raises(fastplug.Closed, match="the plugin has no broker"):
        client.broker.accept(1)
    with pytest.raises(fastplug.Closed, match="the plugin has no broker"):
        client.broker.dial(1)
    assert client.channel.unary_unary("/bare.Bare/Echo")(b"still there") == b"ereht llits"


def test_it_is_ended_at_once(tmp_path: Path) -> None:
    """It says that it has no Shutdown: SIGTERM then, and not after the time of grace, here ten minutes."""
    program = tmp_path / "plugin.py"
    program.write_text(textwrap.dedent(BARE))
    with fastplug.start([sys.executable, str(program)], env=plugin_environment(), stop_timeout_s=600) as client:
        assert client.channel.unary_unary("/bare.Bare/Echo")(b"ab") == b"ba"
    assert client.returncode == -signal.SIGTERM
