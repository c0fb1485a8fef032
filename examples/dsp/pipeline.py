"""The host: opens the plugin, calls it, and shows what a wrong argument and an error in the plugin look like."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from dsp_api import Dsp

import fastplug

PLUGIN = Path(__file__).with_name("dsp_plugin.py")
RATE_HZ = 1000.0


def main() -> None:
    time_s = np.arange(8192) / RATE_HZ
    signal = np.sin(2 * np.pi * 50 * time_s) + 0.3 * np.sin(2 * np.pi * 120 * time_s)

    with fastplug.open(PLUGIN, Dsp) as dsp:  # one process, one interface
        print("total", dsp.total(signal))  # an ordinary array: one copy
        print("strongest", dsp.peak(signal, rate_hz=RATE_HZ))

    with fastplug.start(PLUGIN, arena_limit_bytes=1 << 28) as client:  # the same with a Client in hand
        dsp = client.dispense(Dsp)
        x = client.empty(signal.shape, np.float64)  # born in shared memory: sent without a copy
        x[:] = signal
        assert np.allclose(dsp.fft(x), np.fft.fft(signal))
        try:
            dsp.peak(np.empty(0), rate_hz=RATE_HZ)
        except ValueError as error:  # raised in the plugin, with its traceback
            print("the plugin says:", type(error).__name__, "-", str(error).splitlines()[0])
        with fastplug.deadline(after_s=5.0):
            print("transport", client.transport, "pid", client.pid, "total", dsp.total(x))


if __name__ == "__main__":
    main()
