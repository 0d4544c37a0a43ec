"""The output file: counted, and hashed if anybody wants the hash, while it is written."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["HashingFile"]


class HashingFile:
    """A binary file that computes the length and, unless `is_hashed` is false, the SHA-256 of its content.

    Writes go straight to the descriptor: an error such as EFBIG surfaces with its ``errno`` at the write that met it.
    The methods beyond ``write`` are those that pyarrow asks of a Python file.
    """

    def __init__(self, path: Path, *, is_hashed: bool = True) -> None:
        self._path = path
        # O_NOFOLLOW: user code may have put a link in the output's place
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o660)
        self._digest = hashlib.sha256() if is_hashed else None
        self.written_bytes = 0
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Write all of `data`; returns its length in bytes."""
        if self.closed:  # by then the descriptor may be another file's; pyarrow writes Parquet's end when it is freed
            return memoryview(data).nbytes
        view = memoryview(data).cast("B")
        if self._digest is not None:
            self._digest.update(view)
        start = 0
        while start < len(view):
            start += os.write(self._descriptor, view[start:])
        self.written_bytes += len(view)
        return len(view)

    def hexdigest(self) -> str | None:
        """Return the SHA-256 of everything written so far; None if it is not computed."""
        return None if self._digest is None else self._digest.hexdigest()

    def flush(self) -> None:
        """Do nothing: writes are not buffered."""

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def tell(self) -> int:
        return self.written_bytes

    def close(self) -> None:
        """Close the descriptor; closing twice is harmless."""
        if not self.closed:
            self.closed = True
            os.close(self._descriptor)

    def discard(self) -> None:
        """Remove the file: half an output must not look like one."""
        self.close()
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()

    def __iter__(self) -> Iterator[bytes]:
        raise OSError("this file is written, not read")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.discard()
