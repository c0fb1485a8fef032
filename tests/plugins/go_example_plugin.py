"""What go-plugin's own example hosts expect of a plugin, in Python: proto.KV, proto.Counter (with the host's AddHelper behind the broker)
and proto.StreamerService. Nothing is generated: the descriptors are what the Go plugins of the same examples say of themselves.

    python -m tests.plugins.go_example_plugin SERVICE DESCRIPTORS [VERSION]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import fastplug
from fastplug.protocols.grpc.descriptors import files_of

DESCRIPTORS = Path(sys.argv[2]).read_bytes()


class KV:
    """Keeps values in files of the working directory."""

    def __init__(self, broker: fastplug.GRPCBroker) -> None:
        pass

    def Put(self, request: Any, context: Any) -> Mapping[str, Any]:
        Path(f"kv_{request.key}").write_bytes(request.value + b"\n\nWritten from Python")
        return {}

    def Get(self, request: Any, context: Any) -> Mapping[str, Any]:
        return {"value": Path(f"kv_{request.key}").read_bytes()}


class Counter:
    """Adds with the help of the host."""

    def __init__(self, broker: fastplug.GRPCBroker) -> None:
        self.broker = broker

    def Put(self, request: Any, context: Any) -> Mapping[str, Any]:
        methods = files_of(DESCRIPTORS).service("proto.AddHelper")
        assert methods is not None
        add = methods["Sum"]
        with self.broker.dial(request.add_server) as channel:
            call = channel.unary_unary(add.path, add.request.SerializeToString, add.response.FromString)
            total = call(add.request(a=self.value(request.key), b=request.value)).r
        Path(f"kv_{request.key}").write_text(json.dumps({"Value": total}))
        return {}

    def Get(self, request: Any, context: Any) -> Mapping[str, Any]:
        return {"value": self.value(request.key)}

    def value(self, key: str) -> int:
        path = Path(f"kv_{key}")
        return int(json.loads(path.read_text())["Value"]) if path.exists() else 0


class Streamer:
    """Writes and reads one file in chunks."""

    def __init__(self, broker: fastplug.GRPCBroker) -> None:
        self.path = Path()
        self.chunk_size = 0

    def Configure(self, request: Any, context: Any) -> Mapping[str, Any]:
        self.path, self.chunk_size = Path(request.path), request.chunk_size
        return {}

    def Write(self, requests: Iterator[Any], context: Any) -> Mapping[str, Any]:
        self.path.write_bytes(b"".join(request.bytes_to_write for request in requests))
        return {}

    def Read(self, request: Any, context: Any) -> Iterator[Mapping[str, Any]]:
        data = self.path.read_bytes()
        for start in range(0, len(data), self.chunk_size):
            yield {"read_bytes": data[start : start + self.chunk_size]}


SERVICES: dict[str, Callable[[fastplug.GRPCBroker], object]] = {
    "proto.KV": KV,
    "proto.Counter": Counter,
    "proto.StreamerService": Streamer,
}

if __name__ == "__main__":
    name = sys.argv[1]
    version = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    plugin = fastplug.grpc_service(name, SERVICES[name], descriptors=DESCRIPTORS)
    fastplug.serve(versioned_plugins={version: {"example": plugin}}, handshake=fastplug.presets.GO_PLUGIN_EXAMPLES)
