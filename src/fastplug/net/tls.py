"""TLS as go-plugin has it: one-time certificates, and contexts that accept one peer. Python's ``ssl``, because grpcio refuses P-521.

The contexts are made where the bytes are (``net/relay_main.py``), from the neutral record ``fastplug.config.Tls``.
"""

from __future__ import annotations

import contextlib
import os
import ssl
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fastplug.config import CURVES, Tls
from fastplug.errors import ConfigError, HandshakeError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.x509 import CertificateBuilder

__all__ = [
    "ALPN",
    "auto_mtls",
    "certificate_der",
    "certificate_pem",
    "check_peer",
    "context",
    "from_json",
    "one_time_identity",
    "refusal",
    "to_json",
]

# grpc-go refuses a peer that does not agree on it (since 1.67).
ALPN = ("h2",)
# go-plugin: valid from half a minute ago, for clocks that differ, and for 30 years, for plugins that run as long.
BACKDATED_S = 30
VALID_HOURS = 262_980
# A certificate of go-plugin has 600 bytes; no peer needs 64 KiB for one.
CERTIFICATE_BYTES_MAX = 64 * 1024


def one_time_identity(curve: str = "P-256") -> Tls:
    """A new key and a self-signed certificate for ``localhost``, good for both sides, as go-plugin makes them (mtls.go).

    Args: ``curve`` is P-256 (default: the shortest line, the cheapest handshake, and Go accepts it), P-384, or P-521 as go-plugin has it.
    Raises ConfigError for another one. Nobody is trusted yet: see ``auto_mtls``.
    """
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    kinds: dict[str, tuple[type[ec.EllipticCurve], hashes.SHA256 | hashes.SHA384 | hashes.SHA512]] = {
        "P-256": (ec.SECP256R1, hashes.SHA256()),
        "P-384": (ec.SECP384R1, hashes.SHA384()),
        "P-521": (ec.SECP521R1, hashes.SHA512()),
    }
    if curve not in kinds:
        raise ConfigError(f"there is no curve {curve!r} for certificates; choose one of {', '.join(CURVES)}")
    kind, digest = kinds[curve]
    key = ec.generate_private_key(kind())
    certificate = _builder(key.public_key()).sign(key, digest)
    return Tls(
        certificate_pem=certificate.public_bytes(Encoding.PEM),
        key_pem=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )


def _builder(key: EllipticCurvePublicKey) -> CertificateBuilder:
    """All of the certificate but its signature. Both sides serve and dial brokered connections with it, hence both usages."""
    import datetime as dt

    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "fastplug"), x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=True,
        data_encipherment=False,
        key_agreement=True,
        key_cert_sign=True,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        x509.CertificateBuilder(subject_name=name, issuer_name=name, public_key=key, serial_number=x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(seconds=BACKDATED_S))
        .not_valid_after(now + dt.timedelta(hours=VALID_HOURS))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def auto_mtls(own: Tls, peer_certificate: bytes) -> Tls:
    """``own`` (of ``one_time_identity``), trusting the one peer that has ``peer_certificate``: PEM as in PLUGIN_CLIENT_CERT, or DER as
    in field 6 of the line. Raises HandshakeError when it is no certificate."""
    der = certificate_der(peer_certificate)
    return Tls(certificate_pem=own.certificate_pem, key_pem=own.key_pem, trusted_pem=certificate_pem(der), peer_certificate_der=der)


def certificate_der(certificate: bytes) -> bytes:
    """The DER of the first certificate in PEM or DER. Raises HandshakeError when there is none that OpenSSL can read."""
    if len(certificate) > CERTIFICATE_BYTES_MAX:
        raise HandshakeError(f"the peer's certificate has {len(certificate)} bytes; more than {CERTIFICATE_BYTES_MAX} is none")
    begin, end = certificate.find(b"-----BEGIN CERTIFICATE-----"), certificate.find(b"-----END CERTIFICATE-----")
    try:
        text = certificate[begin : end + len(b"-----END CERTIFICATE-----")].decode("ascii")
        der = ssl.PEM_cert_to_DER_cert(text) if 0 <= begin < end else certificate
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=der)
    except (ValueError, ssl.SSLError) as error:
        raise HandshakeError(f"error parsing the peer's certificate: {error}. Report this to the author of the peer.") from error
    return der


def certificate_pem(der: bytes) -> bytes:
    """DER as PEM."""
    return ssl.DER_cert_to_PEM_cert(der).encode("ascii")


def to_json(tls: Tls) -> dict[str, Any]:
    """``tls`` as JSON values, for a control message; the private key is in it."""
    return {
        "certificate": tls.certificate_pem.decode("ascii"),
        "key": tls.key_pem.decode("ascii"),
        "trusted": tls.trusted_pem.decode("ascii"),
        "peer": tls.peer_certificate_der.hex(),
        "name": tls.server_name,
        "required": tls.client_certificate_required,
    }


