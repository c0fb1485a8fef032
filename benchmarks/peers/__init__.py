"""The peers that run.py and the pyperf scripts compare: a module each, with one class of the same shape."""

from __future__ import annotations

import importlib
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .message import Touched

__all__ = ["MODULES", "Peer", "load"]

# Name of the peer, and where it lives. The order is that of every table and plot.
MODULES = {
    "shm": ("ours", "SharedMemory"),
    "socket": ("ours", "OwnSocket"),
    "grpc": ("ours", "OwnGrpc"),
    "inproc": ("ours", "InProcess"),
    "unix_socket": ("unix_socket", "UnixSocket"),
    "pipe": ("pipe", "MultiprocessingPipe"),
    "zmq": ("zeromq", "ZeroMq"),
    "grpcio": ("bare_grpcio", "BareGrpcio"),
}


class Peer(Protocol):
    """What every peer can do. `pid` is None when there is no second process."""

    name: str
    label: str

    @property
    def pid(self) -> int | None: ...
    def start(self) -> None: ...
    def stop(self) -> None:
        """Ends the process within some seconds; may be called twice, and after a start() that failed."""

    def echo(self, data: bytes, /) -> bytes: ...
    def echo_dict(self, d: dict[str, float], /) -> dict[str, float]: ...
    def touch(self, x: npt.NDArray[np.float64], i: int, j: int, k: int, /) -> Touched: ...
    def total(self, x: npt.NDArray[np.float64], /) -> float: ...
    def born(self, count: int) -> npt.NDArray[np.float64] | None:
        """An array of `count` elements in memory that the other process reads in place; None where there is none."""


def load(name: str) -> Peer:
    """Raises ImportError, naming the module, when an optional peer is not installed."""
    module, cls = MODULES[name]
    peer: Peer = getattr(importlib.import_module(f"{__name__}.{module}"), cls)()
    return peer
