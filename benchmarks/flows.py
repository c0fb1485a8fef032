"""Beyond single calls: many under way, streams, callbacks. ``python -m benchmarks.flows [--callbacks N] [shm|socket]``; one line a figure.

The ratio of 64 under way to one at a time is of one run. Memory of both processes is shown before and after the callbacks.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.plugins.flows_api import Flows

import fastplug

from . import machine

__all__ = ["main"]

CALLS = 20_000
ARRAYS = 2_000
ROUNDS = 7
ELEMENTS = 131_072  # 1 MiB of float64


def best_us(run: Callable[[], None], count: int) -> float:
    """Microseconds an item, the best of some rounds."""
    found = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        run()
        found.append((time.perf_counter() - began) / count * 1e6)
    return min(found)


def rss_kib(pid: int | str) -> int:
    """Resident memory of a process."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("transport", nargs="?", default="shm", choices=("shm", "socket"))
    parser.add_argument("--callbacks", type=int, default=100_000)
    options = parser.parse_args()
    env = {"PYTHONPATH": f"{machine.ROOT}:{machine.ROOT / 'src'}"}
    command = [sys.executable, "-m", "fastplug.entry", "tests.plugins.flows_plugin:PlainFlows"]
    with fastplug.start(command, transport=options.transport, env=env) as client:
        flows: Flows = client.dispense(Flows)

        def one_at_a_time() -> None:
            for n in range(CALLS):
                flows.double(n)

        def each(items: object) -> None:
            for _ in items:  # type: ignore[attr-defined]
                pass

        sync = best_us(one_at_a_time, CALLS)
        many = best_us(lambda: each(fastplug.map(flows.double, range(CALLS), in_flight=64)), CALLS)
        print(f"one at a time        {sync:8.2f} us")
        print(f"64 under way (map)   {many:8.2f} us, {sync / many:.1f}x")
        print(f"items of a stream    {best_us(lambda: each(flows.count(CALLS)), CALLS):8.2f} us")
        print(f"1 MiB, filled, each  {best_us(lambda: each(flows.arrays(ELEMENTS, ARRAYS)), ARRAYS):8.2f} us")
        before = rss_kib("self"), rss_kib(client.pid or "self")
        began = time.perf_counter()
        for _ in range(options.callbacks // 100):
            flows.each(100, abs)
        took = (time.perf_counter() - began) / options.callbacks * 1e6
        after = rss_kib("self"), rss_kib(client.pid or "self")
        print(f"callbacks            {took:8.2f} us; memory of host and plugin {before} -> {after} KiB")


if __name__ == "__main__":
    main()
