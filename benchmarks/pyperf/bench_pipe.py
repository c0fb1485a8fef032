"""The benchmarks over multiprocessing.Pipe: ``python benchmarks/pyperf/bench_pipe.py -o pipe.json``."""

from __future__ import annotations

from _body import main

if __name__ == "__main__":
    main("pipe")
