"""Awaited calls: what each costs the host in time, CPU and switches, by how long the handler takes and how many tasks await.

    python -m benchmarks.awaited [calls per situation]

A handler of 0 µs is answered while the host polls; one of 100 µs is what its event loop waits for.
"""

from __future__ import annotations

import asyncio
import resource
import sys
import time
from typing import Protocol

import fastplug

BUSY_US = (0, 100)
TASKS = (1, 64)
CALLS = 6400
WARM_UP_CALLS = 50


@fastplug.interface("benchmarks.awaited/1")
class Busy(Protocol):
    def spin(self, busy_us: int) -> int: ...


class PlainBusy(Busy):
    def spin(self, busy_us: int) -> int:
        until_ns = time.perf_counter_ns() + busy_us * 1000
        while time.perf_counter_ns() < until_ns:
            pass
        return busy_us


async def one_task(busy: Busy, busy_us: int, calls: int) -> None:
    for _ in range(calls):
        assert await fastplug.submit(busy.spin, busy_us) == busy_us


async def measure(busy: Busy, busy_us: int, tasks: int, calls: int) -> tuple[float, float, float]:
    """Of one call: time and the host's CPU time in µs, and how often the host went to sleep."""
    await one_task(busy, busy_us, WARM_UP_CALLS)
    each = max(1, calls // tasks)
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    await asyncio.gather(*(one_task(busy, busy_us, each) for _ in range(tasks)))
    took, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    made = each * tasks
    return took / made * 1e6, cpu / made * 1e6, (after.ru_nvcsw - before.ru_nvcsw) / made


def main() -> None:
    calls = int(sys.argv[1]) if len(sys.argv) > 1 else CALLS
    for transport in ("shm", "socket"):
        with fastplug.open([sys.executable, "-m", "benchmarks.awaited", "--serve"], Busy, transport=transport) as busy:
            for busy_us in BUSY_US:
                for tasks in TASKS:
                    took_us, cpu_us, switches = asyncio.run(measure(busy, busy_us, tasks, calls))
                    what = f"{transport}, handler of {busy_us} us, {tasks} tasks"
                    print(f"{what:<36}{took_us:7.1f} us, {cpu_us:6.1f} us of the host's CPU, {switches:.2f} switches", flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        fastplug.serve(PlainBusy())
    else:
        main()
