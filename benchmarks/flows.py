"""Beyond single calls: many under way, streams, callbacks. ``python -m benchmarks.flows [--callbacks N] [shm|socket]``; one line a figure.

Cells take turns within a round, and a ratio is made within each round; shown are medians. Memory of both processes is shown before and
after the callbacks.
"""

from __future__ import annotations

import argparse
import multiprocessing
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

import fastplug

from . import machine

__all__ = ["Flow", "PlainFlow", "main"]

# As many as take some milliseconds each: what the cell before left in the caches is the same small part of every figure.
CALLS = 10_000
MAPPED_CALLS = 40_000
SOCKET_CALLS = 2_000
ARRAYS = 500
ROUNDS = 15
IN_FLIGHT = 64
ELEMENTS = 131_072  # 1 MiB of float64
BLOCKS = 6  # that a stream of copied arrays goes round: 4 MiB under way, one that is written and one that is read
PAYLOAD = b"x" * 64
BUFFER_BYTES = 1 << 16

Floats = npt.NDArray[np.float64]
Cell = tuple[str, int, Callable[[], None]]  # what is shown, items, a run


@fastplug.interface("benchmarks.flows/1")
class Flow(Protocol):
    def echo(self, data: bytes) -> bytes: ...
    def each(self, n: int, tell: Callable[[int], int]) -> int: ...
    def count(self, n: int) -> Iterator[int]: ...
    def born(self, n: int) -> Iterator[Floats]: ...
    def copied(self, n: int) -> Iterator[Floats]: ...
    def taken(self, arrays: Iterator[Floats]) -> float: ...


class PlainFlow(Flow):
    def echo(self, data: bytes) -> bytes:
        return data

    def each(self, n: int, tell: Callable[[int], int]) -> int:
        return sum(tell(i) for i in range(n))

    def count(self, n: int) -> Iterator[int]:
        yield from range(n)

    def born(self, n: int) -> Iterator[Floats]:
        for i in range(n):
            array = fastplug.empty(ELEMENTS)
            array[0] = i
            yield array

    def copied(self, n: int) -> Iterator[Floats]:
        array = np.ones(ELEMENTS)
        for _ in range(n):
            yield array

    def taken(self, arrays: Iterator[Floats]) -> float:
        return sum(float(array[0]) for array in arrays)


def _answer(sock: socket.socket) -> None:
    while data := sock.recv(len(PAYLOAD), socket.MSG_WAITALL):
        sock.sendall(data)


def _one_by_one(sock: socket.socket) -> None:
    """64 under way, a system call for each message: what a single call does, without waiting for the answer."""
    for n in range(SOCKET_CALLS):
        if n >= IN_FLIGHT:
            sock.recv(len(PAYLOAD), socket.MSG_WAITALL)
        sock.sendall(PAYLOAD)
    for _ in range(IN_FLIGHT):
        sock.recv(len(PAYLOAD), socket.MSG_WAITALL)


def _answer_together(sock: socket.socket) -> None:
    """Takes what has come, each message by itself, and answers with one system call."""
    rest = b""
    while data := sock.recv(BUFFER_BYTES):
        data = rest + data
        whole = len(data) - len(data) % len(PAYLOAD)
        sock.sendall(b"".join([data[at : at + len(PAYLOAD)] for at in range(0, whole, len(PAYLOAD))]))
        rest = data[whole:]


def _together(sock: socket.socket) -> None:
    """64 under way, as many as possible with each system call."""
    sent = got = 0
    rest = b""
    while got < SOCKET_CALLS:
        free = min(IN_FLIGHT - (sent - got), SOCKET_CALLS - sent)
        if free:
            sock.sendall(b"".join([PAYLOAD] * free))
            sent += free
        data = rest + sock.recv(BUFFER_BYTES)
        whole = len(data) - len(data) % len(PAYLOAD)
        got += len([data[at : at + len(PAYLOAD)] for at in range(0, whole, len(PAYLOAD))])
        rest = data[whole:]


@contextmanager
def plain_socket(answer: Callable[[socket.socket], None], calls: Callable[[socket.socket], None]) -> Iterator[Callable[[], None]]:
    """SOCKET_CALLS echoes of 64 bytes over a Unix socket in plain Python, without so much as a length prefix."""
    mine, theirs = socket.socketpair()
    child = multiprocessing.get_context("fork").Process(target=answer, args=(theirs,), daemon=True)
    child.start()
    theirs.close()
    try:
        yield lambda: calls(mine)
    finally:
        child.terminate()  # it has a copy of both ends
        child.join()
        mine.close()


