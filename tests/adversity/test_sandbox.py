"""Plugins under bubblewrap, for real: no network, a read-only root, addresses that differ, and the fast protocol across it."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.adversity.processes import gone, open_pidfds
from tests.adversity.running import Running
from tests.conformance.conftest import plugin_environment
from tests.plugins.sandboxed_api import Sandboxed

import fastplug
from fastplug.contrib.bubblewrap import SOCKETS, Bubblewrap

ROOT = Path(__file__).parents[2]
# The suite takes some two minutes on an idle machine.
SUITE_TIMEOUT_S = 1800
COMMAND = [sys.executable, "-m", "tests.plugins.sandboxed_plugin"]


def _why_not() -> str | None:
    program = shutil.which("bwrap")
    if program is None:
        return "bwrap is not installed (Debian: apt-get install bubblewrap)"
    tried = subprocess.run(
        [program, "--ro-bind", "/", "/", "--unshare-all", "--dev", "/dev", "--proc", "/proc", "true"], capture_output=True
    )
    return f"bwrap cannot make a sandbox here: {tried.stderr.decode().strip()}" if tried.returncode else None


why_not = _why_not()
pytestmark = pytest.mark.skipif(why_not is not None, reason=str(why_not))


def started(transport: fastplug.Transport = "auto", **options: Any) -> fastplug.Client:
    return fastplug.start(
        COMMAND, env=plugin_environment(), name="boxed", transport=transport, runner=options.pop("runner", Bubblewrap()), **options
    )


@pytest.mark.parametrize("transport", ["shm", "socket", "grpc"])
def test_a_plugin_in_a_sandbox(transport: fastplug.Transport, tmp_path: Path) -> None:
    with started(transport) as client:
        assert client.transport == transport
        boxed = client.dispense(Sandboxed)
        pid, parent = boxed.pids()
        assert (pid, parent) != (client.pid, os.getpid())
        assert pid < 10  # a process table of its own
        assert boxed.network_interfaces() == ["lo"]
        refused = boxed.try_to_write(str(Path(__file__).parent / "written"))
        assert refused.startswith("OSError: [Errno 30]"), refused  # read-only file system
        assert boxed.try_to_write("/tmp/mine") == "written"  # its own
        assert not Path("/tmp/mine").exists()
        sent = client.empty(1 << 16)
        sent[:] = np.arange(1 << 16)
        assert np.array_equal(boxed.doubled(sent), sent * 2)
        copies = client.stats()["copies"]
        assert copies == 0 if transport == "shm" else copies > 0  # the memory crosses the sandbox
        if transport == "grpc":
            assert boxed.socket_dir() == SOCKETS
        assert client.pid is not None
        with open_pidfds([client.pid]) as [pidfd]:
            client.kill()
            assert gone(pidfd)


def test_a_plugin_that_dies_in_its_sandbox_is_told_of() -> None:
    with started("shm") as client:
        boxed = client.dispense(Sandboxed)
        with pytest.raises(fastplug.PluginDied, match=r"exit code 7"):
            boxed.leave(7)


def test_killing_the_sandbox_ends_the_plugin() -> None:
    with started("shm") as client:
        boxed = client.dispense(Sandboxed)
        assert boxed.pids()
        assert client.pid is not None
        os.kill(client.pid, signal.SIGKILL)
        error = Running(lambda: [boxed.pids() for _ in iter(int, 1)]).error()  # until this host has noticed
    assert isinstance(error, fastplug.PluginDied)
    assert error.returncode == -signal.SIGKILL


# What these ask is about processes: pids and signals of another namespace (what is killed is the sandbox, and the plugin ends a moment
# later), the host's view of the plugin's memory, files by their inode.
OF_PROCESSES = (
    "what_a_client_is or stopped or stack_also or reads_the_hosts_memory or many_plugins_at_once or mapped_file or file_that_is_shortened"
    " or on_every_lane or dies_in_the_middle"
)


@pytest.mark.long
def test_the_conformance_suite_in_a_sandbox() -> None:
    command = [
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/conformance",
        "-m",
        "(shm or grpc) and not long",
        "-k",
        f"not ({OF_PROCESSES})",
    ]
    environment = {**os.environ, "FASTPLUG_TEST_RUNNER": "bubblewrap"}
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SUITE_TIMEOUT_S)
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout


def test_what_is_visible_and_writable(tmp_path: Path) -> None:
    with started("shm", runner=Bubblewrap(writable=[tmp_path])) as client:
        assert client.dispense(Sandboxed).try_to_write(str(tmp_path / "written")) == "written"
    assert (tmp_path / "written").exists()


def test_an_offer_in_a_sandbox_without_a_runner_that_vouches() -> None:
    """Somebody's own wrapper: nobody vouches, so the plugin speaks gRPC as it would to a stranger."""
    wrapped = [
        "bwrap",
        "--ro-bind",
        "/",
        "/",
        "--dev",
        "/dev",
        "--proc",
        "/proc",
        "--bind",
        os.environ["TMPDIR"],
        os.environ["TMPDIR"],
        "--unshare-pid",
    ]
    with fastplug.start([*wrapped, *COMMAND], env=plugin_environment()) as client:
        assert client.transport == "grpc"
        assert client.dispense(Sandboxed).pids()


def test_a_pinned_script_in_a_sandbox() -> None:
    """Sealed memory files cross it, too."""
    script = Path(__file__).parents[1] / "plugins" / "sandboxed_plugin.py"
    secure = fastplug.SecureConfig(hashlib.sha256(script.read_bytes()).digest())
    with fastplug.start(script, env=plugin_environment(), runner=Bubblewrap(), secure=secure) as client:
        assert (client.transport, client.dispense(Sandboxed).network_interfaces()) == ("shm", ["lo"])


def test_addresses_that_cannot_be_translated() -> None:
    runner = Bubblewrap()(["/bin/true"], env={"PLUGIN_UNIX_SOCKET_DIR": "/host/dir"}, name="boxed")
    assert runner.plugin_to_host("unix", f"{SOCKETS}/plugin1") == ("unix", "/host/dir/plugin1")
    assert runner.host_to_plugin("unix", "/host/dir/plugin1") == ("unix", f"{SOCKETS}/plugin1")
    for network, address in [("tcp", "127.0.0.1:1"), ("unix", "/elsewhere/x"), ("unix", f"{SOCKETS}/../x"), ("unix", "")]:
        with pytest.raises(fastplug.HandshakeError, match="cannot be reached across the sandbox"):
            runner.plugin_to_host(network, address)
    shared = Bubblewrap(network=True)(["/bin/true"], env={"PLUGIN_UNIX_SOCKET_DIR": "/host/dir"}, name="boxed")
    assert shared.plugin_to_host("tcp", "127.0.0.1:1") == ("tcp", "127.0.0.1:1")
