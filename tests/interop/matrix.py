"""What the matrix of test_matrix.py is made of: configurations, and one run of a pair of peers that gathers what every cell then asserts.

A cell is the name of a step of go/peer/host.go, in either direction: a Python host makes the same steps here. What was found has the form
that the Go host prints, so that one assertion serves both.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.interop.go_tool import NEWEST, OLDER, ROOT, built
from tests.interop.peer_proto import SERVICE, stubs

import fastplug
from fastplug.presets import HandshakeConfig

__all__ = ["CONFIGURATIONS", "PEER", "STEPS", "Configuration", "Run", "go_host", "plugin_command", "plugin_environment", "python_host"]

PEER = HandshakeConfig(protocol_version=1, magic_cookie_key="FASTPLUG_INTEROP", magic_cookie_value="peer")
LARGE_BYTES = 64 << 20
# A watchdog for a run of all steps.
RUN_TIMEOUT_S = 120
# What was printed has left the plugin before its answer does.
LINE_TIMEOUT_S = 60
NONCE = "n0nce"
# A state in /proc/net/unix.
CONNECTED = "03"

# The steps that one plugin process is asked for, in this order; the last ends it.
KINDS = ("unary", "server_stream", "client_stream", "bidi_stream")
STEPS = ("ping", *KINDS, "fail", "large", "stdio", "dial_back", "offer", "sockets", "reflection", "reattach")


@dataclasses.dataclass(frozen=True)
class Configuration:
    """One column: which go-plugin, and what it is asked for."""

    go_plugin: str
    auto_mtls: bool
    multiplex: bool

    @property
    def can_multiplex(self) -> bool:
        """go-plugin can since 1.6."""
        return tuple(map(int, self.go_plugin.split("."))) >= (1, 6)

    def __str__(self) -> str:
        return f"{self.go_plugin}-{'AutoMTLS' if self.auto_mtls else 'plain'}-{'multiplexed' if self.multiplex else 'broker'}"


CONFIGURATIONS = [
    pytest.param(Configuration(go_plugin, auto_mtls, multiplex), id=str(Configuration(go_plugin, auto_mtls, multiplex)), marks=marks)
    for go_plugin, marks in ((NEWEST, ()), *((older, pytest.mark.long) for older in OLDER))
    for auto_mtls in (False, True)
    for multiplex in (False, True)
    if not multiplex or Configuration(go_plugin, auto_mtls, multiplex).can_multiplex
]


@dataclasses.dataclass
class Run:
    """What one pair of peers did. ``pid`` is the plugin's, ``host_pid`` the host's; ``found`` and ``failed`` are by step,
    ``left`` are the files that were left."""

    pid: int = 0
    host_pid: int = 0
    version: int | None = None
    found: dict[str, Any] = dataclasses.field(default_factory=dict)
    failed: dict[str, Any] = dataclasses.field(default_factory=dict)
    left: list[str] = dataclasses.field(default_factory=list)
    output: str = ""


# A Go host


def plugin_command(versions: str = "1") -> list[str]:
    return [sys.executable, "-m", "tests.plugins.peer_plugin", versions]


def plugin_environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT), str(stubs())])}


def go_host(configuration: Configuration, *steps: str, offers: str = "1", serves: str = "1", env: dict[str, str] | None = None) -> Run:
    """A Go host starts the Python plugin and makes the steps. A host that refuses the plugin says why in ``output``."""
    flags = [*(["-automtls"] if configuration.auto_mtls else []), *(["-mux"] if configuration.multiplex else [])]
    host = [str(built("peer", configuration.go_plugin)), "host", *flags, "-versions", offers, "-nonce", NONCE, "-do", ",".join(steps)]
    # Under a Go host a plugin that crashes, or is killed, leaves its socket, as a Go plugin does: nobody else knows of it.
    with tempfile.TemporaryDirectory() as temporary:
        ran = subprocess.run(
            [*host, "--", *plugin_command(serves)],
            cwd=ROOT,
            env=plugin_environment() | {"TMPDIR": temporary} | (env or {}),
            capture_output=True,
            text=True,
            timeout=RUN_TIMEOUT_S,
        )
        run = Run(output=f"{ran.stdout}{ran.stderr}\nexit code {ran.returncode}", left=os.listdir(temporary))
    for line in map(json.loads, ran.stdout.splitlines()):
        run.host_pid = line["host_pid"]
        if "error" in line:
            run.failed[line["step"]] = line
        else:
            run.found[line["step"]] = line["found"]
    if "started" in run.found:
        run.pid, run.version = run.found["started"]["pid"], run.found["started"]["version"]
    return run


# A Python host


def fact(answer: Any) -> dict[str, Any]:
    return {"pid": answer.pid, "digest": answer.digest, "index": answer.index, "version": answer.version}


class Output(io.BytesIO):
    """What the plugin prints, and a moment when there is a line of it."""

    def __init__(self) -> None:
        super().__init__()
        self.line = threading.Event()

    def write(self, data: Any, /) -> int:
        size = super().write(data)
        if b"\n" in bytes(data):
            self.line.set()
        return size

    def until(self) -> str:
        self.line.wait(LINE_TIMEOUT_S)
        return self.getvalue().decode()


class Host:
    """The steps, as a Python host makes them."""

    def __init__(self, client: fastplug.Client, stdout: Output, stderr: Output, temporary: str) -> None:
        self.client = client
        self.temporary = temporary
        self.peer = client.service(SERVICE)
        self.stdout, self.stderr = stdout, stderr

    def ping(self) -> Any:
        self.client.ping()
        return "pinged"

    def unary(self) -> Any:
        return fact(self.peer.Unary(nonce=NONCE))

    def server_stream(self) -> Any:
        return [fact(one) for one in self.peer.ServerStream(nonce=NONCE, count=5)]

    def client_stream(self) -> Any:
        return [fact(self.peer.ClientStream({"nonce": f"{NONCE}{index}"} for index in range(3)))]

    def bidi_stream(self) -> Any:
        found = []
        with self.peer.BidiStream() as call:
            for index in range(3):
                call.send(nonce=f"{NONCE}{index}")
                found.append(fact(next(call)))
        return found

    def fail(self) -> Any:
        return fact(self.peer.Fail(nonce=NONCE))

    def large(self) -> Any:
        data = (f"{NONCE}.".encode() * (LARGE_BYTES // (len(NONCE) + 1) + 1))[:LARGE_BYTES]
        answer = self.peer.Large(nonce=NONCE, data=data)
        turned = data.translate(bytes(255 - value for value in range(256)))
        sha256 = hashlib.sha256(answer.data).hexdigest()
        return {"bytes": len(answer.data), "turned": answer.data == turned, "sha256": sha256, "digest": answer.nonce}

    def stdio(self) -> Any:
        self.peer.Print(nonce=NONCE)
        self.peer.Print(nonce=NONCE, to_stderr=True)
        return {"stdout": self.stdout.until(), "stderr": self.stderr.until()}

    def dial_back(self) -> Any:
        """Through generated stubs, on both ends."""
        import peer_pb2
        import peer_pb2_grpc
        from tests.plugins.peer_plugin import Peer

        broker = self.client.broker
        number = broker.next_id()
        with broker.accept_and_serve(number, lambda server: peer_pb2_grpc.add_PeerServicer_to_server(Peer(99, broker), server)):
            return fact(peer_pb2_grpc.PeerStub(self.client.channel).DialBack(peer_pb2.Door(id=number, nonce=NONCE)))

    def offer(self) -> Any:
        import peer_pb2
        import peer_pb2_grpc

        with self.client.broker.dial(self.peer.Offer(nonce=NONCE).id) as channel:
            return fact(peer_pb2_grpc.PeerStub(channel).Unary(peer_pb2.Ask(nonce=NONCE)))

    def sockets(self) -> Any:
        """The connections to sockets that the plugin made, while one of them is a brokered one."""
        import peer_pb2
        import peer_pb2_grpc

        with self.client.broker.dial(self.peer.Offer(nonce=NONCE).id) as channel:
            peer_pb2_grpc.PeerStub(channel).Unary(peer_pb2.Ask(nonce=NONCE))
            return connections_below(self.client._socket_dir, self.temporary)

    def reflection(self) -> Any:
        methods = [method.name for method in self.client.descriptors(SERVICE).file[-1].service[0].method]
        return {"services": list(self.client.services()), "methods": methods}

    def reattach(self) -> Any:
        where = self.client.reattach_config()
        assert where is not None
        # a test plugin is one whose end is not the host's business: leaving the block lets go of it
        with fastplug.reattach(dataclasses.replace(where, test=True), handshake=PEER) as again:
            return fact(again.service(SERVICE).Unary(nonce=NONCE))

    def crash(self) -> Any:
        return fact(self.peer.Crash(nonce=NONCE))


def connections_below(*directories: str | None) -> int:
    """How many Unix sockets that plugins made in there are connected. Only the accepting end of a connection has the name."""
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    places = tuple(f"{directory}/plugin" for directory in directories if directory)
    return sum(len(row) == 8 and row[5] == CONNECTED and row[7].startswith(places) for row in rows)


@contextlib.contextmanager
def stubs_on_the_path() -> Iterator[None]:
    sys.path.insert(0, str(stubs()))
    try:
        yield
    finally:
        sys.path.remove(str(stubs()))


def python_host(configuration: Configuration, *steps: str, offers: str = "1", serves: str = "1") -> Run:
    """A Python host starts the Go plugin and makes the steps. Raises what refuses the plugin."""
    stdout, stderr = Output(), Output()
    run = Run(host_pid=os.getpid())
    # Before 1.6 a plugin made its socket where it liked, and one that crashes leaves it.
    with stubs_on_the_path(), tempfile.TemporaryDirectory() as temporary:
        config = fastplug.ClientConfig(
            target=[str(built("peer", configuration.go_plugin)), "plugin", "-versions", serves],
            handshake=PEER,
            versioned_plugins={int(version): {} for version in offers.split(",")},
            auto_mtls=configuration.auto_mtls,
            grpc_broker_multiplex=configuration.multiplex,
            sync_stdout=stdout,
            sync_stderr=stderr,
            env={"TMPDIR": temporary},
        )
        with fastplug.Client(config) as client:
            assert client.pid is not None
            run.pid, run.version = client.pid, client.negotiated_version
            host = Host(client, stdout, stderr, temporary)
            for step in steps:
                try:
                    run.found[step] = getattr(host, step)()
                except Exception as error:  # noqa: BLE001  the cell asserts what it is
                    run.failed[step] = error
        run.found["stopped"] = {"exited": client.exited, "returncode": client.returncode}
        # An older plugin leaves the socket of a brokered server now and then: its process may end before that server's routine does.
        run.left = [name for name in os.listdir(temporary) if configuration.can_multiplex or not name.startswith("plugin")]
    return run
