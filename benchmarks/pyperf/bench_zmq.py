"""The benchmarks over pyzmq REQ/REP: ``python benchmarks/pyperf/bench_zmq.py -o zmq.json``."""

from __future__ import annotations

from _body import main

if __name__ == "__main__":
    main("zmq")
