"""A station whose values only this process can compute."""

from __future__ import annotations

import logging
import os

import numpy as np
import numpy.typing as npt
from tests.plugins.station_api import Reading, Station, Summary

import fastplug

__all__ = ["PythonStation"]


class PythonStation(Station):
    def pid(self) -> int:
        return os.getpid()

    def scaled(self, x: int, factor: float = 2.5) -> float:
        return x * factor

    def summary(self, reading: Reading) -> Summary:
        counts = {"values": len(reading.values), "year": reading.taken.year if reading.taken else 0}
        return Summary(reading.place.upper(), float(np.mean(reading.values)), reading.unit, counts)

    def cumulated(self, x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.cumsum(x)

    def look_up(self, key: str) -> str:
        logging.getLogger("station").warning("looking up %s", key)  # unlike what is printed, it outlives a kill that follows at once
        return {"known": "here"}[key]


if __name__ == "__main__":
    fastplug.serve(PythonStation())
