"""The client's HTTP: one connection per request, bodies streamed both ways, errors as typed exceptions.

It uses `http.client`, because the command line must start fast and the client should have no dependency.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import json
import os
import socket
import ssl
import tempfile
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gateway.client.errors import GatewayRefused, GatewayUnreachable, VersionMismatch
from gateway.client.tables import TableFiles
from gateway.core.version import VERSION

CONNECT_SECONDS = 10.0
CHUNK_BYTES = 1 << 20

#: A header of its own: a proxy may replace ``Server``.
VERSION_HEADER = "X-Gateway-Version"
MAX_JSON_BYTES = 256 << 20
_JSON = MappingProxyType({"Content-Type": "application/json"})


class GatewayHttp:
    """Requests to one gateway.

    Raises
    ------
    ValueError
        The URL is not ``http(s)://host[:port][/path]``, or the token has a control character.
    """

    def __init__(self, url: str, token: str, timeout_seconds: float, trust: ssl.SSLContext | None = None) -> None:
        try:
            parts = urllib.parse.urlsplit(url)
            self._port = parts.port
            self._host = parts.hostname or ""
            self._host.encode("idna")  # here and not first in the socket, whose error is no OSError
        except ValueError as error:
            raise ValueError(f"not a gateway's URL: {url!r}: {error}; expected http://host:port") from None
        has_host = self._host and " " not in parts.netloc
        if parts.scheme not in ("http", "https") or not has_host or parts.query or parts.fragment:
            raise ValueError(f"not a gateway's URL: {url!r}; expected http://host:port")
        if not token.isprintable():  # http.client would show the token in its error
            raise ValueError("the token (AUTH_TOKEN) has a line break or another control character")
        self._secure = parts.scheme == "https"
        self._base_path = urllib.parse.quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~")
        self._token = token
        self._trust = trust
        self._timeout_seconds = timeout_seconds
        self._is_version_known = False
        self._shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"

    def get_json(self, path: str) -> dict[str, Any]:
        """Return the JSON object of a GET request."""
        with self._answer("GET", path) as answer:
            return _success(answer)

    def post_json(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send a JSON object in a POST request and return the one of the response."""
        with self._answer("POST", path, json.dumps(body).encode(), _JSON) as answer:
            return _success(answer)

    def delete_json(self, path: str) -> dict[str, Any]:
        """DELETE and return the JSON object of the response.

        Raises
        ------
        GatewayRefused
            The status is not 2xx.
        """
        with self._answer("DELETE", path) as answer:
            return _success(answer)

    def post_job(self, request: dict[str, Any], files: TableFiles, *, wait: bool) -> dict[str, Any]:
        """Send a job with its tables and return the response, also that of a failed job.

        Parameters
        ----------
        request : dict
            The JSON part.
        files : TableFiles
            Streamed as multipart parts; without tables the request is plain JSON.
        wait : bool
            Whether to wait until the job is finished, on a connection that may be silent for that time. Otherwise the
            gateway is asked to respond with 202 at once (RFC 7240, section 4.1).

        Raises
        ------
        GatewayRefused
            The gateway did not accept the job.
        VersionMismatch
            The gateway's version does not fit the client's; nothing was sent.
        """
        if not self._is_version_known:  # the job's own response may come after hours
            with self._answer("GET", "/") as answer:
                answer.read(MAX_JSON_BYTES)
            self._is_version_known = True
        content = json.dumps(request).encode()
        if files:
            body: bytes | Iterator[bytes] = files.multipart(content)
            content_type, length = files.content_type, files.multipart_bytes(content)
        else:
            body, content_type, length = content, "application/json", len(content)
        headers = {"Content-Type": content_type, "Content-Length": str(length)}
        if not wait:
            headers["Prefer"] = "respond-async"
        with self._answer("POST", "/v1/execute", body, headers, patient=True) as answer:
            found = _json(answer)
            # a refusal has an exit code as well, but no execution
            if "execution_id" in found or 200 <= answer.status < 300:
                return found
            raise GatewayRefused.of(answer.status, found)

    def lines(self, path: str, headers: Mapping[str, str]) -> Iterator[str]:
        """Yield the lines of a response that has no end, without line ends.

        Raises
        ------
        GatewayRefused
            The status is not 200.
        GatewayUnreachable
            The connection broke, or was silent for the client's timeout.
        """
        with self._answer("GET", path, headers=headers) as answer:
            if answer.status != 200:
                raise GatewayRefused.of(answer.status, _json(answer))
            for line in answer:
                yield line.decode("utf-8", "replace").rstrip("\r\n")

    def download(self, path: str, target: Path | None, sha256: str | None) -> bytes | None:
        """Download to the file `target`, which appears complete or not at all; without a target return the content.

        Raises
        ------
        GatewayUnreachable
            The download is too short or has another checksum.
        """
        with self._answer("GET", path) as answer:
            if answer.status != 200:
                raise GatewayRefused.of(answer.status, _json(answer))
            if target is None:
                content = answer.read()
                _check(hashlib.sha256(content), sha256)
                return content
            with _replacing(target) as file:
                digest = hashlib.sha256()
                while chunk := answer.read(CHUNK_BYTES):
                    digest.update(chunk)
                    _write(file, chunk, target)
                if answer.length:  # http.client reports no error for a short body that is read in pieces
                    raise GatewayUnreachable(
                        f"the connection to {self._shown} broke with {answer.length} bytes to come"
                    )
                _check(digest, sha256)
            return None

    @contextmanager
    def _answer(
        self,
        method: str,
        path: str,
        body: bytes | Iterator[bytes] | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
        *,
        patient: bool = False,
    ) -> Iterator[http.client.HTTPResponse]:
        sent: dict[str, str | bytes] = {
            "Accept": "application/json",
            "User-Agent": "transform-gateway-client",
            "Connection": "close",
            **headers,
        }
        if self._token:
            sent["Authorization"] = f"Bearer {self._token}".encode()  # http.client would encode a text as Latin-1
        connection = self._connection()
        try:
            connection.connect()
            connection.sock.settimeout(None if patient else self._timeout_seconds)
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            # a refusal (401, 413) may come and the connection close before the whole body is sent: read the response
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, self._base_path + path, body, sent)
            with connection.getresponse() as answer:
                self._check_version(answer.headers.get(VERSION_HEADER))
                yield answer
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.filename is not None:
                raise  # about a file of the caller, not the network
            raise GatewayUnreachable(f"no answer from {self._shown}: {_reason(error)}") from None
        finally:
            connection.close()

    def _check_version(self, version: str | None) -> None:
        """Refuse a gateway of another API; a response without a version comes from a proxy."""
        if version is None or "unknown" in version + VERSION:  # a source tree that was never installed has none
            return
        if _compatible(version) != _compatible(VERSION):
            wanted = ".".join(_compatible(version))
            raise VersionMismatch(
                f"the gateway at {self._shown} has version {version} and this client {VERSION}, which do not work "
                f"together: install `transform-gateway=={wanted}.*`, or upgrade the gateway"
            )

    def _connection(self) -> http.client.HTTPConnection:
        if self._secure:
            context = self._trust or ssl.create_default_context()
            return http.client.HTTPSConnection(self._host, self._port, timeout=CONNECT_SECONDS, context=context)
        return http.client.HTTPConnection(self._host, self._port, timeout=CONNECT_SECONDS)


