"""Plugins that run already: let go of and attached to again, in test mode, under a debugger; and what must not be killed."""

from __future__ import annotations

import dataclasses
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.adversity.hosts import run_host
from tests.adversity.processes import WATCHDOG_S, alive, gone, open_pidfds
from tests.adversity.running import Running
from tests.conformance.conftest import plugin_environment
from tests.plugins import stay_plugin
from tests.plugins.stay_api import Stay
from tests.plugins.stay_plugin import Staying

import fastplug
from fastplug import ReattachConfig, ServeTestConfig, Tls
from fastplug.net.tls import one_time_identity
from fastplug.process.attached import AttachedProcess

FaultRow = Callable[..., None]

COMMAND = [sys.executable, "-m", "tests.plugins.stay_plugin", "--stay"]


def started(*arguments: str, transport: fastplug.Transport = "grpc", **options: Any) -> fastplug.Client:
    return fastplug.start([*COMMAND, *arguments], transport=transport, env=plugin_environment(), name="stay", **options)


@pytest.mark.parametrize("network", ["unix", "tcp"])
def test_a_plugin_goes_on_without_its_host_and_another_attaches(network: str, fault_row: FaultRow) -> None:
    first = started(*(["--tcp"] if network == "tcp" else []))
    pid = first.dispense(Stay).pid()
    with open_pidfds([pid]) as [pidfd]:
        text = fastplug.format_reattach({"stay": first.detach()})
        assert alive(pidfd)
        assert first.exited
        with pytest.raises(fastplug.Closed):
            first.ping()
        config = fastplug.parse_reattach(text)["stay"]
        assert (config.protocol, config.protocol_version, config.network, config.pid, config.test) == ("grpc", 1, network, pid, False)
        with fastplug.reattach(config) as second:
            assert (second.pid, second.id, second.protocol, second.negotiated_version) == (pid, str(pid), "grpc", 1)
            stay = second.dispense(Stay)
            stay.log("nobody reads this")  # EPIPE is no reason to end
            assert stay.doubled(21) == 42
            assert second.reattach_config() == config
        assert gone(pidfd)  # kill() asks, and it ends
    if network == "unix":
        assert not Path(config.address).parent.exists()
    with pytest.raises(fastplug.ProcessNotFound, match=f"there is no process {pid}") as missing:
        fastplug.reattach(config, name="acme")
    fault_row("attaching to a plugin that has ended", missing.value, do="Start it again.")


def test_the_fast_protocol_cannot_be_attached_to() -> None:
    with started(transport="shm") as client:
        with pytest.raises(fastplug.ConfigError, match="over a socket that only this process has: use transport='grpc'"):
            client.reattach_config()
        with pytest.raises(fastplug.ConfigError):
            client.detach()
        assert client.dispense(Stay).doubled(1) == 2
    assert client.reattach_config() is None


def test_an_attached_plugin_that_dies_is_told_of() -> None:
    with started() as first:
        config = first.reattach_config()
        assert config is not None
        with fastplug.reattach(config, name="attached") as second:
            stay = second.dispense(Stay)
            os.kill(config.pid, signal.SIGKILL)
            with pytest.raises(fastplug.PluginDied, match=r"plugin 'attached' died.* its exit status is not known"):
                Running(lambda: [stay.doubled(1) for _ in iter(int, 1)]).result()
            assert second.exited


@pytest.fixture
def stranger() -> Iterator[int]:
    """A process that has nothing to do with any plugin."""
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(1000)"])
    yield process.pid
    assert process.poll() is None, "a stranger was killed"
    process.kill()
    process.wait()


def test_a_stranger_is_left_alone(stranger: int, fault_row: FaultRow) -> None:
    with started() as client:
        config = client.reattach_config()
        assert config is not None
        elsewhere = ReattachConfig("grpc", 1, "unix", config.address, stranger)
        with pytest.raises(fastplug.ProcessNotFound, match=f"process {client.pid} listens at .* not process {stranger}") as not_it:
            fastplug.reattach(elsewhere)
        fault_row("attaching with the pid of another process", not_it.value, do="Take the pid from the plugin that runs now.")
        nowhere = ReattachConfig("grpc", 1, "unix", config.address + "x", stranger)
        with pytest.raises(fastplug.ProcessNotFound, match="nobody answers"):
            fastplug.reattach(nowhere)
        # it is the plugin, but not one for this host: it goes on all the same
        with pytest.raises(fastplug.IncompatibleVersion, match=r"speaks application version 7, this host \[1\]"):
            fastplug.reattach(ReattachConfig("grpc", 7, "unix", config.address, config.pid))
        with pytest.raises(fastplug.UnsupportedProtocol, match="netrpc"):
            fastplug.reattach(ReattachConfig("netrpc", 1, "unix", config.address, config.pid))
        assert client.dispense(Stay).doubled(3) == 6


def test_test_mode_serves_several_hosts_until_it_is_cancelled() -> None:
    configs: queue.Queue[ReattachConfig] = queue.Queue()
    cancel = threading.Event()
    server = Running(
        lambda: fastplug.serve(Staying(), test=ServeTestConfig(ready=configs.put, cancel=cancel), handshake=stay_plugin_handshake())
    )
    config = configs.get(timeout=WATCHDOG_S)
    assert config.test
    assert config.pid == os.getpid()
    for number in range(2):
        with fastplug.reattach(config) as client:
            assert client.dispense(Stay).doubled(number) == 2 * number
            assert client.dispense(Stay).pid() == os.getpid()
        assert client.exited  # for this host; the process is the host's own
    cancel.set()
    server.result()
    with pytest.raises(fastplug.ProcessNotFound, match="nobody answers"):
        fastplug.reattach(config)


