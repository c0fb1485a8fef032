"""The benchmarks over fastplug over shared memory: ``python benchmarks/pyperf/bench_shm.py -o shm.json``."""

from __future__ import annotations

from _body import main

if __name__ == "__main__":
    main("shm")
