"""go-plugin's own examples, unmodified, as peers: their plugins under a Python host, their hosts with Python plugins."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.interop.go_tool import ROOT, example

import fastplug
from fastplug.presets import GO_PLUGIN_EXAMPLES

pytestmark = pytest.mark.go

RUN_TIMEOUT_S = 60


def start(plugin: str, folder: Path, **more: Any) -> fastplug.Client:
    return fastplug.start([str(example(plugin))], handshake=GO_PLUGIN_EXAMPLES, cwd=folder, **more)


def run_host(host: str, folder: Path, *arguments: str, **env: str) -> tuple[str, str]:
    """(stdout, stderr) of an example host."""
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path} | env
    command = [str(example(host)), *arguments]
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=RUN_TIMEOUT_S)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout, ran.stderr


def described(plugin: str, service: str, folder: Path, **more: Any) -> Path:
    """A file with what the example's own plugin says of a service."""
    path = folder / "descriptors"
    with start(plugin, folder, **more) as client:
        path.write_bytes(client.descriptors(service).SerializeToString())
    return path


def python_plugin(service: str, descriptors: Path, version: int = 1) -> str:
    return shlex.join([sys.executable, "-m", "tests.plugins.go_example_plugin", service, str(descriptors), str(version)])


def test_the_kv_plugin_under_a_python_host(tmp_path: Path) -> None:
    with start("grpc/plugin-go-grpc", tmp_path) as client:
        kv = client.service("proto.KV")
        kv.Put(key="k", value=b"from Python")
        assert kv.Get(key="k").value == b"from Python\n\nWritten from plugin-go-grpc"
        with pytest.raises(fastplug.RpcError, match="no such file"):
            kv.Get(key="missing")


class AddHelper:
    """What the counter plugin asks its host for."""

    def Sum(self, request: Any, context: Any) -> Mapping[str, Any]:
        return {"r": request.a + request.b + 1000}  # an answer that the plugin would not come to by itself


@pytest.mark.parametrize("multiplex", [False, True], ids=["broker", "multiplexed"])
@pytest.mark.parametrize("auto_mtls", [False, True], ids=["plain", "AutoMTLS"])
def test_the_counter_plugin_calls_back_through_the_broker(tmp_path: Path, auto_mtls: bool, multiplex: bool) -> None:
    options = {"auto_mtls": auto_mtls, "grpc_broker_multiplex": multiplex}
    with start("bidirectional/plugin-go-grpc", tmp_path, **options) as client:
        counter = client.service("proto.Counter")
        helper = fastplug.grpc_service("proto.AddHelper", AddHelper(), descriptors=client.descriptors("proto.Counter"))
        for expected in (1005, 2010):
            number = client.broker.next_id()
            with client.broker.accept_and_serve(number, lambda server: helper.grpc_server(client.broker, server)):
                counter.Put(add_server=number, key="c", value=5)
            assert counter.Get(key="c").value == expected


def test_the_streaming_plugin_under_a_python_host(tmp_path: Path) -> None:
    with start("streaming/plugin", tmp_path) as client:
        streamer = client.service("proto.StreamerService")
        streamer.Configure(path=str(tmp_path / "file"), chunk_size=10)
        with pytest.raises(fastplug.RpcError, match="without the response"):  # the example's plugin forgets it
            streamer.Write({"bytes_to_write": bytes([index]) * 5} for index in range(4))
        assert (tmp_path / "file").read_bytes() == b"".join(bytes([index]) * 5 for index in range(4))
        assert b"".join(chunk.read_bytes for chunk in streamer.Read()) == (tmp_path / "file").read_bytes()


def test_the_negotiated_plugin_under_a_python_host(tmp_path: Path) -> None:
    """Version 2 of it is net/rpc alone, version 3 gRPC."""
    with start("negotiated/plugin-go", tmp_path, versioned_plugins={2: {}, 3: {}}) as client:
        assert (client.negotiated_version, client.protocol) == (3, "grpc")
        kv = client.service("proto.KV")
        kv.Put(key="k", value=b"v")
        assert kv.Get(key="k").value == b"v\n\nWritten from plugin version 3\nRead by plugin version 3\n"


def test_the_kv_host_with_a_python_plugin(tmp_path: Path) -> None:
    descriptors = described("grpc/plugin-go-grpc", "proto.KV", tmp_path)
    env = {"KV_PROTO": "grpc", "KV_PLUGIN": python_plugin("proto.KV", descriptors)}
    run_host("grpc", tmp_path, "put", "k", "from Go", **env)
    assert (tmp_path / "kv_k").read_bytes() == b"from Go\n\nWritten from Python"
    assert run_host("grpc", tmp_path, "get", "k", **env)[0] == "from Go\n\nWritten from Python\n"


def test_the_counter_host_with_a_python_plugin(tmp_path: Path) -> None:
    descriptors = described("bidirectional/plugin-go-grpc", "proto.Counter", tmp_path)
    env = {"COUNTER_PLUGIN": python_plugin("proto.Counter", descriptors)}
    for total in (5, 10):
        run_host("bidirectional", tmp_path, "put", "c", "5", **env)
        assert (tmp_path / "kv_c").read_text() == f'{{"Value": {total}}}'
    assert run_host("bidirectional", tmp_path, "get", "c", **env)[0] == "10\n"


def test_the_streaming_host_with_a_python_plugin(tmp_path: Path) -> None:
    descriptors = described("streaming/plugin", "proto.StreamerService", tmp_path)
    program = tmp_path / "plugin" / "streamer"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nexec {python_plugin('proto.StreamerService', descriptors)}\n")
    program.chmod(0o755)
    _, log = run_host("streaming", tmp_path, str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "Lorem ipsum dolor sit amet"
    assert '"bytes":"Lorem ipsum dolor sit amet"' in log


def test_the_negotiated_host_with_a_python_plugin(tmp_path: Path) -> None:
    descriptors = described("negotiated/plugin-go", "proto.KV", tmp_path, versioned_plugins={3: {}})
    program = tmp_path / "kv-plugin"
    program.write_text(f"#!/bin/sh\nexec {python_plugin('proto.KV', descriptors, 3)}\n")
    program.chmod(0o755)
    run_host("negotiated", tmp_path, "put", "k", "from Go", KV_PROTO="grpc")
    assert run_host("negotiated", tmp_path, "get", "k", KV_PROTO="grpc")[0] == "from Go\n\nWritten from Python\n"
