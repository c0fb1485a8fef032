"""Many starts and stops in a row under AutoMTLS: each ended by Shutdown, none by a signal, and nothing is left of any of them."""

from __future__ import annotations

import os
import sys
import tempfile
from collections import Counter

import pytest
from tests.conformance.conftest import plugin_environment
from tests.conftest import _descriptors, _files, _processes
from tests.plugins.stay_api import Stay

import fastplug

COMMAND = [sys.executable, "-m", "tests.plugins.stay_plugin"]
# What a plugin that was told to go may take before it is ended by force: far more than it needs, so that a slow machine makes no signal.
STOP_TIMEOUT_S = 60.0


def starts_and_stops(count: int, **options: object) -> Counter[str]:
    """How each of them ended."""
    ends: Counter[str] = Counter()
    for number in range(count):
        client = fastplug.start(COMMAND, env=plugin_environment(), name="stay", stop_timeout_s=STOP_TIMEOUT_S, **options)  # type: ignore[arg-type]
        assert client.dispense(Stay).doubled(number) == 2 * number
        runner = client._runner
        client.kill()
        assert runner is not None
        ends["ended by Shutdown" if runner.returncode == 0 else f"ended with {runner.returncode}"] += 1
    return ends


def test_a_few_starts_and_stops() -> None:
    assert starts_and_stops(3, transport="grpc", auto_mtls=True) == {"ended by Shutdown": 3}


@pytest.mark.long
def test_500_starts_and_stops_with_auto_mtls() -> None:
    starts_and_stops(1, transport="grpc", auto_mtls=True)  # what stays loaded for good, stays from the first on
    before = {thing for look in (_processes, _descriptors, _files) for thing in look()}
    folders = set(os.listdir(tempfile.gettempdir()))
    ends = starts_and_stops(500, transport="grpc", auto_mtls=True)
    print(dict(ends))
    assert ends == {"ended by Shutdown": 500}
    left = {thing for look in (_processes, _descriptors, _files) for thing in look()} - before
    assert not left
    assert set(os.listdir(tempfile.gettempdir())) == folders
