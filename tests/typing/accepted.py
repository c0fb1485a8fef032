"""Uses that both checkers must accept, with the types they must find. Never run."""
# pyright: strict

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, assert_type

import numpy as np
import numpy.typing as npt
from tests.typing.api import Abstract, Dsp, Flows, Model, NumpyDsp

import fastplug
from fastplug.contrib.bubblewrap import Bubblewrap


def opening(x: npt.NDArray[np.float64]) -> None:
    with fastplug.open("dsp_plugin.py", Dsp) as dsp:
        assert_type(dsp, Dsp)
        assert_type(dsp.total(x), float)
        assert_type(dsp.fft(x), npt.NDArray[np.complex128])
        assert_type(dsp.fit(x, steps=3), Model)
        assert_type(dsp.norm([1.0]), float)
    with fastplug.open(Path("dsp_plugin.py"), Abstract, transport="shm", strict_zero_copy=True, env={"A": "b"}) as abstract:
        assert_type(abstract, Abstract)
        assert_type(abstract.square(2), int)
    opened: contextlib.AbstractContextManager[Dsp] = fastplug.open(["python", "dsp_plugin.py"], Dsp)
    assert opened is not None


def starting(x: npt.NDArray[np.float64]) -> None:
    with fastplug.start("dsp_plugin.py", arena_limit_bytes=1 << 30, logger=logging.getLogger("x"), python=".venv") as client:
        assert_type(client, fastplug.Client)
        dsp = client.dispense(Dsp)
        assert_type(dsp, Dsp)
        assert_type(client.pid, int | None)
        assert_type(client.transport, str)
        assert_type(client.exited, bool)
        assert_type(client.stats(), dict[str, Any])
        client.ping(timeout_s=1.0)
        with fastplug.deadline(after_s=0.5):
            assert_type(dsp.total(x), float)
        assert_type(fastplug.client_of(dsp), fastplug.Client)
        block = client.empty((3, 4), np.float64)
        dsp.total(block)
        for one, _ in zip(client.blocks((1024,), np.float64, count=3), range(10), strict=False):
            one[:] = 1.0
            dsp.total(one)
    started: fastplug.Client = fastplug.Client(fastplug.ClientConfig(target="dsp_plugin.py", transport="grpc")).start()
    started.kill()


def many(flows: Flows) -> None:
    call = fastplug.submit(flows.square, 3)
    assert_type(call, fastplug.Call[int])
    assert_type(call.result(timeout_s=1.0), int)
    assert_type(call.exception(), Exception | None)
    assert_type(fastplug.submit(flows.half, 3).result(), float)
    assert_type(fastplug.map(flows.square, range(3), in_flight=8), fastplug.Results[int])
    assert_type(fastplug.map(flows.half, [1], ordered=False, on_error="continue"), fastplug.Results[float])
    fastplug.map(flows.half, [1]).close()
    assert_type(flows.count(3), Iterator[int])
    assert_type(flows.total(n for n in range(3)), int)
    assert_type(flows.fit(3, print), int)
    call.add_done_callback(lambda done: print(done.result() + 1))


async def awaited(flows: Flows) -> None:
    assert_type(await flows.half(3), float)
    assert_type(await fastplug.submit(flows.half, 3), float)
    assert_type(await fastplug.submit(flows.square, 3), int)
    assert_type(await asyncio.gather(flows.half(1), flows.half(2)), tuple[float, float])
    assert_type(await asyncio.create_task(flows.half(1)), float)
    assert_type([n async for n in flows.ticks(3)], list[int])
    assert_type(await flows.sum_of(flows.ticks(3)), int)


class Counter:
    def __init__(self, broker: fastplug.GRPCBroker) -> None:
        self.broker = broker


