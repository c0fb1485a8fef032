"""host -> unaware program -> go-plugin host -> fastplug plugin: environment is inherited, offers are not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.adversity.hosts import environment
from tests.adversity.processes import WATCHDOG_S
from tests.adversity.running import COMMAND, plugin_environment

import fastplug
from fastplug.config import DEFAULT_HANDSHAKE

COOKIE = [DEFAULT_HANDSHAKE.magic_cookie_key, DEFAULT_HANDSHAKE.magic_cookie_value]
GO_HOST = [sys.executable, str(Path(__file__).with_name("unaware_go_host.py")), *COOKIE]

# An outer plugin: it keeps the offer that was made to it in its environment and in an open descriptor, as a program would that knows
# nothing of fastplug, and starts the next one.
UNAWARE = """
import os, subprocess, sys
fd = int(dict(part.split("=") for part in os.environ["FASTPLUG_OFFER"].split(";"))["fd"])
os.set_inheritable(fd, True)
done = subprocess.run({argv!r}, close_fds=False, capture_output=True, text=True)
sys.stderr.write("inner said: " + done.stdout)
sys.exit(done.returncode)
"""


@pytest.mark.parametrize("between", [[], ["/bin/sh", "-c", '"$@"; exit $?', "sh"], ["env"]], ids=["directly", "sh", "env"])
def test_the_inner_plugin_speaks_grpc(between: list[str]) -> None:
    code = UNAWARE.format(argv=[*between, *GO_HOST, *COMMAND])
    with pytest.raises(fastplug.StartError) as caught:  # the outer program is no plugin
        fastplug.start([sys.executable, "-c", code], name="outer", env=plugin_environment())
    assert "inner said: 1|1|unix|" in str(caught.value)
    assert "|grpc|" in str(caught.value)
    assert "exit code 0" in str(caught.value)


def test_a_go_plugin_host_gets_grpc() -> None:
    done = subprocess.run([*GO_HOST, *COMMAND], env=environment(), capture_output=True, text=True, timeout=WATCHDOG_S)
    assert done.returncode == 0, done


@pytest.mark.parametrize(
    "offer",
    [
        "pid={parent};fd=999;fast=1;transport=shm",
        "pid={parent};fd=0;fast=1;transport=shm",
        "pid=1;fd=3;fast=1;transport=shm",
        "pid={parent};fd=3;fast=99;transport=shm",
        "pid={parent};fd=3;fast=1;transport=pigeon",
        "garbage",
        "pid={parent};fd=3;fast=1;transport=shm;" + "x" * 300,
    ],
)
def test_a_void_offer_means_grpc(offer: str) -> None:
    """The parent of the plugin is the go-plugin host; {parent} is made its pid by a shell that becomes it."""
    variables = {**environment(), "OFFER": offer}
    becomes = 'FASTPLUG_OFFER=$(echo "$OFFER" | sed "s/{parent}/$$/"); export FASTPLUG_OFFER; exec "$@"'
    argv = ["/bin/sh", "-c", becomes, "sh", *GO_HOST, *COMMAND]
    done = subprocess.run(argv, env=variables, capture_output=True, text=True, timeout=WATCHDOG_S)
    assert done.returncode == 0, done


def test_the_offer_does_not_reach_what_a_plugin_starts() -> None:
    code = """
import os
import fastplug
from tests.plugins.faults_plugin import Faulty
class Spy(Faulty):
    def echo(self, x):
        import subprocess
        return subprocess.run(["env"], capture_output=True, text=True).stdout
fastplug.serve(Spy())
"""
    from tests.plugins.faults_api import Faults

    with fastplug.open([sys.executable, "-c", code], Faults, env=plugin_environment()) as faults:
        seen = faults.echo("")
    assert "FASTPLUG_OFFER" not in seen
    assert "PLUGIN_UNIX_SOCKET_DIR" not in seen
    assert os.environ.get("FASTPLUG_OFFER") is None
