"""Certificates and contexts: who is let in, who is refused, and in which words. OpenSSL on both ends, over memory."""

from __future__ import annotations

import contextlib
import dataclasses
import ssl

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from fastplug.certificates import host_tls
from fastplug.config import CURVES, ClientConfig, Tls
from fastplug.errors import ConfigError, HandshakeError
from fastplug.handshake.line import HandshakeLine
from fastplug.net.tls import auto_mtls, certificate_der, check_peer, context, from_json, one_time_identity, refusal, to_json

SAMPLE = one_time_identity()

# Flights of a TLS handshake and of the first read after it; a broken pair must not loop for ever.
ROUNDS_MAX = 10


class End:
    """One side of a connection in memory."""

    def __init__(self, tls: Tls, *, server: bool, made: ssl.SSLContext | None = None) -> None:
        self.tls, self.server = tls, server
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        name = None if server else tls.server_name
        self.tunnel = (made or context(tls, server=server)).wrap_bio(self.incoming, self.outgoing, server_side=server, server_hostname=name)
        self.shaken = False
        self.error: ssl.SSLError | None = None

    def step(self) -> None:
        if self.error is not None:
            return
        try:
            if not self.shaken:
                self.tunnel.do_handshake()
                check_peer(self.tls, self.tunnel)
                self.shaken = True
            self.tunnel.read(1)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self.error = error

    def said(self) -> str:
        return refusal(self.error, server=self.server) if self.error else ""


def shake(client: End, server: End) -> None:
    for _ in range(ROUNDS_MAX):
        client.step()
        server.incoming.write(client.outgoing.read())
        server.step()
        client.incoming.write(server.outgoing.read())


@pytest.fixture(scope="module")
def host() -> Tls:
    return one_time_identity()


@pytest.fixture(scope="module")
def plugin() -> Tls:
    return one_time_identity("P-521")  # as every Go plugin


def pair(host: Tls, plugin: Tls) -> tuple[Tls, Tls]:
    """What each has when they were started together."""
    return auto_mtls(host, certificate_der(plugin.certificate_pem)), auto_mtls(plugin, host.certificate_pem)


def test_two_that_belong_together(host: Tls, plugin: Tls) -> None:
    near, far = pair(host, plugin)
    for client_tls, server_tls in ((near, far), (far, near)):  # both serve, for brokered connections
        client, server = End(client_tls, server=False), End(server_tls, server=True)
        shake(client, server)
        assert (client.error, server.error) == (None, None)
        assert client.shaken
        assert server.shaken
        assert client.tunnel.selected_alpn_protocol() == server.tunnel.selected_alpn_protocol() == "h2"
        assert server.tunnel.version() == "TLSv1.3"


def test_a_peer_without_a_certificate_is_refused(host: Tls, plugin: Tls) -> None:
    near, far = pair(host, plugin)
    client, server = End(dataclasses.replace(near, certificate_pem=b"", key_pem=b""), server=False), End(far, server=True)
    shake(client, server)
    assert not server.shaken
    assert "this side refused the connecting side (TLS client): it has no certificate" in server.said()
    assert "the listening side (TLS server) refused our certificate (alert: certificate required)" in client.said()


def test_a_peer_with_another_certificate_is_refused(host: Tls, plugin: Tls) -> None:
    near, far = pair(host, plugin)
    stranger = one_time_identity()
    for other in (stranger, one_time_identity("P-521")):
        client, server = End(auto_mtls(other, far.certificate_pem), server=False), End(far, server=True)
        shake(client, server)
        assert not server.shaken
        assert "this side refused the certificate of the connecting side" in server.said()
        assert "refused our certificate (alert: " in client.said()
    client, server = End(near, server=False), End(auto_mtls(stranger, near.certificate_pem), server=True)
    shake(client, server)
    assert not client.shaken
    assert "this side refused the certificate of the listening side" in client.said()
    assert "the connecting side (TLS client) refused our certificate (alert: " in server.said()


def test_what_the_right_key_has_signed_is_another_certificate(host: Tls, plugin: Tls) -> None:
    """CA:TRUE lets a peer sign further ones; the one that was agreed on is the only one."""
    near, far = pair(host, plugin)
    pinned = dataclasses.replace(far, peer_certificate_der=certificate_der(one_time_identity().certificate_pem))
    client, server = End(near, server=False), End(pinned, server=True)
    shake(client, server)
    assert not server.shaken
    assert "not the one that was agreed on" in server.said()


def test_a_name_that_is_not_in_the_certificate_is_refused(host: Tls, plugin: Tls) -> None:
    near, far = pair(host, plugin)
    client, server = End(dataclasses.replace(near, server_name="elsewhere"), server=False), End(far, server=True)
    shake(client, server)
    assert not client.shaken
    assert "elsewhere" in client.said()


def test_trusting_nobody_lets_nobody_in(host: Tls, plugin: Tls) -> None:
    near, _ = pair(host, plugin)
    client, server = End(near, server=False), End(plugin, server=True)
    shake(client, server)
    assert not server.shaken
    client, server = End(host, server=False), End(dataclasses.replace(plugin, client_certificate_required=False), server=True)
    shake(client, server)
    assert not client.shaken


