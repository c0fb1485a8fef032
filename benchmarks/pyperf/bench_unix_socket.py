"""The benchmarks over a Unix socket in plain Python: ``python benchmarks/pyperf/bench_unix_socket.py -o unix_socket.json``."""

from __future__ import annotations

from _body import main

if __name__ == "__main__":
    main("unix_socket")
