"""Says where it finds itself."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tests.plugins.sandboxed_api import Sandboxed

import fastplug

__all__ = ["Boxed"]

SOCKET_DIR = os.environ.get("PLUGIN_UNIX_SOCKET_DIR", "")


class Boxed(Sandboxed):
    def pids(self) -> tuple[int, int]:
        return os.getpid(), os.getppid()

    def network_interfaces(self) -> list[str]:
        return [name for _, name in socket.if_nameindex()]

    def try_to_write(self, path: str) -> str:
        try:
            Path(path).write_text("written")
        except OSError as error:
            return f"OSError: {error}"
        return Path(path).read_text()

    def doubled(self, x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        result = fastplug.empty(x.shape)
        np.multiply(x, 2, out=result)
        return result

    def socket_dir(self) -> str:
        return SOCKET_DIR

    def leave(self, code: int) -> None:
        os._exit(code)


if __name__ == "__main__":
    fastplug.serve(Boxed())
