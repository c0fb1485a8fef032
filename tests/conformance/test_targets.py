"""What a user may name as a plugin, and that it is what is started."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.conformance.conftest import plugin_environment
from tests.plugins.extra_api import Extra
from tests.plugins.probe_api import Probe

import fastplug

PLUGINS = Path(__file__).parents[1] / "plugins"
SCRIPT = PLUGINS / "probe_plugin.py"

pytestmark = pytest.mark.transports("shm", "socket", "grpc")


def answer(target: Any, transport: str, **options: Any) -> str:
    """The plugin's name, once it has answered."""
    env = {**plugin_environment(), **options.pop("env", {})}
    with fastplug.start(target, transport=transport, env=env, **options) as client:
        assert client.dispense(Probe).add(1) == 11.0
        return client.name


def install(folder: Path, name: str, value: str) -> None:
    """A distribution that declares one entry point, as pip leaves it behind."""
    info = folder / "acme_probe-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-probe\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[fastplug.plugins]\n{name} = {value}\n")


def test_a_script_by_str_and_path(transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert answer(str(SCRIPT), transport) == "probe_plugin"
    assert answer(SCRIPT, transport) == "probe_plugin"
    monkeypatch.chdir(PLUGINS)
    assert answer("probe_plugin.py", transport, name="mine") == "mine"


def test_an_argv(transport: str) -> None:
    assert answer([sys.executable, str(SCRIPT)], transport) == "probe_plugin"
    assert answer((sys.executable, "-u", SCRIPT), transport) == "probe_plugin"


def test_a_program_on_path(transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "acme-probe"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{SCRIPT}"\n')
    program.chmod(0o755)
    assert answer(program, transport) == "acme-probe"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert answer("acme-probe", transport) == "acme-probe"


@pytest.mark.parametrize("value", ["tests.plugins.probe_plugin:ProbePlugin", "entry_made:made", "entry_made:ready", "entry_made:serves"])
def test_an_installed_entry_point(transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """A class, a function that makes one, an instance, and a function that serves by itself."""
    install(tmp_path, "acme-entry", value)
    (tmp_path / "entry_made.py").write_text(
        "import fastplug\n"
        "from tests.plugins.probe_plugin import ProbePlugin\n"
        "ready = ProbePlugin()\n"
        "def made(): return ProbePlugin()\n"
        "def serves(): fastplug.serve(ProbePlugin())\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    path = os.pathsep.join([str(tmp_path), plugin_environment()["PYTHONPATH"]])
    assert answer("acme-entry", transport, env={"PYTHONPATH": path}) == "acme-entry"


def test_another_interpreter_runs_a_script(transport: str) -> None:
    assert answer(SCRIPT, transport, python=sys.executable) == "probe_plugin"
    with pytest.raises(fastplug.ConfigError, match="no such program"):
        answer(SCRIPT, transport, python="no-such-python")


def test_a_class_of_this_process_needs_no_process(transport: str) -> None:
    with fastplug.start("tests.plugins.probe_plugin:ProbePlugin") as client:
        assert (client.transport, client.pid) == ("inproc", None)
        assert client.dispense(Probe).pid() == os.getpid()
    with pytest.raises(fastplug.ConfigError, match="runs in this process"):
        fastplug.start("tests.plugins.probe_plugin:ProbePlugin", transport=transport)  # type: ignore[arg-type]


@pytest.mark.transports("inproc")
@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("tests.plugins.probe_plugin:Nothing", fastplug.StartError),
        ("tests.plugins.no_such_module:It", fastplug.StartError),
        ("tests.plugins.probe_api:Note", fastplug.ConfigError),
        ("tests.plugins.rules_plugin:Inherits", fastplug.ConfigError),
    ],
)
def test_a_class_that_cannot_be_served_says_why(transport: str, target: str, error: type[Exception]) -> None:
    with pytest.raises((error, TypeError) if target.endswith("Note") else error):
        fastplug.start(target)


def test_inproc_needs_a_class(transport: str) -> None:
    with pytest.raises(fastplug.ConfigError, match="module:Class"):
        fastplug.start(SCRIPT, transport="inproc")


def test_without_a_transport_the_fastest_is_taken() -> None:
    with fastplug.open(SCRIPT, Probe, env=plugin_environment()) as probe:
        assert fastplug.client_of(probe).transport == "shm"
    with fastplug.start(SCRIPT, env=plugin_environment(), allowed_protocols=("grpc",)) as client:
        assert client.transport == "grpc"
        assert client.dispense(Probe).add(1) == 11.0


def test_the_environment_is_inherited_and_env_wins(transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACME_ONE", "host")
    monkeypatch.setenv("ACME_TWO", "host")
    with fastplug.start(SCRIPT, transport=transport, env={**plugin_environment(), "ACME_TWO": "mine"}) as client:  # type: ignore[arg-type]
        seen = client.dispense(Probe).variables()
    assert (seen["ACME_ONE"], seen["ACME_TWO"]) == ("host", "mine")
    assert "FASTPLUG_OFFER" not in seen


def test_the_environment_can_be_left_out(transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACME_ONE", "host")
    with fastplug.start(SCRIPT, transport=transport, env=plugin_environment(), inherit_env=False) as client:  # type: ignore[arg-type]
        assert "ACME_ONE" not in client.dispense(Probe).variables()


def test_a_plugin_starts_where_it_is_told(transport: str, tmp_path: Path) -> None:
    told = tmp_path / "hooks"
    env = {**plugin_environment(), "HOOKS_FILE": "hooks"}  # relative to the plugin's folder
    with fastplug.start(PLUGINS / "hooks_plugin.py", transport=transport, env=env, cwd=tmp_path) as client:  # type: ignore[arg-type]
        assert client.dispense(Extra).name() == "entered"
    assert told.read_text().split() == ["enter", "call", "exit"]


def test_another_handshake_is_refused_by_name(transport: str) -> None:
    handshake = fastplug.HandshakeConfig(1, "ACME_COOKIE", "secret")
    with pytest.raises(fastplug.StartError, match=r"magic cookie.*ACME_COOKIE") as caught:
        answer(SCRIPT, transport, handshake=handshake)
    assert "This binary is a plugin" in str(caught.value)