def over_grpc(add: Any, stub: Any, tls: fastplug.Tls) -> None:
    plugins = {"kv": fastplug.grpc_plugin(add, Counter, stub=stub)}
    with fastplug.start("p.py", plugins=plugins, auto_mtls=True, mtls_curve="P-521", sync_stdout=sys.stdout.buffer) as client:
        assert_type(client.broker, fastplug.GRPCBroker)
        number = client.broker.next_id()
        assert_type(number, int)
        with client.broker.accept_and_serve(number, lambda server: add(1, server)) as served:
            assert_type(served, fastplug.BrokerServer)
        with client.broker.accept(number) as listener:
            assert_type(listener, fastplug.BrokerListener)
            assert_type(listener.serve(print).wait(1.0), bool)
        client.broker.dial(number, timeout_s=1.0).close()
        try:
            client.ping()
        except fastplug.RpcError as error:
            assert_type(error.code, int)
        except fastplug.BrokerTimeout as error:
            assert_type(error.service_id, int)
    fastplug.start("p.py", tls=tls, grpc_dial_options=[("grpc.max_send_message_length", 1)]).kill()
    fastplug.serve(plugins=plugins, tls_provider=lambda: tls, sync_fds=True, grpc_interceptors=[], broker_timeout_s=1.0)


def attaching() -> None:
    with fastplug.start("dsp_plugin.py", transport="grpc", managed=False, stderr=sys.stderr.buffer, stdin=0) as client:
        assert_type(client.reattach_config(), fastplug.ReattachConfig | None)
        text = fastplug.format_reattach({"dsp": client.detach()})
    config = fastplug.parse_reattach(text)["dsp"]
    with fastplug.reattach(config, name="dsp", reattach_runner=None) as attached:
        assert_type(attached, fastplug.Client)
        assert_type(attached.dispense(Dsp), Dsp)
    test = fastplug.ServeTestConfig(ready=print, cancel=threading.Event())
    fastplug.serve(NumpyDsp(), test=test, network="tcp")
    fastplug.serve_mux({"one": fastplug.ServeConfig(plugins={}), "two": lambda: fastplug.serve(NumpyDsp())})
    secure = fastplug.SecureConfig("00" * 32, hash=hashlib.sha256)
    fastplug.start("dsp_plugin.py", secure=secure, unix_socket=fastplug.UnixSocketConfig(group="staff"), runner=Bubblewrap()).kill()
    assert_type(fastplug.discover("acme-*", "."), list[Path])
    assert_type(fastplug.cleanup_clients(), None)


def specs() -> None:
    spec = fastplug.Spec("dsp_plugin.py", Dsp)
    assert_type(spec, fastplug.Spec[Dsp])
    with spec.open() as dsp:
        assert_type(dsp, Dsp)
    with fastplug.Spec("dsp_plugin.py", Dsp, {"transport": "socket"}).start() as client:
        assert_type(client, fastplug.Client)


def serving() -> None:
    fastplug.serve(NumpyDsp())
    fastplug.serve(NumpyDsp(), Dsp, on_host_exit="stay")
    fastplug.serve(
        plugins={"dsp": fastplug.InterfacePlugin(Dsp, NumpyDsp())},
        handshake=fastplug.HandshakeConfig(protocol_version=1, magic_cookie_key="K", magic_cookie_value="v"),
    )
    assert_type(fastplug.InterfacePlugin(Dsp, NumpyDsp()), fastplug.InterfacePlugin[Dsp])
    assert_type(fastplug.proto_of(Dsp), str)


def errors(dsp: Dsp, x: npt.NDArray[np.float64]) -> None:
    try:
        dsp.total(x)
    except fastplug.DeadlineExceeded as late:
        timeout: TimeoutError = late
        raise timeout from None
    except fastplug.ArgumentError as wrong:
        assert_type(wrong.parameter, str)
    except fastplug.InterfaceMismatch as other:
        assert_type(other.expected, str | None)
    except fastplug.PluginDied as died:
        assert_type(died.returncode, int | None)
    except fastplug.RemoteError as remote:
        assert_type(remote.remote_traceback, str)
    except fastplug.PluginError:
        pass
