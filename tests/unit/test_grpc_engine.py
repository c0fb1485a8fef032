"""gRPC in one process: the engine over socketpairs, and the plugin's and the host's end over a Unix socket."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pytest

from fastplug.config import ClientConfig, ServeConfig
from fastplug.deadlines import deadline
from fastplug.errors import (
    ArgumentError,
    Closed,
    ConfigError,
    CopyRequired,
    DeadlineExceeded,
    InterfaceMismatch,
    LocalProtocolError,
    PluginError,
    RemoteError,
    RpcError,
)
from fastplug.interfaces import interface, interface_of, optional
from fastplug.protocol import HostContext, PluginContext, protocol_named
from fastplug.protocols.grpc.channel import Channel, Code, Handler, HandlerKind, Limits, MethodTable, Server, Tls, rpc_error, select
from fastplug.protocols.grpc.client import GrpcClient
from fastplug.protocols.grpc.messages import SHUTDOWN, STREAM_STDIO, Empty
from fastplug.protocols.grpc.server import GrpcServer
from fastplug.protocols.grpc.stream import SocketStream

# For what must happen, and does at once unless something is broken.
WATCHDOG_S = 60.0


# The engine, over socketpairs


@contextlib.contextmanager
def connected(methods: MethodTable, limits: Limits | None = None) -> Iterator[tuple[Channel, Server]]:
    engine, limits = select(), limits or Limits()
    ours, theirs = socket.socketpair()
    server = engine.server(workers=4, limits=limits)
    server.add_methods(methods)
    server.attach(SocketStream(theirs))
    channel = engine.connect(SocketStream(ours), None, authority="unused", limits=limits)
    try:
        yield channel, server
    finally:
        channel.close()
        assert server.stop(None).wait(WATCHDOG_S)


def reply(request: bytes, context: Any) -> bytes:
    return request[::-1]


def count(request: bytes, context: Any) -> Iterator[bytes]:
    yield from (b"%d" % i for i in range(int(request)))


def refuse(request: bytes, context: Any) -> bytes:
    raise RpcError(Code.RESOURCE_EXHAUSTED, "no more", b"", [("why", "full"), ("raw-bin", b"\0\xff")])


METHODS = {
    "/t.T/Reply": Handler(HandlerKind.UNARY, reply),
    "/t.T/Count": Handler(HandlerKind.SERVER_STREAM, count),
    "/t.T/Refuse": Handler(HandlerKind.UNARY, refuse),
}


def test_unary_and_stream() -> None:
    with connected(METHODS) as (channel, _):
        assert channel.unary_unary("/t.T/Reply")(b"abc") == b"cba"
        assert list(channel.unary_stream("/t.T/Count")(b"5")) == [b"0", b"1", b"2", b"3", b"4"]


def test_no_limit_of_4_mib_in_either_direction() -> None:
    data = os.urandom(16 << 20)
    with connected(METHODS) as (channel, _):
        assert channel.unary_unary("/t.T/Reply")(data) == data[::-1]


def test_a_handlers_status_arrives_whole() -> None:
    with connected(METHODS) as (channel, _):
        status = rpc_error(channel.unary_unary("/t.T/Refuse").future(b"").exception())
    assert (status.code, status.message) == (Code.RESOURCE_EXHAUSTED, "no more")
    assert ("why", "full") in status.trailers
    assert ("raw-bin", b"\0\xff") in status.trailers


def test_an_unknown_method_is_unimplemented() -> None:
    with connected(METHODS) as (channel, _):
        assert rpc_error(channel.unary_unary("/t.T/Nothing").future(b"").exception()).code == Code.UNIMPLEMENTED


def test_the_end_of_the_peer_ends_calls_and_is_told_first() -> None:
    called = threading.Event()
    release = threading.Event()

    def hold(request: bytes, context: Any) -> bytes:
        called.set()
        release.wait(WATCHDOG_S)
        return b""

    with connected({"/t.T/Hold": Handler(HandlerKind.UNARY, hold)}) as (channel, server):
        pending = channel.unary_unary("/t.T/Hold").future(b"")
        assert called.wait(WATCHDOG_S)
        stopped = server.stop(None)
        assert rpc_error(pending.exception(WATCHDOG_S)).code in (Code.UNAVAILABLE, Code.CANCELLED)
        release.set()
        assert stopped.wait(WATCHDOG_S)
        assert channel.closed.result(WATCHDOG_S)


def test_a_channel_that_was_never_used_closes() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        channel = select().connect(SocketStream(ours), None, authority="unused", limits=Limits())
        channel.close()
        channel.close()
        assert channel.closed.done()
        assert theirs.recv(1) == b""


def test_garbage_instead_of_http2_fails_the_call() -> None:
    ours, theirs = socket.socketpair()
    channel = select().connect(SocketStream(ours), None, authority="unused", limits=Limits())
    with theirs:
        theirs.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        assert rpc_error(channel.unary_unary("/t.T/Reply").future(b"", timeout=WATCHDOG_S).exception()).code == Code.UNAVAILABLE
    channel.close()


def test_a_stopped_server_takes_no_connection() -> None:
    server = select().server(workers=1, limits=Limits())
    assert server.stop(None).wait(WATCHDOG_S)
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(LocalProtocolError, match="stopped"):
        server.attach(SocketStream(theirs))


def test_tls_wants_a_socket() -> None:
    class NoSocket:
        def fileno(self) -> int:
            return -1

        def recv_into(self, buffer: memoryview, /) -> int:
            return 0

        def sendall(self, data: memoryview, /) -> None: ...
        def close(self) -> None: ...

    server = select().server(workers=1, limits=Limits())
    with pytest.raises(LocalProtocolError, match="socket for TLS"):
        server.attach(NoSocket(), Tls())
    assert server.stop(None).wait(WATCHDOG_S)


def test_an_unknown_engine() -> None:
    with pytest.raises(ConfigError, match="'quic'"):
        select("quic")


def test_a_forked_child_does_not_keep_the_connection() -> None:
    """The child lives on, and the plugin still sees the end of its host's connection."""
    go_read, go_write = os.pipe()
    ours, theirs = socket.socketpair()
    stream = SocketStream(ours)
    pid = os.fork()
    if pid == 0:
        os.close(go_write)
        os.read(go_read, 1)
        os._exit(0)
    os.close(go_read)
    try:
        ours.close()  # without shutdown: as when the process ends
        theirs.settimeout(WATCHDOG_S)
        assert theirs.recv(1) == b""
    finally:
        os.close(go_write)
        os.waitpid(pid, 0)
        theirs.close()
        stream.close()


