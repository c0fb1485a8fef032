"""What is not a call: importing the library, opening a plugin, ending it, and learning that it was killed."""

from __future__ import annotations

import os
import select
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["import_time", "kill_to_exception", "open_to_first_result", "shutdown_to_exit"]

REPEATS = 20
RUN_TIMEOUT_S = 60  # a watchdog for one start of an interpreter
PAUSE_S = 60.0  # the call that is killed; nobody waits that long
SETTLE_S = 0.05  # until the call to be killed has surely begun


def spread(samples_ms: list[float]) -> dict[str, Any]:
    ordered = sorted(samples_ms)
    return {
        "n": len(ordered),
        "median_ms": round(statistics.median(ordered), 3),
        "min_ms": round(ordered[0], 3),
        "max_ms": round(ordered[-1], 3),
    }


def import_time() -> dict[str, Any]:
    """`import fastplug` against `pass`, in turn; both with their files cached by a first run."""
    statements = {"pass": "pass", "import": "import fastplug"}
    samples: dict[str, list[float]] = {name: [] for name in statements}
    for turn in range(REPEATS + 1):
        for name, statement in statements.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", statement], check=True, timeout=RUN_TIMEOUT_S)
            if turn:
                samples[name].append((time.perf_counter() - start) * 1e3)
    above = [loaded - bare for loaded, bare in zip(samples["import"], samples["pass"], strict=True)]
    return {name: spread(values) for name, values in samples.items()} | {"above_pass": spread(above)}


def open_to_first_result() -> dict[str, Any]:
    """From the call of open() to the first result of a plugin that imports numpy; fastplug itself is imported, files are cached."""
    import fastplug

    from .bench_api import Bench
    from .peers.ours import plugin_environment, plugin_target

    x = np.arange(1000.0)
    samples = []
    for turn in range(REPEATS + 1):
        start = time.perf_counter()
        with fastplug.open(plugin_target(), Bench, env=plugin_environment()) as bench:
            total = bench.total(x)
            if turn:
                samples.append((time.perf_counter() - start) * 1e3)
        assert total == x.sum()
    return spread(samples)


def shutdown_to_exit() -> dict[str, Any]:
    """From the request to stop (over gRPC: GRPCController.Shutdown) to the end of the process, which has imported numpy; in turn."""
    import fastplug

    from .bench_api import Bench
    from .peers.ours import plugin_environment, plugin_target

    kinds: dict[str, Any] = {
        "shm": {"transport": "shm"},
        "grpc": {"transport": "grpc"},
        "grpc_mtls": {"transport": "grpc", "auto_mtls": True},
    }
    samples: dict[str, list[float]] = {name: [] for name in kinds}
    x = np.arange(1000.0)
    for turn in range(REPEATS + 1):
        for name, options in kinds.items():
            with fastplug.start(plugin_target(), env=plugin_environment(), **options) as client:
                client.dispense(Bench).total(x)
                assert client.pid is not None
                pidfd = os.pidfd_open(client.pid)
                poller = select.poll()
                poller.register(pidfd, select.POLLIN)
                start = time.perf_counter()
                client._connected().request_stop(lambda: None)
                assert poller.poll(RUN_TIMEOUT_S * 1000)
                if turn:
                    samples[name].append((time.perf_counter() - start) * 1e3)
                os.close(pidfd)
    return {name: spread(values) for name, values in samples.items()}


def kill_to_exception() -> dict[str, Any]:
    """From kill -9 to the PluginDied of the call in progress, and of a call made right after the kill."""
    return {"during_call": spread(_kill(_during_call)), "between_calls": spread(_kill(_between_calls))}


def _kill(scene: Callable[[Any], float]) -> list[float]:
    from .peers import load

    samples = []
    for _ in range(REPEATS):
        peer = load("shm")
        peer.start()
        try:
            samples.append(scene(peer))
        finally:
            peer.stop()
    return samples


def _died_after_ms(call: Callable[[], object], killed: Callable[[], float]) -> float:
    import fastplug

    try:
        call()
    except fastplug.PluginDied:
        return (time.perf_counter() - killed()) * 1e3
    raise AssertionError("the call of a killed plugin returned")


def _during_call(peer: Any) -> float:
    from .bench_api import Bench

    killed_at: list[float] = []

    def kill() -> None:
        time.sleep(SETTLE_S)
        killed_at.append(time.perf_counter())
        os.kill(peer.pid, signal.SIGKILL)

    bench = peer.client.dispense(Bench)
    killer = threading.Thread(target=kill)
    killer.start()
    try:
        return _died_after_ms(lambda: bench.pause(PAUSE_S), lambda: killed_at[0])
    finally:
        killer.join()


def _between_calls(peer: Any) -> float:
    peer.echo(b"")
    killed_at = time.perf_counter()
    os.kill(peer.pid, signal.SIGKILL)

    def call_until_it_fails() -> None:
        while time.perf_counter() < killed_at + PAUSE_S:  # the signal may still be on its way
            peer.echo(b"")

    return _died_after_ms(call_until_it_fails, lambda: killed_at)
