"""The client's HTTP: one connection per request, bodies streamed both ways, errors as typed exceptions."""

from __future__ import annotations

import contextlib
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
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gateway.client_tables import TableFiles

CONNECT_SECONDS = 10.0
CHUNK_BYTES = 1 << 20
MAX_JSON_BYTES = 256 << 20
_JSON = MappingProxyType({"Content-Type": "application/json"})


class TransformError(Exception):
    """Base of everything that the client raises about the gateway.

    Attributes
    ----------
    code : str
        Stable word for the cause.
    message : str
    """

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


class GatewayUnreachable(TransformError):
    """Nobody answers at the URL, or the connection broke before the answer was whole."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "unreachable")


class GatewayRefused(TransformError):
    """The gateway refused the request; nothing ran.

    Attributes
    ----------
    status : int
        HTTP status.
    retryable : bool
        Whether the same request may be taken later.
    body : dict
        The whole answer.
    """

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(str(body.get("error") or f"the gateway answered {status}"), str(body.get("code") or status))
        self.status = status
        self.retryable = bool(body.get("retryable"))
        self.body = body


class GatewayHttp:
    """Requests to one gateway.

    Raises
    ------
    ValueError
        The URL is not ``http(s)://host[:port][/path]``.
    """

    def __init__(self, url: str, token: str, timeout_seconds: float) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"not a gateway's URL: {url!r}; expected http://host:port")
        self._secure = parts.scheme == "https"
        self._host = parts.hostname
        self._port = parts.port
        self._base_path = parts.path.rstrip("/")
        self._token = token
        self._timeout_seconds = timeout_seconds
        self._shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"

    def get_json(self, path: str) -> dict[str, Any]:
        """GET a JSON object."""
        with self._answer("GET", path) as answer:
            return _success(answer)

    def post_json(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """POST a JSON object and return the one that is answered."""
        with self._answer("POST", path, json.dumps(body).encode(), _JSON) as answer:
            return _success(answer)

    def post_job(self, request: dict[str, Any], files: TableFiles, *, wait: bool) -> dict[str, Any]:
        """POST a job with its tables; returns the answer of a job that ran, whether it succeeded or failed.

        Parameters
        ----------
        request : dict
            The JSON part.
        files : TableFiles
            Streamed as multipart parts; without any the request is plain JSON.
        wait : bool
            Whether the answer is wanted when the job is over; the connection may then be silent as long as it lives.
            Without, the gateway is asked to answer 202 at once (RFC 7240, section 4.1).
        """
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
            if "exit_code" in found or 200 <= answer.status < 300:
                return found
            raise GatewayRefused(answer.status, found)

    def download(self, path: str, target: Path | None, sha256: str | None) -> bytes | None:
        """GET a file into `target`, which appears whole or not at all; without a target return its content.

        Raises
        ------
        GatewayUnreachable
            What came is not whole: too short, or of another checksum.
        """
        with self._answer("GET", path) as answer:
            if answer.status != 200:
                raise GatewayRefused(answer.status, _json(answer))
            if target is None:
                content = answer.read()
                _check(hashlib.sha256(content), sha256)
                return content
            with _replacing(target) as file:
                digest = hashlib.sha256()
                while chunk := answer.read(CHUNK_BYTES):
                    digest.update(chunk)
                    file.write(chunk)
                if answer.length:  # http.client returns a short body without a word when it is read in pieces
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
        sent = {
            "Accept": "application/json",
            "User-Agent": "transform-gateway-client",
            "Connection": "close",
            **headers,
        }
        if self._token:
            sent["Authorization"] = f"Bearer {self._token}"
        connection = self._connection()
        try:
            connection.connect()
            connection.sock.settimeout(None if patient else self._timeout_seconds)
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            # a refusal (401, 413) may come, and the connection close, before the body is through: the answer counts
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, self._base_path + path, body, sent)
            yield connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.filename is not None:
                raise  # a file of the caller's, not the network
            raise GatewayUnreachable(f"no answer from {self._shown}: {_reason(error)}") from None
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if self._secure:
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(self._host, self._port, timeout=CONNECT_SECONDS, context=context)
        return http.client.HTTPConnection(self._host, self._port, timeout=CONNECT_SECONDS)


def _success(answer: http.client.HTTPResponse) -> dict[str, Any]:
    body = _json(answer)
    if not 200 <= answer.status < 300:
        raise GatewayRefused(answer.status, body)
    return body


def _json(answer: http.client.HTTPResponse) -> dict[str, Any]:
    content = answer.read(MAX_JSON_BYTES)
    try:
        body = json.loads(content)
    except ValueError:
        body = None
    if isinstance(body, dict):
        return body
    # a proxy in between, or no gateway at all
    return {"error": f"the answer ({answer.status}) is not that of a gateway", "code": "not_a_gateway"}


def _check(digest: hashlib._Hash, sha256: str | None) -> None:
    if sha256 is not None and digest.hexdigest() != sha256:
        raise GatewayUnreachable("the result arrived damaged: its checksum differs from the gateway's")


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, ConnectionResetError | http.client.RemoteDisconnected | http.client.IncompleteRead):
        return "the connection broke"
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


@contextmanager
def _replacing(target: Path) -> Iterator[Any]:
    """Write to a new file beside `target` that takes its place at the end of the block, and is removed on failure."""
    fd, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    draft = Path(name)
    try:
        with os.fdopen(fd, "wb") as file:
            yield file
        umask = os.umask(0)
        os.umask(umask)
        draft.chmod(0o666 & ~umask)
        draft.replace(target)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