def _compatible(version: str) -> tuple[str, ...]:
    """Return the part of a version that is the same in all that work together (semver.org, sections 4 and 8)."""
    major, minor, *_ = [*version.split("."), ""]
    return (major, minor) if major == "0" else (major,)


def _success(answer: http.client.HTTPResponse) -> dict[str, Any]:
    body = _json(answer)
    if not 200 <= answer.status < 300:
        raise GatewayRefused.of(answer.status, body)
    return body


def _json(answer: http.client.HTTPResponse) -> dict[str, Any]:
    content = answer.read(MAX_JSON_BYTES)
    try:
        body = json.loads(content)
    except ValueError:
        body = None
    if isinstance(body, dict):
        return body
    # of another server, or of a proxy before a gateway that does not answer; the job may run, so it is no refusal
    raise http.client.HTTPException(f"its response ({answer.status}) is not that of a gateway")


def _check(digest: hashlib._Hash, sha256: str | None) -> None:
    if sha256 is not None and digest.hexdigest() != sha256:
        raise GatewayUnreachable("the result arrived damaged: its checksum differs from the gateway's")


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, ConnectionResetError | http.client.RemoteDisconnected | http.client.IncompleteRead):
        return "the connection broke"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {error.verify_message.rstrip('.')}"
    if isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER":  # its answer is no TLS record
        return "it answered without TLS: the URL must begin with http://"
    if isinstance(error, http.client.BadStatusLine):
        is_tls = str(error).startswith("\x15\x03")  # a TLS alert record
        return "it answered with TLS: the URL must begin with https://" if is_tls else "its answer is not HTTP"
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def _write(file: FileIO, data: bytes, target: Path) -> None:
    """Write all of the data to the draft of a file."""
    view = memoryview(data)
    with _about(target):
        while view:
            view = view[file.write(view) :]


@contextmanager
def _about(target: Path) -> Iterator[None]:
    """Add the requested file's name to an error of the disk; an error without a name counts as one of the network."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(target)) from None


@contextmanager
def _replacing(target: Path) -> Iterator[FileIO]:
    """Yield a new file in the directory of `target` that replaces it at the end, or is removed after an exception."""
    if target.exists() and not target.is_file():  # root could replace /dev/null
        raise OSError(errno.EEXIST, "is not a regular file", str(target))
    with _about(target):
        fd, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    draft = Path(name)
    try:
        with FileIO(fd, "wb") as file:  # unbuffered: a full disk fails in a write, not once more in the close
            yield file
        umask = os.umask(0)
        os.umask(umask)
        with _about(target):
            draft.chmod(0o666 & ~umask)
            draft.replace(target)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
