"""Who is let in when a plugin is started with AutoMTLS, or with certificates of its own: real processes, real sockets."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.conformance.conftest import EVENT_TIMEOUT_S, plugin_environment
from tests.conformance.test_grpc_services import COMMAND, Entry, auditing, options
from tests.plugins.ledger_stubs import ledger_pb2, ledger_pb2_grpc
from tests.plugins.sums_api import Sums

import fastplug
from fastplug.net.tls import auto_mtls, certificate_der, context, one_time_identity

AuditorStub, Nothing, Via = ledger_pb2_grpc.AuditorStub, ledger_pb2.Nothing, ledger_pb2.Via
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


@pytest.fixture(scope="module")
def client() -> Iterator[fastplug.Client]:
    with fastplug.start(COMMAND, **options("auto", "auto", auto_mtls=True)) as started:
        yield started


def certificate_of(client: fastplug.Client) -> bytes:
    """What the plugin put into its line."""
    line: Any = client._line
    return bytes(line.server_cert)


def answer(client: fastplug.Client, tls: fastplug.Tls | None) -> bytes:
    """What another process of this user gets from the plugin's socket: b"" or an ssl error for nothing."""
    line: Any = client._line
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(EVENT_TIMEOUT_S)
        raw.connect(line.address)
        if tls is None:
            raw.sendall(PREFACE)
            return raw.recv(1024)
        with context(tls, server=False).wrap_socket(raw, server_hostname="localhost") as connected:
            with contextlib.suppress(ssl.SSLEOFError):  # it is over already; the alert that says why is still to be read
                connected.sendall(PREFACE)
            return connected.recv(1024)


def test_without_tls_the_plugin_says_nothing(client: fastplug.Client) -> None:
    said = answer(client, None)
    assert said[:1] in (b"", b"\x15")  # the end, or a TLS alert; no frame of HTTP/2
    client.ping()


def test_without_a_certificate_nobody_comes_in(client: fastplug.Client) -> None:
    with pytest.raises(ssl.SSLError, match=r"CERTIFICATE_REQUIRED|certificate required"):
        answer(client, fastplug.Tls(trusted_pem=ssl.DER_cert_to_PEM_cert(certificate_of(client)).encode()))
    client.ping()


@pytest.mark.parametrize("curve", ["P-256", "P-521"])
def test_with_another_certificate_nobody_comes_in(client: fastplug.Client, curve: fastplug.Curve) -> None:
    with pytest.raises(ssl.SSLError, match=r"ALERT|alert"):
        answer(client, auto_mtls(one_time_identity(curve), certificate_of(client)))
    client.ping()


def test_the_engines_own_socket_cannot_be_found(client: fastplug.Client) -> None:
    """Behind TLS there is a plain socket between threads of the plugin; its name is gone once the plugin serves."""
    line: Any = client._line
    assert os.listdir(Path(line.address).parent) == [Path(line.address).name]


