"""The standard output of a command: closed, full, or in an encoding without most characters."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable

#: Errors of write(2) to a pipe that its reader has closed (`| head`), to a full disk, and to a terminal that is gone.
OUTPUT_ERRORS = frozenset({errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})

EXIT_CLOSED = 1
EXIT_NOT_WRITTEN = 2


def with_output(command: Callable[[], int]) -> int:
    """Run a command and return its exit code; an output that cannot be written ends it with a line at most."""
    _prepare_streams()
    try:
        try:
            return command()
        finally:  # also after an exit, as of --help; at exit, Python would report an error as an ignored exception
            sys.stdout.flush()
    except OSError as error:
        if error.filename is not None or error.errno not in OUTPUT_ERRORS:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python would fail again in its flush at exit
        if error.errno == errno.EPIPE:
            return EXIT_CLOSED
        sys.stderr.write(f"transform-gateway: standard output: {error.strerror}\n")
        return EXIT_NOT_WRITTEN


def _prepare_streams() -> None:
    """Let each text be written, whatever the caller has made of standard output and standard error."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller (`>&-`)
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115 - for the life of the process
        elif isinstance(stream, io.TextIOWrapper):
            # a locale without UTF-8 has no character for much of a log; an error would cancel the job that printed it
            stream.reconfigure(errors="backslashreplace")
