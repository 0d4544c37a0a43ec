"""Parcels: files of a job at the member of a cluster that accepted it, for the host that runs the job.

Each parcel has a URL with a token, which alone grants access: it is derived from a key that only this member has, is
valid for one attempt of one job, and is never shown. It is found by its digest, so the time of a look-up reveals
nothing.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import os
import secrets
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from gateway.core.async_files import create_file
from gateway.core.errors import NotFound
from gateway.storage.outputs.job_files import OpenOutput, open_output

#: Path of all parcels; a token follows.
ROUTE = "/v1/parcels/"

KEY_BYTES = 32


class Parcels:
    """The parcels of this member's jobs.

    Parameters
    ----------
    url : str
        Address of this member for the others.
    state_dir : Path
        Results of hosts are kept in ``state_dir/parcels``, which belongs to this object alone. The key of the tokens is
        in ``state_dir/store``: they are the same after a restart.
    """

    def __init__(self, url: str, state_dir: Path) -> None:
        self._url = url.rstrip("/") + ROUTE
        self._directory = state_dir / "parcels"
        self._key = _key_in(state_dir / "store" / "parcels-key")
        self._offered: dict[bytes, Callable[[], OpenOutput]] = {}
        self._expected: dict[bytes, ExpectedParcel] = {}
        self._of_job: dict[str, set[bytes]] = {}

    def offer(self, execution_id: str, attempt: int, name: str, open_file: Callable[[], OpenOutput]) -> str:
        """Allow a host to fetch a file, and return its URL.

        Parameters
        ----------
        execution_id : str
            The gateway's own id of the job.
        attempt : int
            The attempt for which the URL is valid.
        name : str
            Of the file, among the parcels of the job.
        open_file : callable
            Opens it; the caller closes it.
        """
        token, digest = self._new(execution_id, attempt, name)
        self._offered[digest] = open_file
        return self._url + token

    def expect(self, execution_id: str, attempt: int, name: str, max_bytes: int) -> str:
        """Allow a host to upload a file, and return its URL.

        Parameters
        ----------
        execution_id, attempt, name
            As for `offer`; the name is that of a file.
        max_bytes : int
            Largest size.
        """
        token, digest = self._new(execution_id, attempt, name)
        self._expected[digest] = ExpectedParcel(self, digest, self._place(execution_id, attempt), name, max_bytes)
        return self._url + token

    def open(self, token: str) -> OpenOutput:
        """Open the file that a token stands for.

        Raises
        ------
        NotFound
            There is none, or none any more.
        """
        open_file = self._offered.get(_digest(token))
        with contextlib.suppress(OSError):
            if open_file is not None:
                return open_file()
        raise _unknown()

    def expected(self, token: str) -> ExpectedParcel:
        """Return the file that a host may upload with a token.

        Raises
        ------
        NotFound
            There is none, or none any more.
        """
        found = self._expected.get(_digest(token))
        if found is None:
            raise _unknown()
        return found

    def is_expected(self, digest: bytes) -> bool:
        """Return whether a host may still upload a file."""
        return digest in self._expected

    def open_uploaded(self, execution_id: str, attempt: int, name: str, max_bytes: int) -> OpenOutput | None:
        """Open the file that a host uploaded; None without one, or if the machine lost power before it was written."""
        for path in self._place(execution_id, attempt).glob(f"{name}.*"):
            opened = open_output(path, owner_uid=None, max_bytes=max_bytes)
            if path.name == f"{name}.{opened.size_bytes}":
                return opened
            opened.close()
        return None

    def withdraw_offers(self, execution_id: str) -> None:
        """Withdraw the files of a job that hosts could fetch."""
        for digest in self._of_job.get(execution_id, ()):
            self._offered.pop(digest, None)

    def withdraw(self, execution_id: str) -> None:
        """Withdraw all parcels of a job: hosts can neither fetch nor upload a file any more."""
        for digest in self._of_job.pop(execution_id, ()):
            self._offered.pop(digest, None)
            self._expected.pop(digest, None)

    def remove(self, execution_id: str) -> None:
        """Remove the files that hosts uploaded for a job; blocks."""
        shutil.rmtree(self._directory / execution_id, ignore_errors=True)

    def remove_others(self, execution_ids: Collection[str]) -> None:
        """Remove the files that hosts uploaded for all jobs but these; blocks."""
        for path in self._directory.glob("*"):
            if path.name not in execution_ids:
                shutil.rmtree(path, ignore_errors=True)

    def _new(self, execution_id: str, attempt: int, name: str) -> tuple[str, bytes]:
        secret = hmac.digest(self._key, f"{execution_id} {attempt} {name}".encode(), "sha256")
        token = base64.urlsafe_b64encode(secret).rstrip(b"=").decode()
        digest = _digest(token)
        self._of_job.setdefault(execution_id, set()).add(digest)
        return token, digest

    def _place(self, execution_id: str, attempt: int) -> Path:
        return self._directory / execution_id / str(attempt)


@dataclass(frozen=True, slots=True)
class ExpectedParcel:
    """A file that a host may upload.

    Attributes
    ----------
    max_bytes : int
        Largest size.
    """

    _parcels: Parcels
    _digest: bytes
    _directory: Path
    _name: str
    max_bytes: int

    def draft(self) -> tuple[Path, int]:
        """Create an empty file for the upload, and return it with its descriptor; the caller removes and closes it.

        Raises
        ------
        NotFound
            The attempt is over meanwhile.
        OSError
            The disk cannot be written.
        """
        self._check()  # or it would make a directory again that was removed
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._directory / f".{secrets.token_hex(8)}"
        return path, create_file(path, 0o600)

    def take(self, draft: Path, size_bytes: int) -> None:
        """Move a complete file into its place.

        Its name has its size: after a loss of power the file may be shorter.

        Parameters
        ----------
        draft : Path
            All of it is written.
        size_bytes : int
            Its size.

        Raises
        ------
        NotFound
            The attempt is over meanwhile.
        OSError
            The disk cannot be written.
        """
        self._check()
        for earlier in self._directory.glob(f"{self._name}.*"):  # the host got no answer, and tries again
            earlier.unlink()
        draft.rename(self._directory / f"{self._name}.{size_bytes}")

    def _check(self) -> None:
        if not self._parcels.is_expected(self._digest):
            raise _unknown()


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _unknown() -> NotFound:
    return NotFound("there is no such parcel, or its job no longer needs it")


def _key_in(path: Path) -> bytes:
    """Return the key in a file, which is made if there is none."""
    key = path.read_bytes() if path.exists() else b""
    if len(key) != KEY_BYTES:  # new, or a full disk or a loss of power left a part
        key = secrets.token_bytes(KEY_BYTES)
        draft = path.with_name(f"{path.name}.new")
        draft.unlink(missing_ok=True)
        with os.fdopen(create_file(draft, 0o600), "wb") as file:
            file.write(key)
        draft.replace(path)
    return key
