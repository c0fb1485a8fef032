"""A million arrays of random dtype, shape, layout and size, from 8 threads, while plugins are killed: ``python -m benchmarks.array_soak``.

Arrays are sent, returned, kept on either side and dropped, over two plugins that share an arena and one that has its own. Every value is
checked. Ends with exit code 1 when one was wrong, or when memory, descriptors or mappings are not back where they began.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import fastplug
from fastplug.shm import _segment

from .keeper import Array, Keeper
from .peers.ours import plugin_environment
from .soak import Footprint

__all__ = ["main"]

ARRAYS = 1_000_000
THREADS = 8
PLUGINS = 3
KILL_EVERY_S = 3.0
DTYPES = ("?", "i1", "u2", "i4", "u8", "f2", "f4", "f8", "c8", "c16", ">i4", "M8[us]", "S7", "U3", "i4,f8")
HELD = 12  # arrays that a thread keeps of those that came back
KEPT = 6  # and that a plugin keeps for it
GROWTH_LIMIT_KIB = 4096  # a leak of one array in a thousand would be 64 times as much
REPORTS = 20


class Slot:
    """One plugin, started anew when it was killed. ``handle`` may be one that has just died: its caller asks again."""

    def __init__(self, name: str, arena: fastplug.Arena | None) -> None:
        self._name, self._arena = name, arena
        self._lock = threading.Lock()
        self._client: fastplug.Client | None = None
        self.deaths = 0

    def handle(self) -> tuple[int, Keeper]:
        """Number of the incarnation, and a handle of it."""
        with self._lock:
            if self._client is None or self._client.exited:
                self.close()
                self.deaths += 1
                target = [sys.executable, "-m", "benchmarks.keeper"]
                options: Any = {"arena": self._arena} if self._arena is not None else {"arena_limit_bytes": 256 << 20}
                self._client = fastplug.start(target, env=plugin_environment(), transport="shm", name=self._name, **options)
            return self.deaths, self._client.dispense(Keeper)

    def kill(self) -> None:
        client = self._client
        if client is not None and client.pid is not None and not client.exited:
            with contextlib.suppress(ProcessLookupError):
                os.kill(client.pid, signal.SIGKILL)

    def close(self) -> None:
        if self._client is not None:
            self._client.kill()


def random_array(rng: random.Random) -> Array:
    """1 B to 4 MiB, small ones more often; any layout."""
    dtype = np.dtype(rng.choice(DTYPES))
    count = max(1, int(2 ** rng.uniform(0, 22)) // dtype.itemsize)
    raw = np.frombuffer(rng.randbytes(min(count * dtype.itemsize, 4096)), np.uint8)
    if dtype.kind in "USM?" or dtype.names:
        raw = raw & 1 if dtype.kind in "?U" else raw & 0x3F
    flat = np.resize(raw, count * dtype.itemsize).view(dtype)
    layout = rng.randrange(6)
    if layout == 1:
        flat = flat[::-1]
    elif layout == 2:
        flat = flat[:: rng.randrange(1, 4)]
    elif layout == 3 and count % 2 == 0:
        flat = flat.reshape(2, -1).T
    elif layout == 4 and count % 2 == 0:
        flat = np.asfortranarray(flat.reshape(2, -1))
    elif layout == 5:
        flat = flat.reshape((1, -1, 1))
    return flat


class Worker:
    """One thread's part."""

    def __init__(self, number: int, count: int, slots: list[Slot], arena: fastplug.Arena, seed: int) -> None:
        self.rng = random.Random(seed * 1000 + number)
        self.number, self.count, self.slots, self.arena = number, count, slots, arena
        self.made = self.lost = 0
        self.faults: list[str] = []
        self.held: list[tuple[Array, bytes]] = []
        self.kept: dict[int, tuple[Slot, int, bytes]] = {}

    def run(self) -> None:
        while self.made < self.count and not self.faults:
            try:
                self.step()
                self.made += 1
            except (fastplug.PluginDied, fastplug.Closed, fastplug.StartError, fastplug.HandshakeError):
                self.lost += 1
            except Exception as error:  # noqa: BLE001  whatever it is, it is what this program looks for
                self.faults.append(f"thread {self.number}: {type(error).__name__}: {error}")
        self.held.clear()

    def check(self, got: Array, expected: bytes, what: str) -> None:
        if got.tobytes() != expected:
            self.faults.append(f"thread {self.number}: {what} of {got.dtype} {got.shape} has other values")

    def step(self) -> None:
        rng = self.rng
        if self.held and rng.random() < 0.3:  # what came back goes on, perhaps to another plugin
            x, expected = rng.choice(self.held)
        else:
            x = random_array(rng)
            if rng.random() < 0.3 and x.nbytes:
                born = self.arena.empty(x.shape, x.dtype)
                born[...] = x
                x = born
            expected = x.tobytes()
        slot = rng.choice(self.slots)
        life, keeper = slot.handle()
        deeds: list[Callable[[], None]] = [
            lambda: self.come_back(keeper.echo(x), expected, "echo"),
            lambda: self.come_back(keeper.reversed(x), (x[::-1] if x.ndim else x).tobytes(), "reversed"),
            lambda: self.come_back(keeper.doubled(x), x.reshape(-1).tobytes() * 2, "doubled"),
            lambda: self.leave_there(slot, life, keeper, x, expected),
            self.fetch,
        ]
        rng.choice(deeds)()
        if self.held and rng.random() < 0.2:
            got, expected = self.held.pop(rng.randrange(len(self.held)))
            self.check(got, expected, "what was held")

    def come_back(self, got: Array, expected: bytes, what: str) -> None:
        self.check(got, expected, what)
        if self.rng.random() < 0.4:
            self.held.append((got, expected))
            if len(self.held) > HELD:
                del self.held[0]

    def leave_there(self, slot: Slot, life: int, keeper: Keeper, x: Array, expected: bytes) -> None:
        if len(self.kept) >= KEPT:
            self.fetch()
        key = self.number << 32 | self.made
        keeper.keep(key, x)
        self.kept[key] = slot, life, expected

    def fetch(self) -> None:
        if not self.kept:
            return
        key = self.rng.choice(sorted(self.kept))
        slot, life, expected = self.kept.pop(key)
        now, keeper = slot.handle()
        if now == life:
            self.come_back(keeper.give(key), expected, "what was kept")


