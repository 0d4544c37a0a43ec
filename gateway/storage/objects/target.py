"""A URL as an HTTP request needs it, without changing a byte: any change invalidates a presigned URL."""

from __future__ import annotations

import base64
import ipaddress
import re
import urllib.parse
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from yarl import URL

from gateway.storage.objects.errors import StorageError

_VISIBLE_ASCII = re.compile(r"[!-~]*")


@dataclass(frozen=True, slots=True)
class Target:
    """The target of a request.

    Attributes
    ----------
    url : yarl.URL
        Without user name, password and fragment; path and query as written.
    authority : str
        Host and port as written: a signature covers them as the ``Host`` header.
    authorization : str or None
        ``Authorization`` header for the user name and password in the URL.
    """

    url: URL
    authority: str
    authorization: str | None

    @classmethod
    def parse(cls, url: str) -> Target:
        """Parse `url`.

        Parameters
        ----------
        url : str
            Anything, from a request or the environment.

        Returns
        -------
        Target

        Raises
        ------
        StorageError
            The URL is not http(s), has no host or no valid port, or contains characters that a request line must not
            contain.
        """
        if not is_visible_ascii(url):
            raise StorageError(
                "its URL contains a space, a control character or a non-ASCII character", is_transient=False
            )
        scheme, separator, rest = url.partition("#")[0].partition("://")
        if not separator or scheme.lower() not in ("http", "https"):
            raise _unusable("is neither http nor https")
        end = min((i for i in map(rest.find, "/?") if i >= 0), default=len(rest))
        user_info, _, authority = rest[:end].rpartition("@")
        try:
            parsed = URL(f"{scheme}://{authority}{rest[end:]}", encoded=True)
            host = parsed.raw_host
        except ValueError:
            raise _unusable("has an invalid host or port") from None
        if not host:
            raise _unusable("has no host")
        return cls(parsed, authority, _basic(user_info) if user_info else None)

    @property
    def is_loopback(self) -> bool:
        """Whether the host is this machine by its name or address."""
        host = self.url.raw_host or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host.lower() == "localhost"


def is_visible_ascii(text: str) -> bool:
    """Return whether a text has neither blanks, control characters nor characters beyond ASCII."""
    return _VISIBLE_ASCII.fullmatch(text) is not None


def expiry_of(url: str) -> datetime | None:
    """Return when a presigned URL expires.

    Parameters
    ----------
    url : str
        Of an object.

    Returns
    -------
    datetime or None
        None if the URL does not have it (``X-Amz-Date`` and ``X-Amz-Expires``).
    """
    query = {name.lower(): value for name, value in urllib.parse.parse_qsl(urllib.parse.urlsplit(url).query)}
    date, seconds = query.get("x-amz-date", ""), query.get("x-amz-expires", "")
    if not re.fullmatch(r"[0-9]{1,9}", seconds):
        return None
    try:
        signed = datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        return signed + timedelta(seconds=int(seconds))
    except (ValueError, OverflowError):
        return None


def _basic(user_info: str) -> str:
    return "Basic " + base64.b64encode(urllib.parse.unquote(user_info).encode()).decode("ascii")


def _unusable(what: str) -> StorageError:
    return StorageError(f"its URL {what}", is_transient=False)
