"""What the peers that carry bytes share: the operations in terms of one exchange, and the process at the other end."""

from __future__ import annotations

import json
import multiprocessing
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .message import Buffer, Touched, decode_touched, elements, touch_head

__all__ = ["BytesPeer"]

STOP_TIMEOUT_S = 5  # a server that saw its connection close has nothing left to do


class BytesPeer(ABC):
    """A peer in a process of its own, reached by `exchange`."""

    name: str
    label: str

    def __init__(self) -> None:
        self._process: Any = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @abstractmethod
    def exchange(self, operation: bytes, body: Buffer, data: Buffer | None = None) -> Buffer:
        """One message there, one back."""

    @abstractmethod
    def start(self) -> None: ...

    @abstractmethod
    def close(self) -> None:
        """Closes this side's end; the server ends itself then."""

    def spawn(self, serve: Callable[..., None], *arguments: object) -> None:
        """Starts `serve` in a fresh interpreter: forking would hand gRPC's threads and every open socket to the child."""
        self._process = multiprocessing.get_context("spawn").Process(target=serve, args=arguments, daemon=True)
        self._process.start()

    def stop(self) -> None:
        self.close()
        process, self._process = self._process, None
        if process is None:
            return
        process.join(STOP_TIMEOUT_S)
        if process.is_alive():
            process.kill()
            process.join(STOP_TIMEOUT_S)

    def echo(self, data: bytes, /) -> bytes:
        reply = self.exchange(b"E", data)
        return reply if isinstance(reply, bytes) else bytes(reply)

    def echo_dict(self, d: dict[str, float], /) -> dict[str, float]:
        decoded: dict[str, float] = json.loads(bytes(self.exchange(b"D", json.dumps(d).encode())))
        return decoded

    def touch(self, x: npt.NDArray[np.float64], i: int, j: int, k: int, /) -> Touched:
        return decode_touched(self.exchange(b"T", touch_head(x, i, j, k), elements(x)))

    def total(self, x: npt.NDArray[np.float64], /) -> float:
        (value,) = struct.unpack("<d", self.exchange(b"S", touch_head(x), elements(x)))
        return float(value)

    def born(self, count: int) -> None:
        return None
