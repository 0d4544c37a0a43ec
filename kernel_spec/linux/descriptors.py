"""The descriptors that are open in this process."""

from __future__ import annotations

import os


def open_descriptors() -> tuple[int, ...]:
    """Return the descriptors that are open in this process, from /proc."""
    names = os.listdir("/proc/self/fd")  # noqa: PTH208
    found = []
    for fd in map(int, names):
        try:
            os.fstat(fd)
        except OSError:
            continue  # that of the listing itself
        found.append(fd)
    return tuple(sorted(found))
