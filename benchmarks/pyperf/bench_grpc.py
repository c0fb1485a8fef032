"""The benchmarks over fastplug over gRPC: ``python benchmarks/pyperf/bench_grpc.py -o grpc.json``."""

from __future__ import annotations

from _body import main

if __name__ == "__main__":
    main("grpc")
