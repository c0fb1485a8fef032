"""The benchmarks over bare grpcio with bytes: ``python benchmarks/pyperf/bench_grpcio.py -o grpcio.json``."""

from __future__ import annotations

from _body import main

if __name__ == "__main__":
    main("grpcio")
