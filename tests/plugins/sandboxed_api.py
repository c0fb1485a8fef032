"""What the sandbox tests call."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

import fastplug


@fastplug.interface("test.sandboxed/1")
class Sandboxed(Protocol):
    def pids(self) -> tuple[int, int]: ...
    def network_interfaces(self) -> list[str]: ...
    def try_to_write(self, path: str) -> str: ...
    def doubled(self, x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]: ...
    def socket_dir(self) -> str: ...
    def leave(self, code: int) -> None: ...