# Plugin and host


@interface("acme.dsp/1")
class Dsp(Protocol):
    """Signal processing."""

    def total(self, x: npt.NDArray[np.float64]) -> float: ...
    def add(self, a: int, b: int = 5) -> int:
        """The sum."""

    def fail(self, kind: str) -> int: ...
    def hold(self) -> int: ...
    def ident(self) -> int: ...
    @optional
    def extra(self) -> int: ...


class NumpyDsp(Dsp):
    def __init__(self) -> None:
        self.called = threading.Event()
        self.release = threading.Event()

    def total(self, x: npt.NDArray[np.float64]) -> float:
        assert not x.flags.writeable
        return float(x.sum())

    def add(self, a: int, b: int = 5) -> int:
        return a + b

    def fail(self, kind: str) -> int:
        if kind == "result":
            return "no int"  # type: ignore[return-value]
        raise {"key": KeyError("k"), "exit": SystemExit(3), "interrupt": KeyboardInterrupt(), "long": ValueError("x" * 200_000)}[kind]

    def hold(self) -> int:
        self.called.set()
        assert self.release.wait(WATCHDOG_S)
        return 1

    def ident(self) -> int:
        return threading.get_ident()


class Lost(PluginError):
    """What the client would make of a lost connection."""


def host(server_address: str, **config: Any) -> GrpcClient:
    made = protocol_named("grpc").connect(
        HostContext(
            config=ClientConfig(target="x", **config), name="dsp", network="unix", address=server_address, lost=lambda m: Lost(str(m))
        )
    )
    assert isinstance(made, GrpcClient)
    return made


class Running:
    """A plugin served on a thread of this process."""

    def __init__(self) -> None:
        self.dsp = NumpyDsp()
        made = protocol_named("grpc").serve(PluginContext(config=ServeConfig(), interfaces=[(interface_of(Dsp), self.dsp)]))
        assert isinstance(made, GrpcServer)
        self.server = made
        self.thread = threading.Thread(target=made.run)
        self.thread.start()

    def end(self) -> None:
        self.dsp.release.set()
        self.server.stop()
        self.thread.join(WATCHDOG_S)
        assert not self.thread.is_alive()


@pytest.fixture
def plugin() -> Iterator[Running]:
    running = Running()
    yield running
    running.end()


@pytest.fixture
def client(plugin: Running) -> Iterator[GrpcClient]:
    made = host(plugin.server.address)
    yield made
    made.close()


