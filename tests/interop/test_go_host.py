"""An unmodified go-plugin host drives a fastplug plugin that it knows by its .proto alone."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.interop.go_tool import ROOT, built
from tests.plugins.station_api import Station

import fastplug
from fastplug.config import DEFAULT_HANDSHAKE

pytestmark = pytest.mark.go

# The host starts Python and numpy; everything else is milliseconds.
RUN_TIMEOUT_S = 120
SERVICE = "test.station.v1.Station"


def run_host(directory: Path, *calls: tuple[str, dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """The steps that the host printed, and its stderr with the plugin's log."""
    proto = directory / "station.proto"
    proto.write_text(fastplug.proto_of(Station))
    arguments = [argument for method, request in calls for argument in ("-call", f"{SERVICE}/{method}={json.dumps(request)}")]
    cookie = ["-key", DEFAULT_HANDSHAKE.magic_cookie_key, "-value", DEFAULT_HANDSHAKE.magic_cookie_value]
    plugin = [sys.executable, "-m", "tests.plugins.station_plugin"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    ran = subprocess.run(
        [str(built("host")), "-proto", str(proto), *cookie, *arguments, "--", *plugin],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()], ran.stderr


def test_a_go_host_starts_pings_calls_and_stops_a_plugin(tmp_path: Path) -> None:
    x = np.arange(1.0, 6.0)
    array = {"dtype": "float64", "shape": ["5"], "data": base64.b64encode(x.tobytes()).decode()}
    reading = {"place": "oslo", "values": [1.5, 2.5, 5.0], "unit": "UNIT_KELVIN", "taken": "2013-01-01T05:00:00-05:00"}
    steps, log = run_host(
        tmp_path,
        ("Pid", {}),
        ("Scaled", {"x": "6"}),
        ("Scaled", {"x": "6", "factor": 0.5}),
        ("Summary", {"reading": reading}),
        ("Summary", {"reading": {"place": "rome", "values": [1.0]}}),
        ("Cumulated", {"x": array}),
        ("LookUp", {"key": "known"}),
    )
    started, pinged, *called, stopped = steps
    assert started == {"step": "started", "protocol": "grpc", "version": 1}
    assert pinged == {"step": "pinged"}
    answers = [answer["response"] for answer in called]
    assert int(answers[0]["result"]) != os.getpid()
    assert [answers[1], answers[2]] == [{"result": 15}, {"result": 3}]
    assert answers[3]["result"] == {"place": "OSLO", "mean": 3, "unit": "UNIT_KELVIN", "counts": {"values": "3", "year": "2013"}}
    assert answers[4]["result"] == {"place": "ROME", "mean": 1, "unit": "UNIT_CELSIUS", "counts": {"values": "1", "year": "0"}}
    result = answers[5]["result"]
    assert (result["dtype"], result["shape"]) == ("float64", ["5"])
    assert np.array_equal(np.frombuffer(base64.b64decode(result["data"])), np.cumsum(x))
    assert answers[6] == {"result": "here"}
    assert "looking up known" in log
    # "exit status 0" and not a signal: Shutdown ended it, and Kill had nothing to kill.
    assert (stopped["exited"], stopped["state"]) == (True, "exit status 0")


def test_what_goes_wrong_reaches_a_go_host_as_a_status(tmp_path: Path) -> None:
    array = {"dtype": "float32", "shape": ["2"], "data": base64.b64encode(bytes(8)).decode()}
    steps, _ = run_host(tmp_path, ("LookUp", {"key": "unknown"}), ("Cumulated", {"x": array}), ("Cumulated", {}), ("Scaled", {"x": "2"}))
    raised, wrong_dtype, missing, after = steps[2:-1]
    assert (raised["code"], raised["message"]) == ("Unknown", "KeyError: 'unknown'")
    assert wrong_dtype["code"] == "InvalidArgument"
    assert "float32" in wrong_dtype["message"]
    assert missing["code"] == "InvalidArgument"
    assert "'x' is missing" in missing["message"]
    assert after["response"] == {"result": 5}
    assert steps[-1]["state"] == "exit status 0"