def script(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "plugin.py"
    path.write_text(textwrap.dedent(text))
    return [sys.executable, str(path)]


def refused(command: Any, **started: Any) -> str:
    """What the host says when it will not have this plugin."""
    with pytest.raises(fastplug.TlsRefused) as raised, fastplug.start(command, **started):
        pass
    return str(raised.value)


def test_a_plugin_that_answers_without_a_certificate(tmp_path: Path) -> None:
    command = script(
        tmp_path,
        """
        import os
        os.environ.pop("PLUGIN_CLIENT_CERT", None)
        from tests.plugins.sums_plugin import PlainSums
        import fastplug
        fastplug.serve(PlainSums())
        """,
    )
    said = refused(command, auto_mtls=True, transport="grpc", env=plugin_environment())
    assert "answered without a certificate" in said


def test_a_plugin_with_another_key_than_it_showed(tmp_path: Path) -> None:
    """As if another program had taken the plugin's socket: it has a certificate, and not the one of the line."""
    command = script(
        tmp_path,
        """
        import dataclasses
        import fastplug, fastplug.certificates
        from fastplug.net.tls import one_time_identity
        from tests.plugins.sums_plugin import PlainSums

        right = fastplug.certificates.plugin_tls

        def wrong(config, client_cert):
            tls, cert = right(config, client_cert)
            other = one_time_identity()
            return dataclasses.replace(tls, certificate_pem=other.certificate_pem, key_pem=other.key_pem), cert

        fastplug.certificates.plugin_tls = wrong  # imported when it is needed
        fastplug.serve(PlainSums())
        """,
    )
    said = refused(command, auto_mtls=True, transport="grpc", env=plugin_environment())
    assert "this side refused the certificate of the listening side" in said


def test_a_plugin_that_refuses_the_host_is_told_at_once(tmp_path: Path) -> None:
    """Under TLS 1.3 it looks connected until the first read; the error comes from start() all the same."""
    command = script(
        tmp_path,
        """
        import os
        from fastplug.net.tls import one_time_identity
        os.environ["PLUGIN_CLIENT_CERT"] = one_time_identity().certificate_pem.decode()
        from tests.plugins.sums_plugin import PlainSums
        import fastplug
        fastplug.serve(PlainSums())
        """,
    )
    said = refused(command, auto_mtls=True, transport="grpc", env=plugin_environment())
    assert "the listening side (TLS server) refused our certificate" in said
    assert "this side refused the certificate of the connecting side" in said  # the plugin's own words, from its log


@pytest.mark.parametrize("trusted", ["the plugin's", "another"])
def test_a_brokered_connection_that_is_refused_says_by_whom(client: fastplug.Client, trusted: str) -> None:
    """The dial says it, not the first call; and the plugin goes on."""
    broker: Any = client.broker
    right = broker._tls
    shown = certificate_of(client) if trusted == "the plugin's" else one_time_identity().certificate_pem
    broker._tls = auto_mtls(one_time_identity(), shown)
    stub = client.dispense("ledger")
    number = stub.Offer(Nothing()).service_id
    try:
        with pytest.raises(fastplug.TlsRefused) as raised:
            broker.dial(number)
    finally:
        broker._tls = right
    asked = trusted == "the plugin's"
    ours, theirs = "the listening side (TLS server) refused our certificate", "this side refused the certificate of the listening side"
    assert str(raised.value).startswith(f"the brokered connection {number}: TLS: {ours if asked else theirs}")
    with broker.dial(stub.Offer(Nothing()).service_id) as channel:
        assert AuditorStub(channel).Audit(Entry(amount=1)).pid == client.pid


def test_a_plugin_that_is_refused_by_its_hosts_brokered_server_says_so(client: fastplug.Client) -> None:
    broker: Any = client.broker
    right, number = broker._tls, broker.next_id()
    broker._tls = auto_mtls(one_time_identity(), certificate_of(client))
    try:
        with broker.accept_and_serve(number, auditing), pytest.raises(grpc.RpcError) as raised:
            client.dispense("ledger").Audited(Via(service_id=number, entry=Entry(amount=1)))
    finally:
        broker._tls = right
    assert f"the brokered connection {number}: TLS: this side refused the certificate of the listening side" in raised.value.details()


def test_auto_mtls_over_the_fast_protocol_is_the_private_socketpair() -> None:
    command = [sys.executable, "-m", "tests.plugins.sums_plugin"]
    with fastplug.open(command, Sums, auto_mtls=True, env=plugin_environment()) as sums:
        assert sums.total(b"\x01\x02") == 3
        assert fastplug.client_of(sums).protocol == "fast"


def test_an_interface_over_grpc_with_auto_mtls() -> None:
    command = [sys.executable, "-m", "tests.plugins.sums_plugin"]
    with fastplug.start(command, auto_mtls=True, transport="grpc", env=plugin_environment()) as client:
        assert client.dispense(Sums).total(b"\x01\x02") == 3


@pytest.fixture
def authority(tmp_path: Path) -> tuple[fastplug.Tls, fastplug.Tls]:
    """Certificates of the user's own: what the host has, and what the plugin reads from files."""
    host, plugin = one_time_identity("P-384"), one_time_identity("P-384")
    files = {"cert.pem": plugin.certificate_pem, "key.pem": plugin.key_pem, "host.pem": host.certificate_pem}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    return fastplug.Tls(certificate_pem=host.certificate_pem, key_pem=host.key_pem, trusted_pem=plugin.certificate_pem), plugin


PROVIDING = """
    from pathlib import Path
    import fastplug
    from tests.plugins.sums_plugin import PlainSums

    here = Path(__file__).parent

    def provide():
        read = lambda name: (here / name).read_bytes()
        return fastplug.Tls(certificate_pem=read("cert.pem"), key_pem=read("key.pem"), trusted_pem=read("host.pem"))

    fastplug.serve(PlainSums(), tls_provider=provide)
"""


def test_tls_that_the_user_gives(tmp_path: Path, authority: tuple[fastplug.Tls, fastplug.Tls]) -> None:
    command, environment = script(tmp_path, PROVIDING), plugin_environment()
    with fastplug.start(command, tls=authority[0], env=environment) as client:
        assert (client.dispense(Sums).total(b"\x01"), client.protocol) == (1, "grpc")
        assert certificate_of(client) == b""
    stranger = one_time_identity()
    said = refused(command, env=environment, tls=fastplug.Tls(trusted_pem=authority[1].certificate_pem))
    assert "refused our certificate (alert: certificate required)" in said
    unknown = fastplug.Tls(certificate_pem=stranger.certificate_pem, key_pem=stranger.key_pem, trusted_pem=authority[1].certificate_pem)
    assert "refused our certificate" in refused(command, env=environment, tls=unknown)
    assert "answered without a certificate" in refused(command, env=environment, auto_mtls=True)


def test_a_plugin_that_insists_on_tls_is_told_from_one_that_died(tmp_path: Path, authority: tuple[fastplug.Tls, fastplug.Tls]) -> None:
    """Without TLS the connection is made, and the first call finds out."""
    with fastplug.start(script(tmp_path, PROVIDING), transport="grpc", env=plugin_environment()) as client:
        with pytest.raises(fastplug.TlsRefused, match="without a word, and runs on: it probably insists on TLS"):
            client.ping()
        assert not client.exited


def test_a_plugin_that_ends_during_the_handshake_has_died(tmp_path: Path) -> None:
    command = script(
        tmp_path,
        """
        import base64, os, socket, sys
        from fastplug.net.tls import certificate_der, one_time_identity
        cert = base64.b64encode(certificate_der(one_time_identity().certificate_pem)).decode().rstrip("=")
        path = os.environ["PLUGIN_UNIX_SOCKET_DIR"] + "/s"
        server = socket.socket(socket.AF_UNIX)
        server.bind(path)
        server.listen()
        print(f"1|1|unix|{path}|grpc|{cert}", flush=True)
        server.accept()[0].recv(1)
        sys.stderr.write("last words\\n")
        os._exit(3)
        """,
    )
    with pytest.raises(fastplug.PluginDied) as raised:
        fastplug.start(command, auto_mtls=True, transport="grpc", env=plugin_environment())
    assert (raised.value.returncode, raised.value.stderr_tail) == (3, ("last words",))


def test_certificates_that_cannot_be_used_start_nothing(tmp_path: Path) -> None:
    host, other = one_time_identity(), one_time_identity()
    wrong = fastplug.Tls(certificate_pem=host.certificate_pem, key_pem=other.key_pem)
    with pytest.raises(fastplug.ConfigError, match="cannot be used"):
        fastplug.start([sys.executable, str(tmp_path / "missing.py")], tls=wrong)


def test_a_host_certificate_that_is_none(tmp_path: Path) -> None:
    command = script(
        tmp_path,
        """
        import os
        os.environ["PLUGIN_CLIENT_CERT"] = "nonsense"
        from tests.plugins.sums_plugin import PlainSums
        import fastplug
        fastplug.serve(PlainSums())
        """,
    )
    with pytest.raises(fastplug.StartError, match="error parsing the peer's certificate"):
        fastplug.start(command, auto_mtls=True, transport="grpc", env=plugin_environment())


def test_configurations_that_contradict_themselves() -> None:
    for wrong in ({"auto_mtls": True, "tls": fastplug.Tls()}, {"tls": fastplug.Tls(), "transport": "shm"}, {"mtls_curve": "P-1"}):
        with pytest.raises(fastplug.ConfigError):
            fastplug.ClientConfig(target="x", **wrong)  # type: ignore[arg-type]
    with pytest.raises(fastplug.ConfigError):
        fastplug.ServeConfig(mtls_curve="P-1")  # type: ignore[arg-type]


def test_nothing_secret_is_written_down(client: fastplug.Client) -> None:
    """Keys go from process to process over a socketpair: no file, no argument, no environment."""
    line: Any = client._line
    stub = client.dispense("ledger")
    assert stub.Put(Entry(amount=1)).pid == client.pid
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            for name in ("environ", "cmdline"):
                try:
                    assert b"PRIVATE KEY" not in Path(entry.path, name).read_bytes()
                except OSError:
                    continue  # it ended, or is another user's
    assert not [path for path in Path(tempfile.gettempdir()).rglob("*key*") if path.is_file()]
    assert certificate_der(ssl.DER_cert_to_PEM_cert(line.server_cert).encode()) == line.server_cert