def soak(count: int, seed: int, threads: int) -> list[str]:
    arena = fastplug.Arena(limit_bytes=512 << 20)
    slots = [Slot("one", arena), Slot("two", arena), Slot("alone", None)]
    workers = [Worker(number, count // threads, slots, arena, seed) for number in range(threads)]
    running = [threading.Thread(target=worker.run) for worker in workers]
    for thread in running:
        thread.start()
    rng, reported = random.Random(seed), 0
    while any(thread.is_alive() for thread in running):
        time.sleep(KILL_EVERY_S * rng.uniform(0.5, 1.5))
        rng.choice(slots).kill()
        made = sum(worker.made for worker in workers)
        if made * REPORTS // count > reported:
            reported = made * REPORTS // count
            lost, deaths = sum(worker.lost for worker in workers), sum(slot.deaths for slot in slots)
            print(f"{made:>12,}  {lost:>8,} calls lost to {deaths} plugins killed  {Footprint.of(os.getpid())}", flush=True)
    for thread in running:
        thread.join()
    for slot in slots:
        slot.close()
    arena.close()
    return [fault for worker in workers for fault in worker.faults]


class MallInfo(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "o", "s", "h", "hblkhd", "u", "f", "uordblks", "fordblks", "k")]


def used_kib() -> int:
    """Private memory that is in use: what malloc keeps for later, 100 MiB after eight threads, says nothing of leaks."""
    gc.collect()
    mallinfo = ctypes.CDLL("libc.so.6").mallinfo2
    mallinfo.restype = MallInfo
    info = mallinfo()
    return int(info.uordblks + info.hblkhd) // 1024


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.array_soak", description=__doc__)
    parser.add_argument("--arrays", type=int, default=ARRAYS)
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args(argv)
    print(f"{options.arrays:,} arrays from {options.threads} threads, seed {options.seed}", flush=True)
    faults = soak(max(2000, options.arrays // 50), options.seed, options.threads)  # fills what grows once
    used, before, mapped = used_kib(), Footprint.of(os.getpid()), _segment.live()
    print(f"{0:>12,}  {used} KiB in use, {before.descriptors} fds, {mapped} segments", flush=True)
    faults += soak(options.arrays, options.seed + 1, options.threads)
    grown, after = used_kib() - used, Footprint.of(os.getpid())
    print(f"{'after':>12}  {used + grown} KiB in use, {after.descriptors} fds, {_segment.live()} segments", flush=True)
    if grown > GROWTH_LIMIT_KIB:
        faults.append(f"the host uses {grown} KiB more, which is over {GROWTH_LIMIT_KIB}")
    if after.descriptors != before.descriptors or _segment.live() != mapped:
        faults.append(f"descriptors {before.descriptors} -> {after.descriptors}, segments {mapped} -> {_segment.live()}")
    print("\n".join(["", *(f"FAILED: {fault}" for fault in faults[:20])] if faults else ["", "ok"]))
    return bool(faults)


if __name__ == "__main__":
    raise SystemExit(main())