def test_one_way_tls_is_possible_when_asked_for(plugin: Tls) -> None:
    server = End(dataclasses.replace(plugin, client_certificate_required=False), server=True)
    client = End(Tls(trusted_pem=plugin.certificate_pem), server=False)
    shake(client, server)
    assert client.shaken
    assert server.shaken


def test_a_peer_that_does_not_speak_tls_is_told_as_such(host: Tls, plugin: Tls) -> None:
    near, far = pair(host, plugin)
    client, server = End(near, server=False), End(far, server=True)
    client.step()
    server.incoming.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9))
    client.incoming.write(b"\0\0\6\4\0\0\0\0\0" + bytes(6))  # SETTINGS of a plain HTTP/2 server
    server.step()
    client.step()
    assert "does not speak TLS" in server.said()
    assert "does not speak TLS" in client.said()


def test_old_tls_is_refused(host: Tls, plugin: Tls) -> None:
    near, far = pair(host, plugin)
    with pytest.deprecated_call():
        made = context(near, server=False)
        made.minimum_version = ssl.TLSVersion.TLSv1_1
        made.maximum_version = ssl.TLSVersion.TLSv1_1
    client, server = End(near, server=False, made=made), End(far, server=True)
    shake(client, server)
    assert not server.shaken


@pytest.mark.parametrize(
    ("error", "words"), [(EOFError(), "closed the connection"), (TimeoutError(), "in time"), (ValueError("x"), "failed: x")]
)
def test_other_ends_of_a_handshake(error: Exception, words: str) -> None:
    assert words in refusal(error, server=False)


@pytest.mark.parametrize("curve", CURVES)
def test_the_certificate_is_what_go_plugin_makes(curve: str) -> None:
    made = x509.load_pem_x509_certificate(one_time_identity(curve).certificate_pem)
    assert made.subject == made.issuer
    assert made.version is x509.Version.v3
    assert (made.not_valid_after_utc - made.not_valid_before_utc).days > 29 * 365
    extensions = made.extensions
    assert extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName) == ["localhost"]
    basic = extensions.get_extension_for_class(x509.BasicConstraints)
    assert (basic.critical, basic.value.ca) == (True, True)
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert (usage.value.digital_signature, usage.value.key_encipherment, usage.value.key_agreement, usage.value.key_cert_sign) == (
        True,
    ) * 4
    assert not usage.value.crl_sign
    both = {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
    assert set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == both


def test_two_identities_differ() -> None:
    first, second = one_time_identity(), one_time_identity()
    assert first.key_pem != second.key_pem
    assert first.certificate_pem != second.certificate_pem


def test_an_unknown_curve() -> None:
    with pytest.raises(ConfigError, match="'P-111'"):
        one_time_identity("P-111")


@pytest.mark.parametrize(
    "text", [b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"\xff" * 600, bytes(70_000)]
)
def test_what_is_no_certificate(text: bytes) -> None:
    with pytest.raises(HandshakeError, match="certificate"):
        certificate_der(text)


@given(st.binary(max_size=700))
def test_any_bytes_are_a_certificate_or_a_handshake_error(data: bytes) -> None:
    with contextlib.suppress(HandshakeError):
        certificate_der(data)


@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4), st.booleans())
def test_a_damaged_certificate_is_refused_or_harmless(damage: list[tuple[int, int]], pem: bool) -> None:
    """From the line of a plugin, or the environment of a host: no error but the tree's, and nobody is let in by it."""
    whole = bytearray(SAMPLE.certificate_pem if pem else certificate_der(SAMPLE.certificate_pem))
    for place, value in damage:
        whole[place % len(whole)] = value
    with contextlib.suppress(HandshakeError):
        near = auto_mtls(SAMPLE, bytes(whole))
        context(near, server=False)
        context(near, server=True)


@given(st.binary(max_size=200), st.booleans())
def test_what_a_line_says_of_a_certificate_ends_in_tls_or_an_error_of_the_tree(cert: bytes, asked: bool) -> None:
    line = HandshakeLine(1, "unix", "/x", "grpc", server_cert=cert)
    try:
        tls = host_tls(ClientConfig(target="x"), SAMPLE if asked else None, line, "x")
    except HandshakeError:
        return
    assert (tls is None) == (not asked and not cert)


def test_a_certificate_with_something_around_it(host: Tls) -> None:
    assert certificate_der(b"a comment\n" + host.certificate_pem + b"\nand more") == certificate_der(host.certificate_pem)


def test_a_record_that_fits_nothing(host: Tls, plugin: Tls) -> None:
    with pytest.raises(ConfigError, match="together"):
        Tls(certificate_pem=host.certificate_pem)
    with pytest.raises(ConfigError, match="server_name"):
        Tls(server_name="")
    for wrong in (
        Tls(certificate_pem=host.certificate_pem, key_pem=plugin.key_pem),
        Tls(certificate_pem=b"x", key_pem=b"y"),
        Tls(trusted_pem=b"\xff"),
        Tls(trusted_pem=b"no certificate"),
    ):
        with pytest.raises(ConfigError, match="cannot be used"):
            context(wrong, server=True)


def test_the_record_crosses_a_control_message(host: Tls, plugin: Tls) -> None:
    near, _ = pair(host, plugin)
    assert from_json(to_json(near)) == near
    assert near.key_pem.decode() not in repr(near)