def test_calls(client: GrpcClient) -> None:
    client.ping(WATCHDOG_S)
    dsp = client.dispense(interface_of(Dsp))
    assert dsp.total(np.arange(10.0)) == 45.0
    assert (dsp.add(1), dsp.add(1, b=2), dsp.add(b=1, a=0)) == (6, 3, 1)
    assert (dsp.add.__name__, dsp.add.__doc__, str(dsp.add.__signature__)) == ("add", "The sum.", "(a: 'int', b: 'int' = 5) -> 'int'")
    near = {"transport": "grpc", "calls": 4, "copies": 1, "copied_bytes": 80}
    assert client.stats() == {**near, "plugin_calls": 4, "plugin_copies": 1, "plugin_copied_bytes": 80}


def test_handlers_run_on_the_thread_that_serves(plugin: Running, client: GrpcClient) -> None:
    assert client.dispense(interface_of(Dsp)).ident() == plugin.thread.ident


def test_errors_of_handlers(client: GrpcClient) -> None:
    dsp = client.dispense(interface_of(Dsp))
    with pytest.raises(KeyError) as key:
        dsp.fail("key")
    assert isinstance(key.value, RemoteError)
    assert (key.value.type_name, key.value.args) == ("KeyError", ("k",))
    assert "in fail" in key.value.remote_traceback
    for kind, name in (("exit", "SystemExit"), ("interrupt", "KeyboardInterrupt"), ("result", "fastplug.errors.ResultError")):
        with pytest.raises(RemoteError) as raised:
            dsp.fail(kind)
        assert raised.value.type_name == name
    with pytest.raises(ValueError, match="xxx"):
        dsp.fail("long")
    assert dsp.add(1) == 6


def test_a_foreign_host_sees_status_and_text(client: GrpcClient) -> None:
    from fastplug.protocols.grpc.schema import schema_of

    rpc = schema_of(interface_of(Dsp)).rpcs[2]
    status = rpc_error(client.channel.unary_unary(rpc.path).future(rpc.request(kind="key").SerializeToString()).exception())
    assert (status.code, status.message) == (Code.UNKNOWN, "KeyError: 'k'")
    assert not [key for key, _ in status.trailers if key.startswith("fastplug")]


def test_a_wrong_argument_sends_nothing(client: GrpcClient) -> None:
    dsp = client.dispense(interface_of(Dsp))
    for call in (lambda: dsp.add("1"), lambda: dsp.add(2**63), dsp.add, lambda: dsp.add(1, 2, 3), lambda: dsp.add(1, c=2)):
        with pytest.raises(ArgumentError, match=r"acme\.dsp/1\.add\(\)"):
            call()
    assert (client.stats()["calls"], client.stats()["plugin_calls"]) == (0, 0)


def test_an_absent_optional_method_says_so_when_called(client: GrpcClient) -> None:
    dsp = client.dispense(interface_of(Dsp))
    with pytest.raises(InterfaceMismatch, match="extra"):
        dsp.extra()


def test_a_different_interface_is_named_when_dispensed(client: GrpcClient) -> None:
    @interface("acme.dsp/1")
    class Other(Protocol):
        def add(self, a: str) -> int: ...

    with pytest.raises(InterfaceMismatch) as differs:
        client.dispense(interface_of(Other))
    assert differs.value.method == "add"


def test_a_peer_that_does_not_describe_itself_is_not_checked() -> None:
    path = "/acme.dsp.v1.Dsp/Add"
    server = select().server(workers=2, limits=Limits())
    server.add_methods({path: Handler(HandlerKind.UNARY, lambda request, context: b"\x08\x07")})
    listening = socket.socket(socket.AF_UNIX)
    with tempfile.TemporaryDirectory() as directory, listening:
        listening.bind(f"{directory}/s")
        listening.listen(1)
        client = host(f"{directory}/s")
        server.attach(SocketStream(listening.accept()[0]))
        dsp = client.dispense(interface_of(Dsp))
        assert dsp.add(1) == 7
        with pytest.raises(InterfaceMismatch) as missing:
            dsp.ident()
        assert (missing.value.interface, missing.value.method) == ("acme.dsp/1", "ident")
        client.close()
        assert server.stop(None).wait(WATCHDOG_S)


def test_a_deadline_and_the_call_after_it(plugin: Running, client: GrpcClient) -> None:
    dsp = client.dispense(interface_of(Dsp))
    with pytest.raises(DeadlineExceeded, match=r"acme\.dsp/1\.hold\(\)"), deadline(after_s=0.05):
        dsp.hold()
    plugin.dsp.release.set()
    assert dsp.add(2, 3) == 5
    with pytest.raises(DeadlineExceeded, match="nothing was sent"), deadline(after_s=0):
        dsp.add(1)


