"""Results to a directory that the request names."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from gateway.core.async_files import copy_file, create_file
from gateway.core.directories import output_directory
from gateway.core.errors import FailureCode, JobFailed
from gateway.core.settings import Settings
from gateway.storage.outputs.job_files import OpenOutput


async def deliver_files(directory: Path, settings: Settings, files: Mapping[str, OpenOutput | bytes]) -> None:
    """Write files to a directory; each appears whole or not at all and replaces a file or link of the same name.

    Parameters
    ----------
    directory : Path
        As the request has it.
    settings : Settings
        See `output_directory`.
    files : mapping of str to OpenOutput or bytes
        Contents by file name.

    Raises
    ------
    JobFailed
        ``output_upload_failed``; the text names the directory and the reason.
    """
    try:
        with output_directory(directory, settings) as fd:
            for name, content in files.items():
                await _place(fd, name, content)
    except OSError as error:
        text = f"The result could not be written to {directory}: {error.strerror or error}"
        raise JobFailed(FailureCode.OUTPUT_UPLOAD_FAILED, text) from None


async def _place(directory: int, name: str, content: OpenOutput | bytes) -> None:
    temporary = f".{name}.{secrets.token_hex(6)}"
    fd = create_file(Path(temporary), dir_fd=directory)
    try:
        if isinstance(content, bytes):
            with os.fdopen(os.dup(fd), "wb") as file:
                file.write(content)
        else:
            await copy_file(content.fd, fd, content.size_bytes)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=directory)
        raise
    finally:
        os.close(fd)
