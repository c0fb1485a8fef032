"""The benchmarks over fastplug over a Unix socket: ``python benchmarks/pyperf/bench_socket.py -o socket.json``."""

from __future__ import annotations

from _body import main

if __name__ == "__main__":
    main("socket")
