"""Calls between Go and Python over gRPC: ``python -m benchmarks.interop``.

Go host and Go plugin, each with the other or with one of fastplug, plain and under AutoMTLS, beside bare grpcio; 64 B, 4 KiB and 1 MiB
there and back, 1 and 16 callers at a time. In each round every pair takes its turn, cell by cell. Writes benchmarks/results/interop.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from tests.interop.go_tool import built
from tests.interop.matrix import PEER, plugin_command, plugin_environment
from tests.interop.peer_proto import stubs

import fastplug

from . import machine
from .measure import WrongAnswerError, size_name, summary
from .peers import load

__all__ = ["main"]

RESULT = machine.ROOT / "benchmarks" / "results" / "interop.json"
SIZES = (64, 4 << 10, 1 << 20)
CALLERS = (1, 16)
# A Go host that measures one cell answers when the cell is over; this is a watchdog.
END_TIMEOUT_S = 60


class Pair(Protocol):
    """A host and a plugin that are connected."""

    def measure(self, size_bytes: int, callers: int, seconds: float) -> dict[str, float]: ...


class GoHost:
    """`peer bench`: it measures by itself."""

    def __init__(self, plugin: list[str], *, auto_mtls: bool) -> None:
        command = [str(built("peer")), "bench", *(["-automtls"] if auto_mtls else []), "--", *plugin]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(command, cwd=machine.ROOT, env=plugin_environment(), text=True, **pipes)

    def measure(self, size_bytes: int, callers: int, seconds: float) -> dict[str, float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"bytes": size_bytes, "callers": callers, "seconds": seconds}), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the Go host ended with exit code {self._process.wait(END_TIMEOUT_S)}")
        found: dict[str, float] = json.loads(line)
        return found

    def close(self) -> None:
        self._process.communicate(timeout=END_TIMEOUT_S)


class PythonHost:
    """Threads that call a function."""

    def __init__(self, call: Callable[[bytes], bytes]) -> None:
        self._call = call

    def measure(self, size_bytes: int, callers: int, seconds: float) -> dict[str, float]:
        data = b"measured" * (size_bytes // 8)
        each: list[list[int]] = [[] for _ in range(callers)]
        failed: list[Exception] = []
        begin = time.perf_counter()
        end = begin + seconds

        def run(samples: list[int]) -> None:
            try:
                while not samples or time.perf_counter() < end:
                    samples.append(self._timed(data))
            except Exception as error:  # noqa: BLE001  told by the thread that waits
                failed.append(error)

        threads = [threading.Thread(target=run, args=(samples,)) for samples in each]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        elapsed = time.perf_counter() - begin
        if failed:
            raise failed[0]
        every = [sample for samples in each for sample in samples]
        return {**summary(every), "per_s": len(every) / elapsed}

    def _timed(self, data: bytes) -> int:
        start = time.perf_counter_ns()
        reply = self._call(data)
        stop = time.perf_counter_ns()
        if reply != data:
            raise WrongAnswerError("another answer than the question")
        return stop - start


@contextlib.contextmanager
def go_host(plugin: list[str], auto_mtls: bool) -> Iterator[Pair]:
    host = GoHost(plugin, auto_mtls=auto_mtls)
    try:
        yield host
    finally:
        host.close()


@contextlib.contextmanager
def python_host(plugin: list[str], auto_mtls: bool) -> Iterator[Pair]:
    """Generated stubs over client.channel, as anybody with a .proto would call."""
    import peer_pb2
    import peer_pb2_grpc

    path = {"PYTHONPATH": plugin_environment()["PYTHONPATH"]}
    with fastplug.start(plugin, handshake=PEER, transport="grpc", auto_mtls=auto_mtls, env=path) as client:
        same = peer_pb2_grpc.PeerStub(client.channel).Same
        yield PythonHost(lambda data: same(peer_pb2.Blob(data=data)).data)  # type: ignore[no-any-return]


@contextlib.contextmanager
def bare_grpcio() -> Iterator[Pair]:
    peer = load("grpcio")
    try:
        peer.start()
        yield PythonHost(peer.echo)
    finally:
        peer.stop()


def pairs() -> dict[str, contextlib.AbstractContextManager[Pair]]:
    """By name, in the order of every table."""
    go, python = [str(built("peer")), "plugin"], plugin_command()
    found: dict[str, contextlib.AbstractContextManager[Pair]] = {"bare grpcio, plain": bare_grpcio()}
    for name, auto_mtls in (("plain", False), ("AutoMTLS", True)):
        found[f"Go host, Go plugin, {name}"] = go_host(go, auto_mtls)
        found[f"Python host, Go plugin, {name}"] = python_host(go, auto_mtls)
        found[f"Go host, Python plugin, {name}"] = go_host(python, auto_mtls)
        found[f"Python host, Python plugin, {name}"] = python_host(python, auto_mtls)
    return found


def one_round(started: dict[str, Pair], seconds: float) -> dict[str, dict[str, dict[str, float]]]:
    table: dict[str, dict[str, dict[str, float]]] = {}
    for size in SIZES:
        for callers in CALLERS:
            row = table[f"{size_name(size)}, {callers} caller{'s' if callers > 1 else ''}"] = {}
            for name, pair in started.items():
                pair.measure(size, callers, seconds / 10)  # warm
                row[name] = pair.measure(size, callers, seconds)
    return table


def medians(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each figure, over the rounds."""
    return {
        cell: {
            name: {figure: statistics.median(one[cell][name][figure] for one in rounds) for figure in samples}
            for name, samples in row.items()
        }
        for cell, row in rounds[0].items()
    }


def show(table: dict[str, Any]) -> str:
    """The medians: microseconds of a call (p50) and calls per second."""
    width = max(len(name) for row in table.values() for name in row)
    lines = []
    for cell, row in table.items():
        lines.append(f"{cell}:")
        lines += [f"  {name:{width}}  {samples['p50_ns'] / 1e3:10.1f} µs  {samples['per_s']:10.0f} /s" for name, samples in row.items()]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.interop", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=0.5, help="per cell (default: %(default)s)")
    parser.add_argument("--print", action="store_true", dest="only_print", help="without writing the result")
    options = parser.parse_args(argv)
    sys.path.insert(0, str(stubs()))
    rounds = []
    loads = []
    with contextlib.ExitStack() as stack:
        started = {name: stack.enter_context(pair) for name, pair in pairs().items()}
        for number in range(options.rounds):
            loads.append(machine.load())
            rounds.append(one_round(started, options.seconds))
            print(f"  round {number + 1}/{options.rounds}", file=sys.stderr, flush=True)
    table = medians(rounds)
    print(show(table))
    if not options.only_print:
        RESULT.parent.mkdir(exist_ok=True)
        result = {"name": "interop", **machine.describe(), "loads": loads, "median": table, "rounds": rounds}
        RESULT.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        print(f"wrote {RESULT}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
