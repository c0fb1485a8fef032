"""Host programs, run as processes of their own: what a host does at its end, in a fork, under Ctrl-C, can be seen from outside only."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

from tests.adversity.processes import WATCHDOG_S
from tests.adversity.running import plugin_environment

__all__ = ["PRELUDE", "environment", "run_host", "source"]

PRELUDE = """
import os, signal, sys, threading
import fastplug
from tests.adversity.running import Running, started
from tests.plugins.faults_api import Faults
"""


def environment() -> dict[str, str]:
    """Without what grpcio itself says of a fork on stderr: these tests are about what a host says."""
    return {**os.environ, **plugin_environment(), "GRPC_VERBOSITY": "NONE"}


def source(code: str) -> list[str]:
    """The argv of a host that runs ``code``."""
    return [sys.executable, "-X", "dev", "-W", "error", "-c", PRELUDE + textwrap.dedent(code)]


def run_host(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a host to its end; what it wrote, and its exit code."""
    return subprocess.run([*source(code), *arguments], env=environment(), capture_output=True, text=True, timeout=WATCHDOG_S)
