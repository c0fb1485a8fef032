"""fastplug itself, over each of its transports. The methods are those of the handle, with nothing in between."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import fastplug
from benchmarks.bench_api import Bench
from fastplug.config import Transport

__all__ = ["InProcess", "OwnGrpc", "OwnSocket", "SharedMemory", "plugin_environment", "plugin_target"]

ROOT = Path(__file__).resolve().parents[2]


def plugin_target() -> list[str]:
    return [sys.executable, "-m", "benchmarks.plugin"]


def plugin_environment() -> dict[str, str]:
    """The plugin finds the package `benchmarks` whatever the current directory is."""
    inherited = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([str(ROOT), *([inherited] if inherited else [])])}


class Own:
    """A started client; subclasses name the transport."""

    name: str
    label: str
    transport: Transport = "auto"

    def __init__(self) -> None:
        self.client: Any = None

    @property
    def pid(self) -> int | None:
        return None if self.client is None else self.client.pid

    def start(self) -> None:
        self.client = self.open()
        bench = self.client.dispense(Bench)
        self.echo, self.echo_dict, self.touch, self.total = bench.echo, bench.echo_dict, bench.touch, bench.total

    def open(self) -> Any:
        return fastplug.start(plugin_target(), env=plugin_environment(), transport=self.transport)

    def stop(self) -> None:
        client, self.client = self.client, None
        if client is not None:
            client.kill()

    def born(self, count: int) -> npt.NDArray[np.float64] | None:
        return None


class SharedMemory(Own):
    name = "shm"
    label = "fastplug, shared memory"
    transport: Transport = "shm"

    def born(self, count: int) -> npt.NDArray[np.float64] | None:
        array: npt.NDArray[np.float64] = self.client.empty((count,), np.float64)
        return array


class OwnSocket(Own):
    name = "socket"
    label = "fastplug, socket"
    transport: Transport = "socket"


class OwnGrpc(Own):
    name = "grpc"
    label = "fastplug, gRPC"
    transport: Transport = "grpc"


class InProcess(Own):
    name = "inproc"
    label = "fastplug, in-process"
    transport: Transport = "inproc"

    @property
    def pid(self) -> int | None:
        return None

    def open(self) -> Any:
        return fastplug.start("benchmarks.plugin:Plugin", transport=self.transport)
