"""A Go host attaches to a fastplug plugin that somebody started by hand, as Terraform does with TF_REATTACH_PROVIDERS."""

from __future__ import annotations

import json
import re
import subprocess
from typing import Any

import pytest
from tests.adversity.processes import WATCHDOG_S
from tests.interop.go_tool import ROOT, built
from tests.interop.matrix import NONCE, plugin_command, plugin_environment
from tests.interop.peer_proto import digest

import fastplug

pytestmark = pytest.mark.go


def test_a_go_host_attaches_to_a_plugin_started_by_hand() -> None:
    environment = {**plugin_environment(), "FASTPLUG_ATTACH": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(plugin_command(), cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as plugin:
        assert plugin.stdout is not None
        said = iter(plugin.stdout.readline, "")
        text = next(match[1] for line in said if (match := re.search(r"the same as JSON: (\{.*\})", line)))
        [config] = fastplug.parse_reattach(text).values()
        assert (config.pid, config.test) == (plugin.pid, True)
        where = f"{config.network}:{config.address}:{config.pid}"
        host = [str(built("peer")), "host", "-attach", where, "-nonce", NONCE, "-do", "ping,unary"]
        with subprocess.Popen(host, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as go:
            # this host says nothing of test mode, so its Kill() asks the plugin to end; Go sees the end when the plugin is reaped
            assert plugin.wait(WATCHDOG_S) == 0
            out, log = go.communicate(timeout=WATCHDOG_S)
        steps: dict[str, Any] = {line["step"]: line.get("found") for line in map(json.loads, out.splitlines())}
        assert steps["ping"] == "pinged", log
        assert (steps["unary"]["pid"], steps["unary"]["digest"]) == (plugin.pid, digest("Unary", plugin.pid, NONCE))
        assert "failed to exit gracefully" not in log