def from_json(values: Mapping[str, Any]) -> Tls:
    """The inverse of ``to_json``."""
    return Tls(
        certificate_pem=values["certificate"].encode("ascii"),
        key_pem=values["key"].encode("ascii"),
        trusted_pem=values["trusted"].encode("ascii"),
        peer_certificate_der=bytes.fromhex(values["peer"]),
        server_name=values["name"],
        client_certificate_required=values["required"],
    )


def context(tls: Tls, *, server: bool, alpn: Sequence[str] = ALPN) -> ssl.SSLContext:
    """The context of one side. It always verifies its peer, except that a server may be told not to ask for a certificate.

    Raises ConfigError when certificate, key and trust do not fit.
    """
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    if alpn:
        made.set_alpn_protocols(list(alpn))
    if server:
        made.num_tickets = 0  # nothing is resumed; a ticket would be one more packet and one more wake-up
        made.verify_mode = ssl.CERT_REQUIRED if tls.client_certificate_required else ssl.CERT_NONE
    try:
        if tls.trusted_pem:
            made.load_verify_locations(cadata=tls.trusted_pem.decode("ascii"))
        if tls.peer_certificate_der:
            made.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the one certificate is the whole chain, whoever signed it
        if tls.certificate_pem:
            with _as_file(tls.key_pem + b"\n" + tls.certificate_pem) as path:
                made.load_cert_chain(path)
    except (ValueError, ssl.SSLError) as error:
        raise ConfigError(f"the TLS certificate, its key or the trusted certificates cannot be used: {error}") from error
    return made


@contextlib.contextmanager
def _as_file(pem: bytes) -> Iterator[str]:
    """A path to ``pem`` that no other user can read: ``ssl`` loads keys from files only."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("fastplug-key", os.MFD_CLOEXEC)
        try:
            os.write(fd, pem)
            yield f"/proc/self/fd/{fd}"
        finally:
            os.close(fd)
    else:
        with tempfile.NamedTemporaryFile(prefix="fastplug-key-") as file:  # 0600
            file.write(pem)
            file.flush()
            yield file.name


def check_peer(tls: Tls, connected: ssl.SSLObject | ssl.SSLSocket) -> None:
    """After the handshake: the peer's leaf is the one that was agreed on, not one that its key has signed. Raises ssl.SSLError."""
    if tls.peer_certificate_der and connected.getpeercert(binary_form=True) != tls.peer_certificate_der:
        raise ssl.SSLCertVerificationError("its certificate is not the one that was agreed on")


# What OpenSSL calls an alert that came from the peer.
_ALERTS = ("SSLV3_ALERT_", "TLSV1_ALERT_", "TLSV13_ALERT_")
# Alerts that are about our certificate; any other one is a failure of its own.
_ABOUT_CERTIFICATE = ("CERTIFICATE", "UNKNOWN_CA", "HANDSHAKE_FAILURE", "ACCESS_DENIED", "DECRYPT_ERROR")
_NOT_TLS = frozenset(("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNEXPECTED_MESSAGE", "UNKNOWN_PROTOCOL", "PACKET_LENGTH_TOO_LONG"))


def refusal(error: BaseException, *, server: bool) -> str:
    """The sentence for a handshake, or a first read after it, that failed: which side refused what, and what to do."""
    peer = "the connecting side (TLS client)" if server else "the listening side (TLS server)"
    reason = (getattr(error, "reason", None) or "").upper()
    if isinstance(error, ssl.SSLCertVerificationError):
        why = getattr(error, "verify_message", None) or str(error.args[-1] if error.args else error)
        return f"TLS: this side refused the certificate of {peer}: {why}. Host and plugin do not belong together."
    if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return f"TLS: this side refused {peer}: it has no certificate. Switch auto_mtls on there, or give it a certificate (tls=)."
    alert = next((reason.removeprefix(kind) for kind in _ALERTS if reason.startswith(kind)), None)
    if alert is not None:
        what = "our certificate" if any(word in alert for word in _ABOUT_CERTIFICATE) else "the connection"
        return (
            f"TLS: {peer} refused {what} (alert: {alert.replace('_', ' ').lower()}). It expects another certificate, or knows another key."
        )
    if reason in _NOT_TLS:
        return f"TLS: {peer} does not speak TLS ({reason.replace('_', ' ').lower()}). Use auto_mtls (or tls=) at both ends, or at neither."
    if isinstance(error, ssl.SSLEOFError | ConnectionError | EOFError):
        return f"TLS: {peer} closed the connection during the handshake, without saying why. It refused us, ended, or does not speak TLS."
    if isinstance(error, TimeoutError):
        return f"TLS: {peer} did not finish the handshake in time. It hangs, or does not speak TLS."
    return f"TLS: the handshake with {peer} failed: {error}"
