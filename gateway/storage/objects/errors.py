"""Failures of requests to a storage, with texts that name the host and never the path or query of a URL."""

from __future__ import annotations


class StorageError(Exception):
    """A request to a storage failed.

    Parameters
    ----------
    text : str
        Description of the failure.
    is_transient : bool
        Whether the same request may succeed when it is sent again.

    Attributes
    ----------
    retry_after_seconds : float
        How long the storage asked to wait before the next attempt; 0 if it did not.
    """

    def __init__(self, text: str = "", *, is_transient: bool = True) -> None:
        super().__init__(text)
        self.is_transient = is_transient
        self.retry_after_seconds = 0.0


class StatusError(StorageError):
    """The storage answered with a status that is not a success.

    Parameters
    ----------
    status : int
        HTTP status of the answer.
    code : str
        S3's error code, such as ``NoSuchKey``, or what else the answer says; empty if it says nothing.
    authority : str
        Host and port of the URL.
    retry_after_seconds : float
        From its header ``Retry-After``.
    """

    def __init__(self, status: int, code: str, authority: str, retry_after_seconds: float = 0.0) -> None:
        is_fault = status >= 500 and status != 501  # which says that the storage has no such function
        is_transient = status in _TRANSIENT_STATUSES or is_fault or code in _TRANSIENT_CODES
        super().__init__(is_transient=is_transient and code not in _SIGNATURE_CODES)
        self.status = status
        self.authority = authority
        self.retry_after_seconds = retry_after_seconds
        self._code = code

    def __str__(self) -> str:
        code = f" ({self._code})" if self._code else ""
        advice = _ADVICE.get(403 if self._code in _SIGNATURE_CODES else self.status, "")
        return f"the storage answered {self.status}{code} at {self.authority}{advice}"


_ADVICE = {
    **dict.fromkeys((301, 302, 303, 307, 308), "; redirects are not followed"),
    403: "; the URL may have expired, or was signed for another host or method",
    404: "; there is no such object or bucket",
}

#: A server may send 408 when it closes an idle connection; the client then takes it for the answer to this request.
_TRANSIENT_STATUSES = {408, 425, 429}

#: S3 sends the first with status 400, when it received the body too slowly.
_TRANSIENT_CODES = {"RequestTimeout", "SlowDown"}

# Servers built on gofakes3 send some of these with status 400: expired (AccessDenied), unsigned (UnsupportedAlgorithm).
_SIGNATURE_CODES = {
    "AccessDenied",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "RequestExpired",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "UnsupportedAlgorithm",
}