def each(items: Iterable[Any]) -> None:
    """Takes them all."""
    for _ in items:
        pass


def cells(flow: Flow, client: fastplug.Client, one_by_one: Callable[[], None], together: Callable[[], None]) -> Iterator[Cell]:
    """What is measured, by name. The first one is what the others are compared with."""

    def one_at_a_time() -> None:
        for _ in range(CALLS):
            flow.echo(PAYLOAD)

    def copies() -> None:
        for _ in range(ARRAYS):
            np.copyto(there[0], here)

    def copies_in_turns() -> None:
        for n in range(ARRAYS):
            np.copyto(there[n % BLOCKS], here)

    def born() -> Iterator[Floats]:
        for n in range(ARRAYS):
            array = client.empty(ELEMENTS)
            array[0] = n
            yield array

    here, there = np.ones(ELEMENTS), [np.ones(ELEMENTS) for _ in range(BLOCKS)]
    yield "one at a time, 64 B", CALLS, one_at_a_time
    yield "64 under way (map)", MAPPED_CALLS, lambda: each(fastplug.map(flow.echo, [PAYLOAD] * MAPPED_CALLS, in_flight=IN_FLIGHT))
    yield "64 under way, a plain socket", SOCKET_CALLS, one_by_one
    yield "the same, many a system call", SOCKET_CALLS, together
    yield "stream of int", CALLS, lambda: each(flow.count(CALLS))
    yield "1 MiB born shared, to the host", ARRAYS, lambda: each(flow.born(ARRAYS))
    yield "1 MiB born shared, to the plugin", ARRAYS, lambda: each([flow.taken(born())])
    yield "1 MiB ordinary, to the host", ARRAYS, lambda: each(flow.copied(ARRAYS))
    yield "1 MiB ordinary, to the plugin", ARRAYS, lambda: each([flow.taken(here for _ in range(ARRAYS))])
    yield "1 MiB np.copyto, always the same", ARRAYS, copies
    yield f"1 MiB np.copyto, {BLOCKS} in turns", ARRAYS, copies_in_turns


def measured(all_cells: list[Cell]) -> dict[str, list[float]]:
    """Microseconds an item, by cell and round. The first round, which is not kept, warms up."""
    found: dict[str, list[float]] = {name: [] for name, _, _ in all_cells}
    for at in range(ROUNDS + 1):
        for name, count, run in all_cells:
            began = time.perf_counter()
            run()
            if at:
                found[name].append((time.perf_counter() - began) / count * 1e6)
    return found


def rss_kib(pid: int | str) -> int:
    """Resident memory of a process."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1])


def callbacks(flow: Flow, pid: int | None, count: int) -> None:
    """One line about that many of them."""
    before = rss_kib("self"), rss_kib(pid or "self")
    began = time.perf_counter()
    for _ in range(count // 100):
        flow.each(100, abs)
    took = (time.perf_counter() - began) / count * 1e6
    after = rss_kib("self"), rss_kib(pid or "self")
    print(f"{'callbacks':34}{took:8.2f} us; memory of host and plugin {before} -> {after} KiB")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("transport", nargs="?", default="shm", choices=("shm", "socket"))
    parser.add_argument("--callbacks", type=int, default=100_000)
    options = parser.parse_args()
    env = {"PYTHONPATH": f"{machine.ROOT}:{machine.ROOT / 'src'}"}
    command = [sys.executable, "-m", "fastplug.entry", "benchmarks.flows:PlainFlow"]
    with (
        plain_socket(_answer, _one_by_one) as one_by_one,
        plain_socket(_answer_together, _together) as together,
        fastplug.start(command, transport=options.transport, env=env) as client,
    ):
        flow: Flow = client.dispense(Flow)
        found = measured(list(cells(flow, client, one_by_one, together)))
        first = next(iter(found.values()))
        for name, rounds in found.items():
            ratio = median(one / other for one, other in zip(first, rounds, strict=True))
            print(f"{name:34}{median(rounds):8.2f} us, {ratio:5.1f} in the time of a single call")
        many = found["64 under way (map)"]
        for label, name in (("the plain socket", "64 under way, a plain socket"), ("many a system call", "the same, many a system call")):
            ratio = median(b / a for a, b in zip(many, found[name], strict=True))
            print(f"{'map beside ' + label:34}{ratio:8.1f} times as many")
        callbacks(flow, client.pid, options.callbacks)


if __name__ == "__main__":
    main()
