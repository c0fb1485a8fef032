"""Who shows which certificate: AutoMTLS and the user's own TLS, on both sides (go-plugin: AutoMTLS, TLSConfig, TLSProvider).

TLS is for gRPC. The fast protocol runs over a socketpair that the plugin inherits: there is nobody else to tell apart.
"""

from __future__ import annotations

from fastplug.config import ClientConfig, ServeConfig, Tls
from fastplug.errors import ConfigError, TlsRefused
from fastplug.handshake.line import HandshakeLine
from fastplug.net.tls import auto_mtls, certificate_der, context, one_time_identity

__all__ = ["host_identity", "host_tls", "plugin_tls"]


def host_identity(config: ClientConfig) -> Tls | None:
    """The host's one-time certificate, if a plugin may come to see it. Making one costs some milliseconds.

    Raises ConfigError for certificates of the user's that cannot be used, before anything is started.
    """
    if config.tls is not None:
        context(config.tls, server=False)
    wanted = config.auto_mtls and config.transport in ("auto", "grpc") and "grpc" in config.allowed_protocols
    return one_time_identity(config.mtls_curve) if wanted else None


def host_tls(config: ClientConfig, identity: Tls | None, line: HandshakeLine, name: str) -> Tls | None:
    """How to connect to the plugin that printed ``line``; None for no TLS. Raises TlsRefused, HandshakeError."""
    if line.protocol != "grpc":
        return None
    if config.tls is not None:
        return config.tls
    if identity is not None:
        if not line.server_cert:
            raise TlsRefused(
                f"auto_mtls is on, and plugin {name!r} answered without a certificate: it cannot do it, or has certificates of its own "
                "(go-plugin: TLSProvider). Give those with tls=, or switch auto_mtls off and let every process of this user in."
            )
        return auto_mtls(identity, line.server_cert)
    if line.server_cert:
        raise TlsRefused(f"plugin {name!r} insists on AutoMTLS, and this host did not ask for it: start it with auto_mtls=True")
    return None


def plugin_tls(config: ServeConfig, client_cert: str) -> tuple[Tls | None, bytes]:
    """How the plugin serves gRPC, and the certificate for field 6 of its line: only for a host that sent its own (PLUGIN_CLIENT_CERT);
    any other Go host would crash on it. Raises HandshakeError for a certificate of the host that is none, ConfigError."""
    if config.tls_provider is not None:
        given = config.tls_provider()
        if not given.certificate_pem:
            raise ConfigError("tls_provider must return a fastplug.Tls with a certificate and its key")
        context(given, server=True)
        return given, b""
    if not client_cert:
        return None, b""
    identity = one_time_identity(config.mtls_curve)
    return auto_mtls(identity, client_cert.encode()), certificate_der(identity.certificate_pem)
