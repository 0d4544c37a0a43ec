"""URLs signed with AWS Signature Version 4 in the query, for the few requests to the embedded server.

Follows "Authenticating Requests: Using Query Parameters" of the S3 API reference; ``host`` is signed, the body is not.
"""

from __future__ import annotations

import hashlib
import hmac
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

ALGORITHM = "AWS4-HMAC-SHA256"


@dataclass(frozen=True, slots=True)
class Signer:
    """Signs URLs of one endpoint with one pair of keys.

    Parameters
    ----------
    endpoint : str
        ``http://host:port``; requests must be sent to exactly this host and port.
    access_key, secret_key : str
        The server's keys.
    region : str
        The server's region.
    """

    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)
    region: str = "us-east-1"

    def url(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        seconds: int = 60,
        now: datetime | None = None,
    ) -> str:
        """Return a signed URL.

        Parameters
        ----------
        method : str
            HTTP method that the URL is for.
        path : str
            Not yet quoted, beginning with a slash.
        query : mapping, optional
            Further parameters, not yet quoted.
        seconds : int
            How long the URL is valid.
        now : datetime, optional
            Time of the signature.

        Returns
        -------
        str
        """
        moment = (now or datetime.now(UTC)).strftime("%Y%m%dT%H%M%SZ")
        day = moment[:8]
        scope = f"{day}/{self.region}/s3/aws4_request"
        parameters = {
            **(query or {}),
            "X-Amz-Algorithm": ALGORITHM,
            "X-Amz-Credential": f"{self.access_key}/{scope}",
            "X-Amz-Date": moment,
            "X-Amz-Expires": str(seconds),
            "X-Amz-SignedHeaders": "host",
        }
        quoted_path = urllib.parse.quote(path, safe="/-_.~")
        quoted_query = "&".join(f"{_quoted(name)}={_quoted(value)}" for name, value in sorted(parameters.items()))
        host = self.endpoint.partition("://")[2]
        canonical = f"{method}\n{quoted_path}\n{quoted_query}\nhost:{host}\n\nhost\nUNSIGNED-PAYLOAD"
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        key = f"AWS4{self.secret_key}".encode()
        for part in (day, self.region, "s3", "aws4_request"):
            key = _hmac(key, part)
        signature = _hmac(key, f"{ALGORITHM}\n{moment}\n{scope}\n{digest}").hex()
        return f"{self.endpoint}{quoted_path}?{quoted_query}&X-Amz-Signature={signature}"


def _quoted(text: str) -> str:
    return urllib.parse.quote(text, safe="-_.~")


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()
