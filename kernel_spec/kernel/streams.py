"""Publish the output of a kernel, also after a fork: ipykernel would then use the sockets of the parent."""

# mypy: disable-error-code="no-untyped-call"
# ipykernel has next to no annotations.

from __future__ import annotations

import codecs
import os
import threading
from contextlib import suppress
from typing import Any

from ipykernel.iostream import IOPubThread, OutStream

_READ_BYTES = 1 << 16


class LocalIOPubThread(IOPubThread):
    """Publishes for this process only; messages of a forked child are dropped.

    Upstream, such a child with no pipe to its parent would use the parent's socket, and libzmq sockets do not
    survive a fork (libzmq issue 3223).
    """

    def _really_send(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        if self._is_master_process():
            super()._really_send(msg, *args, **kwargs)


class ForkAwareOutStream(OutStream):
    """``sys.stdout`` of the kernel; in a forked child it writes to the descriptor of that name."""

    def write(self, string: str) -> int:
        """Publish the text, or in a forked child write it to the descriptor."""
        if self._is_master_process():
            return super().write(string) or len(string)
        data = memoryview(string.encode("utf-8", "replace"))
        descriptor = 2 if self.name == "stderr" else 1
        while data:
            data = data[os.write(descriptor, data) :]
        return len(string)

    def flush(self) -> None:
        """Publish what is waiting; a forked child's text never waits."""
        if self._is_master_process():
            super().flush()

    def publish_descriptor(self) -> None:
        """Publish what C code and child processes write to the descriptor, too, if a thread for that can be started."""
        with suppress(OSError):  # no descriptor is left
            readable, writable = os.pipe2(os.O_CLOEXEC)
            try:
                threading.Thread(target=self._publish_from, args=(readable,), daemon=True).start()
                os.dup2(writable, 2 if self.name == "stderr" else 1)
            except RuntimeError:
                os.close(readable)
            os.close(writable)

    def _publish_from(self, readable: int) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        while data := os.read(readable, _READ_BYTES):
            self.write(decoder.decode(data))