def stay_plugin_handshake() -> fastplug.HandshakeConfig:
    return fastplug.HandshakeConfig(1, "NO_HOST_SETS_THIS", "and it is not asked for")


def test_a_plugin_under_a_debugger_is_attached_to() -> None:
    source = Path(stay_plugin.__file__)
    line = next(number for number, text in enumerate(source.read_text().splitlines(), 1) if text.strip().startswith("return result"))
    environment = {**os.environ, **plugin_environment(), "FASTPLUG_ATTACH": "1", "PYTHONUNBUFFERED": "1"}
    debugged = [sys.executable, "-m", "pdb", str(source)]
    with subprocess.Popen(debugged, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as pdb:
        assert pdb.stdin is not None
        assert pdb.stdout is not None
        pdb.stdin.write(f"break {line}\ncontinue\n")
        said = iter(pdb.stdout.readline, "")
        text = next(match[1] for line_ in said if (match := re.search(r"the same as JSON: (\{.*\})", line_)))
        with fastplug.reattach(fastplug.parse_reattach(text)["stay_plugin"]) as client:
            call = Running(client.dispense(Stay).doubled, 4)
            pdb.stdin.write("print('at the breakpoint', result)\nresult = 99\nclear 1\ncontinue\n")  # blank answers to no question
            assert any("at the breakpoint 8" in line_ for line_ in said)
            assert call.result() == 99  # what the debugger made of it
            assert client.dispense(Stay).pid() == pdb.pid
        assert pdb.poll() is None  # it is in test mode: kill() has only let go of it
        pdb.terminate()  # ends serve(); pdb would start the program again
        pdb.communicate("quit\n", timeout=WATCHDOG_S)


def test_what_cannot_be_attached_to_says_why() -> None:
    with started(auto_mtls=True) as client:
        with pytest.raises(fastplug.ConfigError, match="its certificates belong to this process"):
            client.reattach_config()
        with pytest.raises(fastplug.ConfigError):
            client.detach()
        assert client.dispense(Stay).doubled(2) == 4
    config = ReattachConfig("grpc", 1, "unix", "/x", 1)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"auto_mtls": True}, "auto_mtls cannot be used"),
        ({"grpc_broker_multiplex": True}, "not supported with Reattach config"),
        ({"secure": fastplug.SecureConfig("00" * 32)}, "only one of Reattach or SecureConfig can be set"),
        ({"transport": "shm"}, "attached to over its listener"),
        ({"target": "x.py"}, "exactly one of target, or reattach must be set"),
    ]
    for options, said in refused:
        with pytest.raises(fastplug.ConfigError, match=said):
            fastplug.ClientConfig(reattach=config, **options)
    with pytest.raises(fastplug.ConfigError, match="without a pid"):
        fastplug.reattach(ReattachConfig("grpc", 1, "unix", "/x"))


def test_a_plugin_without_a_pid_is_found_by_a_runner() -> None:
    """As one in a container, whose host knows it by another name."""
    with started() as client:
        config = client.reattach_config()
        assert config is not None
        found = dataclasses.replace(config, pid=0)
        with fastplug.reattach(found, reattach_runner=lambda _: AttachedProcess(config.pid, name="found")) as second:
            assert second.dispense(Stay).doubled(5) == 10
        assert client.exited


def test_test_mode_with_certificates() -> None:
    identity, stranger = one_time_identity("P-256"), one_time_identity("P-256")
    mutual = Tls(certificate_pem=identity.certificate_pem, key_pem=identity.key_pem, trusted_pem=identity.certificate_pem)
    configs: queue.Queue[ReattachConfig] = queue.Queue()
    cancel = threading.Event()
    server = Running(lambda: fastplug.serve(Staying(), tls_provider=lambda: mutual, test=ServeTestConfig(ready=configs.put, cancel=cancel)))
    config = configs.get(timeout=WATCHDOG_S)
    with fastplug.reattach(config, tls=mutual) as client:
        assert client.dispense(Stay).doubled(8) == 16
    other = Tls(certificate_pem=stranger.certificate_pem, key_pem=stranger.key_pem, trusted_pem=identity.certificate_pem)
    with pytest.raises(fastplug.TlsRefused):
        fastplug.reattach(config, tls=other)
    cancel.set()
    server.result()


def test_an_unmanaged_plugin_outlives_its_host() -> None:
    done = run_host(
        """
        from tests.adversity.test_reattach import COMMAND, plugin_environment
        for managed in (True, False):
            client = fastplug.start(COMMAND, transport="grpc", env=plugin_environment(), name="stay", managed=managed)
            print(fastplug.format_reattach({"stay": client.reattach_config()}), flush=True)
        fastplug.cleanup_clients()
        """
    )
    managed, unmanaged = (fastplug.parse_reattach(line)["stay"] for line in done.stdout.splitlines())
    with pytest.raises(fastplug.ProcessNotFound):
        fastplug.reattach(managed)
    with fastplug.reattach(unmanaged) as client:
        assert client.dispense(Stay).doubled(2) == 4
