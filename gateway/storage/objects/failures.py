"""The meaning of aiohttp's exceptions for a request to a storage."""

from __future__ import annotations

import os
import socket
import ssl

import aiohttp

from gateway.storage.objects.errors import StorageError
from gateway.storage.objects.hosts import refused_address

#: The beginning of a TLS alert record, as aiohttp quotes the bytes of an answer that is not HTTP.
_TLS_ALERT = r"b'\x15\x03"


def unanswered(error: Exception, authority: str, connect_seconds: float, stall_seconds: float) -> StorageError:
    """Return the error of a request without an answer.

    Parameters
    ----------
    error : Exception
        As aiohttp raised it.
    authority : str
        Host and port of the URL.
    connect_seconds : float
        The bound on connecting.
    stall_seconds : float
        The bound on silence.

    Returns
    -------
    StorageError
    """
    refused = refused_address(error)
    if refused is not None:
        return StorageError(f"the host of its URL is refused: {refused}", is_transient=False)
    is_transient = True
    match error:
        case aiohttp.ConnectionTimeoutError():
            what = f"could not be reached within {connect_seconds:g} s"
        case TimeoutError():
            return stalled(authority, stall_seconds)
        case aiohttp.ClientHttpProxyError(status=status):
            what = f"could not be reached: the proxy answered {status}"
        case aiohttp.ClientProxyConnectionError():
            what = f"could not be reached: the proxy cannot be reached: {_reason(error)}"
        case aiohttp.ClientConnectorError() | ValueError():  # ValueError: a host name that DNS cannot encode
            what = f"could not be reached: {_reason(error)}"
            is_transient = _may_pass(error)
        case aiohttp.ClientResponseError(message=message) if _TLS_ALERT in message:
            what = "answered with TLS: its URL must begin with https://"
            is_transient = False
        case aiohttp.ClientResponseError():
            what = "answered something that is not HTTP"
        case _:
            what = f"closed the connection without an answer{cause(error)}"
    return StorageError(f"the storage at {authority} {what}", is_transient=is_transient)


def stalled(authority: str, stall_seconds: float) -> StorageError:
    """Return the error of a request whose server is silent.

    Parameters
    ----------
    authority : str
        Host and port of the URL.
    stall_seconds : float
        The bound on silence.

    Returns
    -------
    StorageError
    """
    return StorageError(f"the storage at {authority} sent and accepted no byte for {stall_seconds:g} s")


def _reason(error: Exception) -> str:
    """Return why a connection could not be opened, in the operating system's or TLS's words."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        error = error.certificate_error
    elif isinstance(error, aiohttp.ClientConnectorError):
        error = error.os_error
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER":  # its answer is no TLS record
        return "it answered without TLS: its URL must begin with http://"
    if isinstance(error, OSError) and not isinstance(error, (ssl.SSLError, socket.gaierror)) and error.errno:
        return os.strerror(error.errno)
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)) or type(error).__name__


def _may_pass(error: Exception) -> bool:
    """Return whether a connection that could not be opened may be opened later; TLS fails by configuration."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return False
    if isinstance(error, aiohttp.ClientConnectorError):
        error = error.os_error
    # a server that restarts may end the connection in the middle of the handshake
    return not isinstance(error, (ssl.SSLError, ValueError)) or isinstance(error, ssl.SSLEOFError)


def cause(error: Exception) -> str:
    """Return why an open connection broke, as far as the operating system says; aiohttp's texts contain the URL.

    Parameters
    ----------
    error : Exception
        As aiohttp raised it.

    Returns
    -------
    str
        In parentheses after a space, or empty.
    """
    return f" ({os.strerror(error.errno)})" if isinstance(error, OSError) and error.errno else ""
