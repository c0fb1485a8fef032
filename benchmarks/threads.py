"""Calls of two, four and eight threads on one handle: against one thread's rate, and against a socket that eight share under a lock.

    python -m benchmarks.threads [seconds per situation]

Interleaved in one run; ratios count. "Under load" is one busy process per CPU beside it. The same script measures an awaited call against
asyncio streams over a Unix socket.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import NamedTuple, Protocol

import fastplug

THREADS = (2, 4, 8)
MOST = 8
ROUNDS = 5
PAYLOAD = b"x" * 64


@fastplug.interface("benchmarks.threads/1")
class Echo(Protocol):
    def echo(self, data: bytes) -> bytes: ...


class PlainEcho(Echo):
    def echo(self, data: bytes) -> bytes:
        return data


def rate(call: Callable[[], object], threads: int, seconds: float) -> float:
    """Calls a second, of so many threads together."""
    counts = [0] * threads
    end = time.perf_counter() + seconds

    def work(me: int) -> None:
        while time.perf_counter() < end:
            for _ in range(20):
                call()
            counts[me] += 20

    workers = [threading.Thread(target=work, args=(me,)) for me in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts) / seconds


def _answer(sock: socket.socket) -> None:
    while data := sock.recv(64, socket.MSG_WAITALL):
        sock.sendall(data)


@contextmanager
def socket_and_lock() -> Iterator[Callable[[], object]]:
    """An echo of 64 bytes in a process of its own, over one socket that callers share under a lock."""
    mine, theirs = socket.socketpair()
    child = multiprocessing.get_context("fork").Process(target=_answer, args=(theirs,), daemon=True)
    child.start()
    theirs.close()
    lock = threading.Lock()

    def call() -> object:
        with lock:
            mine.sendall(PAYLOAD)
            return mine.recv(64, socket.MSG_WAITALL)

    try:
        yield call
    finally:
        mine.close()
        child.terminate()
        child.join()


def holding_gil(seconds: float) -> Callable[[], object]:
    """A C function that takes so long and keeps the GIL, as a call does whose answer comes while it spins: the floor."""
    probe = bytes(1 << 16)
    began = time.perf_counter()
    for _ in range(100):
        probe.count(b"x")
    data = bytes(max(1, int(len(probe) * seconds * 100 / (time.perf_counter() - began))))
    return lambda: data.count(b"x")


def _spin() -> None:
    while True:
        pass


@contextmanager
def load() -> Iterator[None]:
    """One busy process per CPU."""
    busy = [multiprocessing.get_context("fork").Process(target=_spin, daemon=True) for _ in range(os.cpu_count() or 1)]
    for one in busy:
        one.start()
    try:
        yield
    finally:
        for one in busy:
            one.terminate()
            one.join()


class Rates(NamedTuple):
    """Calls a second, medians of interleaved rounds."""

    one: float
    several: list[float]  # by THREADS, to one thread's rate in the same round
    socket: float
    gil: float  # MOST threads beside one that only share the GIL


def threads(echo: Echo, peer: Callable[[], object], seconds: float) -> Rates:
    """One thread, several, and as many on the socket."""
    ones: list[float] = []
    several: list[list[float]] = [[] for _ in THREADS]
    sockets, floors = [], []
    for _ in range(ROUNDS):
        ones.append(rate(lambda: echo.echo(PAYLOAD), 1, seconds))
        for count, found in zip(THREADS, several, strict=True):
            found.append(rate(lambda: echo.echo(PAYLOAD), count, seconds) / ones[-1])
        sockets.append(rate(peer, MOST, seconds))
        alone = holding_gil(1 / ones[-1])
        floors.append(rate(alone, MOST, seconds) / rate(alone, 1, seconds))
    return Rates(median(ones), [median(found) for found in several], median(sockets), median(floors))


async def awaited(echo: Echo, seconds: float) -> tuple[float, float]:
    """Seconds per awaited call, and per round trip of asyncio streams over a Unix socket."""
    mine, theirs = socket.socketpair()
    child = multiprocessing.get_context("fork").Process(target=lambda: asyncio.run(_serve_stream(theirs)), daemon=True)
    child.start()
    theirs.close()
    reader, writer = await asyncio.open_unix_connection(sock=mine)
    ours, streams = [], []
    for _ in range(ROUNDS):
        count, end, start = 0, time.perf_counter() + seconds, time.perf_counter()
        while time.perf_counter() < end:
            await fastplug.submit(echo.echo, PAYLOAD)
            count += 1
        ours.append((time.perf_counter() - start) / count)
        count, end, start = 0, time.perf_counter() + seconds, time.perf_counter()
        while time.perf_counter() < end:
            writer.write(PAYLOAD)
            await reader.readexactly(64)
            count += 1
        streams.append((time.perf_counter() - start) / count)
    writer.close()
    child.terminate()
    child.join()
    return median(ours), median(streams)


async def _serve_stream(sock: socket.socket) -> None:
    reader, writer = await asyncio.open_unix_connection(sock=sock)
    while True:
        writer.write(await reader.readexactly(64))


def told(situation: str, found: Rates) -> None:
    """One line of the result."""
    shown = ", ".join(f"{count} threads {ratio:.2f}x" for count, ratio in zip(THREADS, found.several, strict=True))
    eight = found.several[-1] * found.one
    print(f"{situation}: 1 thread {found.one:,.0f}/s, {shown} (the GIL alone {found.gil:.2f}x)", end="")
    print(f"; {MOST} on socket + lock {found.socket:,.0f}/s ({eight / found.socket:.1f}x)", flush=True)


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    with socket_and_lock() as peer, fastplug.open([sys.executable, "-m", "fastplug.entry", "benchmarks.threads:PlainEcho"], Echo) as echo:
        told("idle", threads(echo, peer, seconds))
        with load():
            told("under load", threads(echo, peer, seconds))
        ours, streams = asyncio.run(awaited(echo, seconds))
        print(f"awaited: {ours * 1e6:.1f} us, asyncio over a Unix socket {streams * 1e6:.1f} us (1/{streams / ours:.1f})")


if __name__ == "__main__":
    main()
