"""go-plugin's own test binary as the plugin, unmodified, a case each; the names are those of its TestHelperProcess.

Cases that speak net/rpc are driven up to the end of the handshake: what is tested there is the line, the environment, the output, the end.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.adversity.processes import WATCHDOG_S, gone, open_pidfds
from tests.interop.go_tool import go_plugin_sources, go_plugin_test_binary

import fastplug
from fastplug.launch import Launch
from fastplug.process.target import Command
from fastplug.process.warden import warden

pytestmark = pytest.mark.go

HANDSHAKE = fastplug.HandshakeConfig(protocol_version=1, magic_cookie_key="TEST_MAGIC_COOKIE", magic_cookie_value="test")


def argv(case: str, *arguments: str) -> list[str]:
    return [str(go_plugin_test_binary()), "-test.run=TestHelperProcess", "--", case, *arguments]


def config(case: str, *arguments: str, **options: Any) -> fastplug.ClientConfig:
    options.setdefault("handshake", HANDSHAKE)
    options["env"] = {"GO_WANT_HELPER_PROCESS": "1", **options.get("env", {})}
    return fastplug.ClientConfig(target=argv(case, *arguments), name=case, **options)


def started(case: str, *arguments: str, **options: Any) -> fastplug.Client:
    return fastplug.Client(config(case, *arguments, **options)).start()


@contextlib.contextmanager
def launched(case: str, *arguments: str, **options: Any) -> Iterator[Launch]:
    """Up to the line, which is accepted whatever protocol it names; the process then goes on by itself."""
    chosen = config(case, *arguments, allowed_protocols=("netrpc", "grpc"), **options)
    launch = Launch(chosen, Command(tuple(chosen.target or ()), case), case)
    try:
        launch.start()
        launch.negotiate()
        yield launch
    finally:
        if launch.output is not None:
            launch.output.settle(WATCHDOG_S)
            launch.runner.kill()
            launch.output.stop(WATCHDOG_S)
        warden.forget(launch.runner)
        launch.runner.close()
        launch.release()
        shutil.rmtree(launch.socket_dir)


def test_grpc() -> None:
    """test-grpc: calls over its own reflection, and an end by Shutdown that runs to the end of main."""
    with started("test-grpc") as client:
        assert (client.protocol, client.negotiated_version) == ("grpc", 1)
        client.ping()
        service = client.service("grpctest.Test")
        assert service.Double(Input=21).Output == 42
        assert [answer.Output for answer in service.Stream({"Input": number} for number in (3, 5))] == [3, 5]
        runner = client._runner
    assert runner is not None
    assert runner.returncode == 0


def test_grpc_kill_and_reattach(caplog: pytest.LogCaptureFixture) -> None:
    """A Go plugin outlives the host that let go of it, and ends with the next one."""
    first = started("test-grpc")
    reattach = fastplug.parse_reattach(fastplug.format_reattach({"go": first.detach()}))["go"]
    with open_pidfds([reattach.pid]) as [pidfd]:
        with fastplug.reattach(reattach, handshake=HANDSHAKE) as second:
            assert second.service("grpctest.Test").Double(Input=4).Output == 8
        assert gone(pidfd)


def test_a_panic_is_an_error_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "fastplug.plugin.test-grpc"), started("test-grpc") as client:
        with pytest.raises(fastplug.PluginDied) as died:
            client.service("grpctest.Test").Panic(message="the reason")
        assert died.value.returncode == 2
    assert "panic: the reason" in str(died.value)
    lines = [record for record in caplog.records if "goroutine" in record.message or "panic:" in record.message]
    assert lines
    assert {record.levelname for record in lines} == {"ERROR"}


def test_a_plugin_that_is_killed_is_told_of() -> None:
    with started("test-grpc") as client:
        assert client.pid is not None
        service = client.service("grpctest.Test")
        with open_pidfds([client.pid]) as [pidfd]:
            os.kill(client.pid, signal.SIGKILL)
            assert gone(pidfd)
        with pytest.raises(fastplug.PluginDied, match=r"signal 9 \(SIGKILL\)"):
            service.Double(Input=1)


def test_hclog_of_a_go_plugin_keeps_level_module_and_values(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(5, "fastplug.plugin.test-interface-logger-grpc"), started("test-interface-logger-grpc") as client:
        client.service("grpctest.Test").PrintKV(Key="acme", ValueString="of go")
    [record] = [record for record in caplog.records if record.message == "PrintKV called"]
    assert record.levelname == "INFO"
    assert vars(record)["plugin_fields"] == {"acme": "of go"}
    assert isinstance(vars(record)["plugin_timestamp"], float)


def tls_of_its_tests() -> fastplug.Tls:
    """Certificates and key of helperTLSProvider, read where the Go client has put them."""
    text = (go_plugin_sources() / "plugin_test.go").read_text()
    pem = {name: re.search(rf"{name} = `(.*?)`", text, re.DOTALL)[1].encode() + b"\n" for name in ("CACert", "ServerCert", "ServerKey")}  # type: ignore[index]
    return fastplug.Tls(
        certificate_pem=pem["ServerCert"], key_pem=pem["ServerKey"], trusted_pem=pem["CACert"], server_name="cert.myvault.com"
    )


@pytest.mark.parametrize(
    ("case", "offered", "version"),
    [
        ("test-versioned-plugins", (2,), 2),
        ("test-versioned-plugins", (1, 2, 3), 2),
        ("test-proto-upgraded-plugin", (1, 2), 2),
        ("test-proto-upgraded-client", (2, 5), 2),
    ],
)
def test_versions(case: str, offered: tuple[int, ...], version: int) -> None:
    versions: dict[int, dict[str, fastplug.Plugin]] = {number: {} for number in offered}
    with started(case, versioned_plugins=versions, tls=tls_of_its_tests()) as client:
        assert (client.negotiated_version, client.protocol) == (version, "grpc")
        assert client.service("grpctest.Test").Double(Input=version).Output == 2 * version


def test_an_old_version_of_the_same_plugin_speaks_net_rpc() -> None:
    """test-proto-upgraded-plugin: version 1 is net/rpc, which is another protocol for the same program."""
    with launched("test-proto-upgraded-plugin", versioned_plugins={1: {}}) as launch:
        assert launch.runner.returncode is None
    with pytest.raises(fastplug.UnsupportedProtocol, match="netrpc"):
        started("test-proto-upgraded-plugin", versioned_plugins={1: {}})


@pytest.mark.parametrize("case", ["test-versioned-plugins", "test-proto-upgraded-client"])
def test_a_version_that_it_does_not_have(case: str) -> None:
    with pytest.raises(fastplug.IncompatibleVersion, match=r"Plugin version: 2, Client versions: \[7\]"):
        started(case, versioned_plugins={7: {}})


def test_bad_version(tmp_path: Path) -> None:
    """bad-version says 11, and is ended at once although it would never end."""
    with pytest.raises(fastplug.IncompatibleVersion, match=r"Plugin version: 11, Client versions: \[1\]"):
        started("bad-version", str(tmp_path / "written"))
    assert (tmp_path / "written").read_text() == "foo"


def test_invalid_rpc_address() -> None:
    with pytest.raises(fastplug.PluginError, match="lolinvalid"):
        started("invalid-rpc-address")


def test_mock_is_a_plugin_of_another_protocol() -> None:
    """mock prints four fields: net/rpc, on :1234."""
    with pytest.raises(fastplug.UnsupportedProtocol, match="unsupported plugin protocol 'netrpc'"):
        started("mock")
    with launched("mock") as launch:
        assert launch.runner.pid is not None


def test_start_timeout() -> None:
    with pytest.raises(fastplug.HandshakeTimeout, match=r"printed no handshake line within 0\.3 s"):
        started("start-timeout", start_timeout_s=0.3)


def test_cleanup_runs_what_was_deferred(tmp_path: Path) -> None:
    """cleanup is net/rpc: a SIGKILL would leave no file. An orderly end of a gRPC plugin is in test_grpc."""
    with launched("cleanup", str(tmp_path / "output")) as launch:
        assert launch.runner.pid is not None
    assert not (tmp_path / "output").exists()  # net/rpc can be asked to quit over net/rpc only; it was killed


def test_stderr_reaches_its_copy_and_the_log(caplog: pytest.LogCaptureFixture) -> None:
    copy = io.BytesIO()
    with caplog.at_level(logging.INFO, "fastplug.plugin.stderr"), launched("stderr", stderr=copy) as launch:
        assert launch.runner.wait(WATCHDOG_S)
    assert copy.getvalue() == b"HELLO\nWORLD\n"
    assert [record.message for record in caplog.records if record.name == "fastplug.plugin.stderr"] == ["HELLO", "WORLD"]


def test_stderr_json_that_is_no_hclog_is_text(caplog: pytest.LogCaptureFixture) -> None:
    copy = io.BytesIO()
    with caplog.at_level(logging.INFO, "fastplug.plugin.stderr-json"), launched("stderr-json", stderr=copy) as launch:
        assert launch.runner.wait(WATCHDOG_S)
    assert copy.getvalue() == b'["HELLO"]\n12345\n{"a":1}\n'
    assert [record.message for record in caplog.records if "stderr-json" in record.name] == ['["HELLO"]', "12345", '{"a":1}']


def test_level_warn_text(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "fastplug.plugin.level-warn-text"), launched("level-warn-text") as launch:
        assert launch.runner.wait(WATCHDOG_S)
    assert [(record.levelname, record.message) for record in caplog.records if "warn-text" in record.name] == [
        ("WARNING", "test line 98765")
    ]


def test_stdin() -> None:
    """It exits with 0 when it reads hello."""
    read, write = os.pipe()
    os.write(write, b"hello")
    with launched("stdin", stdin=read) as launch:
        assert launch.runner.wait(WATCHDOG_S)
        assert launch.runner.returncode == 0
    os.close(read)
    os.close(write)


@pytest.mark.parametrize("skip", [True, False])
def test_skip_host_env(skip: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLUGIN_TEST_SKIP_HOST_ENV", "foo")
    with launched(f"test-skip-host-env-{str(skip).lower()}", inherit_env=not skip) as launch:
        assert launch.runner.wait(WATCHDOG_S)
        assert launch.runner.returncode == 0


def test_grpc_tls_and_mtls() -> None:
    """test-grpc-tls has certificates of its own; test-mtls answers a host's one-time certificate, with version 2."""
    with started("test-grpc-tls", tls=tls_of_its_tests()) as client:
        assert client.service("grpctest.Test").Double(Input=21).Output == 42
    with pytest.raises(fastplug.TlsRefused):
        started("test-grpc-tls", auto_mtls=True)  # it answers without a certificate
    with started("test-mtls", versioned_plugins={2: {}}, auto_mtls=True) as client:
        assert (client.negotiated_version, client.service("grpctest.Test").Double(Input=4).Output) == (2, 8)


@pytest.mark.parametrize("case", ["mux-grpc-with-old-plugin", "mux-grpc-with-unsupported-plugin"])
def test_a_plugin_that_cannot_multiplex(case: str) -> None:
    with pytest.raises(
        fastplug.UnsupportedProtocol, match="client requested gRPC broker multiplexing but plugin does not support the feature"
    ):
        started(case, grpc_broker_multiplex=True)