def test_ctrl_c_ends_the_wait_and_leaves_the_handle(plugin: Running, client: GrpcClient) -> None:
    dsp = client.dispense(interface_of(Dsp))
    threading.Thread(target=lambda: plugin.dsp.called.wait(WATCHDOG_S) and os.kill(os.getpid(), signal.SIGUSR1)).start()

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            dsp.hold()
    finally:
        signal.signal(signal.SIGUSR1, before)
    plugin.dsp.release.set()
    assert dsp.add(1) == 6


def test_one_handle_from_many_threads(client: GrpcClient) -> None:
    dsp = client.dispense(interface_of(Dsp))
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(dsp.add, range(200), range(200))) == [2 * i for i in range(200)]


def test_health_answers_while_a_handler_runs(plugin: Running, client: GrpcClient) -> None:
    dsp = client.dispense(interface_of(Dsp))
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(dsp.hold)
        assert plugin.dsp.called.wait(WATCHDOG_S)
        client.ping(WATCHDOG_S)
        plugin.dsp.release.set()
        assert held.result(WATCHDOG_S) == 1


def test_shutdown_ends_the_plugin_with_a_stream_held_open(plugin: Running, client: GrpcClient) -> None:
    stdio = client.channel.unary_stream(STREAM_STDIO)(Empty().SerializeToString())
    dsp = client.dispense(interface_of(Dsp))
    failed: list[bool] = []
    client.request_stop(lambda: failed.append(True))
    plugin.thread.join(WATCHDOG_S)
    assert not plugin.thread.is_alive()
    status = rpc_error(stdio.exception(WATCHDOG_S)) if stdio.exception(WATCHDOG_S) else None
    assert status is None or status.code == Code.UNAVAILABLE  # its end, or the connection's: a go-plugin host takes both
    assert not Path(plugin.server.address).exists()
    assert client.channel.closed.result(WATCHDOG_S)
    with pytest.raises(Lost, match=r"acme\.dsp/1\.add"):
        dsp.add(1)
    assert not failed  # a plugin that ends without an answer was asked all the same
    client.request_stop(lambda: failed.append(True))
    assert failed  # it cannot be asked any more


def test_nothing_waits_for_a_time_to_pass_on_the_way_from_shutdown_to_the_end(
    plugin: Running, client: GrpcClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every bound of that way at an hour the plugin ends all the same: each wait in it ends with what it waits for."""
    for bound in ("server.STOP_GRACE_S", "server.JOIN_TIMEOUT_S", "broker.STOP_TIMEOUT_S", "broker.JOIN_TIMEOUT_S"):
        monkeypatch.setattr(f"fastplug.protocols.grpc.{bound}", 3600.0)
    held = client.channel.unary_stream(STREAM_STDIO)(Empty().SerializeToString())
    assert client.dispense(interface_of(Dsp)).add(1) == 6
    client.request_stop(lambda: None)
    plugin.thread.join(WATCHDOG_S)
    assert not plugin.thread.is_alive()
    held.cancel()


def test_the_end_of_the_plugin_ends_waiting_calls(plugin: Running, client: GrpcClient) -> None:
    dsp = client.dispense(interface_of(Dsp))
    with ThreadPoolExecutor(2) as pool:
        held = pool.submit(dsp.hold)
        assert plugin.dsp.called.wait(WATCHDOG_S)
        client.peer_exited()
        assert isinstance(held.exception(WATCHDOG_S), Lost)
    with pytest.raises(Lost):
        client.ping(WATCHDOG_S)


def test_silent_probes_do_no_harm(plugin: Running, client: GrpcClient) -> None:
    for _ in range(3):
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(plugin.server.address)
    assert client.dispense(interface_of(Dsp)).add(1) == 6


def test_the_socket_belongs_to_this_user_alone(plugin: Running) -> None:
    assert Path(plugin.server.address).stat().st_mode & 0o777 == 0o600


def test_a_forked_child_is_told_whose_handle_it_is(client: GrpcClient) -> None:
    dsp = client.dispense(interface_of(Dsp))
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            dsp.add(1)
        except Closed as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(write)
    text = os.read(read, 4096).decode()
    os.close(read)
    assert str(os.getpid()) in text
    assert str(pid) in text
    assert dsp.add(1) == 6


def test_strict_zero_copy(plugin: Running) -> None:
    client = host(plugin.server.address, strict_zero_copy=True)
    dsp = client.dispense(interface_of(Dsp))
    assert dsp.total(np.ones(8)) == 8.0
    with pytest.raises(CopyRequired, match="gRPC copies"):
        dsp.total(np.ones(1024))
    client.close()


def test_shutdown_path_is_go_plugins() -> None:
    assert SHUTDOWN == "/plugin.GRPCController/Shutdown"
