"""The benchmarks over fastplug in-process: ``python benchmarks/pyperf/bench_inproc.py -o inproc.json``."""

from __future__ import annotations

from _body import main

if __name__ == "__main__":
    main("inproc")
