"""TLS: certificate and key of the gateway's own port, trust of clients on this machine, and the gateway as a client of
the broker.

A `uid` is that of `gateway.process.private_file.read_private`.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from gateway.core.errors import ConfigurationError
from gateway.core.settings import Settings
from gateway.process.private_file import check_private


def server_context(settings: Settings, uid: int) -> ssl.SSLContext | None:
    """Return the TLS context of the server, or None if the settings name no certificate.

    Raises
    ------
    ConfigurationError
        A file cannot be used.
    """
    if settings.tls_cert_file is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)  # TLS 1.2 and newer
    load_certificate(context, settings, "tls_cert_file", uid)
    return context


def broker_context(settings: Settings, uid: int) -> ssl.SSLContext | None:
    """Return the TLS context of connections to the NATS servers of a cluster, or None without one.

    Raises
    ------
    ConfigurationError
        A file cannot be used.
    """
    credentials = settings.cluster_credentials_file
    if credentials is not None:
        check_private(credentials, uid, f"the credentials {credentials} (CLUSTER_CREDENTIALS_FILE)")
    if "tls://" not in settings.cluster_url:
        return None
    is_private = settings.cluster_tls_ca_file is not None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if is_private else ssl.create_default_context()
    load_broker_files(context, settings, uid)
    return context


def members_context(settings: Settings) -> ssl.SSLContext:
    """Return the TLS context of connections to other members of a cluster.

    Raises
    ------
    ConfigurationError
        The file of authorities cannot be used.
    """
    context = ssl.create_default_context()
    _load_authorities(context, settings)
    return context


def load_broker_files(context: ssl.SSLContext, settings: Settings, uid: int) -> None:
    """Load the files of the settings into the context of a client of the NATS servers, for its next connection.

    Raises
    ------
    ConfigurationError
        A file cannot be used.
    """
    _load_authorities(context, settings)
    if settings.cluster_tls_cert_file is not None:
        load_certificate(context, settings, "cluster_tls_cert_file", uid)


def _load_authorities(context: ssl.SSLContext, settings: Settings) -> None:
    authorities = settings.cluster_tls_ca_file
    if authorities is not None:
        try:
            context.load_verify_locations(authorities)
        except OSError as error:
            reason = "no certificates in PEM" if isinstance(error, ssl.SSLError) else error.strerror
            raise ConfigurationError(f"the authorities {authorities} (CLUSTER_TLS_CA_FILE): {reason}") from None


def load_certificate(context: ssl.SSLContext, settings: Settings, setting: str, uid: int) -> None:
    """Load the certificate that a setting names, and its key, into a context, for its next connection.

    Raises
    ------
    ConfigurationError
        A file cannot be used; the context is unchanged.
    """
    of_key = setting.replace("cert", "key")
    cert, key = getattr(settings, setting), getattr(settings, of_key)
    if cert is None or key is None:
        raise AssertionError("the settings were checked")
    try:
        cert.read_bytes()  # OpenSSL does not say which of the two files is missing
    except OSError as error:
        raise ConfigurationError(f"the certificate {cert} ({setting.upper()}): {error.strerror}") from None
    check_private(key, uid, f"the private key {key} ({of_key.upper()})")
    try:
        # OpenSSL loads a certificate before it checks the key: a wrong pair must not reach the context in use
        for target in (ssl.SSLContext(context.protocol), context):
            target.load_cert_chain(cert, key, password=_no_password)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error)
        raise ConfigurationError(
            f"{cert} ({setting.upper()}) and {key} ({of_key.upper()}) are not a certificate chain and its key without "
            f"a password, both in PEM: {reason}"
        ) from None


def local_trust(certificate: str) -> ssl.SSLContext | None:
    """Return the TLS context of a client of a gateway on this machine, or None if that gateway has no certificate.

    Such a client connects to an address that need not be in the certificate, but it has the file: it accepts exactly
    this certificate, and no authority.

    Parameters
    ----------
    certificate : str
        Path of the gateway's certificate, or an empty text.

    Raises
    ------
    OSError
        The file cannot be read, or has no certificate.
    """
    if not certificate:
        return None
    leaf = Path(certificate).read_text().partition("-----END CERTIFICATE-----")
    context = ssl.create_default_context(cadata="".join(leaf[:2]) + "\n")
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _no_password() -> str:
    raise ValueError("the key has a password")
