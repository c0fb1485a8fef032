"""The plugin: an implementation, and one call that serves it. print() and logging are safe: they go to the host's log."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from dsp_api import Dsp, Peak

import fastplug

__all__ = ["NumpyDsp"]


class NumpyDsp(Dsp):
    def total(self, x: npt.NDArray[np.float64]) -> float:
        return float(x.sum())  # x is a read-only view of the host's memory

    def fft(self, x: npt.NDArray[np.float64]) -> npt.NDArray[np.complex128]:
        spectrum = fastplug.empty(x.shape, np.complex128)  # born in shared memory: returned without a copy
        spectrum[:] = np.fft.fft(x)
        return spectrum

    def peak(self, x: npt.NDArray[np.float64], rate_hz: float = 1.0) -> Peak:
        power = np.abs(np.fft.rfft(x)) ** 2
        power[0] = 0.0  # the mean of the signal is no frequency
        strongest = int(power.argmax())
        return Peak(strongest * rate_hz / x.size, float(power[strongest]))


if __name__ == "__main__":
    fastplug.serve(NumpyDsp())
