"""A job inherits the descriptors meant for it and no other."""

from __future__ import annotations

import os
from collections.abc import Iterable

from kernel_spec.sandbox import syscalls

_LAST = 0x7FFFFFFF


def close_all_but(keep: Iterable[int]) -> None:
    """Close every descriptor of the process that is not in `keep`, whatever its number.

    close_range(2) needs neither /proc nor a loop up to the limit; before Linux 5.9 the loop is taken.
    """
    first = 0
    for fd in sorted(set(keep)):
        if fd > first:
            _close(first, fd - 1)
        first = fd + 1
    _close(first, _LAST)


def _close(first: int, last: int) -> None:
    try:
        syscalls.close_range(first, last)
    except OSError:
        os.closerange(first, min(last, os.sysconf("SC_OPEN_MAX")) + 1)


def open_descriptors() -> tuple[int, ...]:
    """Return the descriptors that are open in this process, by /proc."""
    names = os.listdir("/proc/self/fd")  # noqa: PTH208
    found = []
    for fd in map(int, names):
        try:
            os.fstat(fd)
        except OSError:
            continue  # the one that listed the directory
        found.append(fd)
    return tuple(sorted(found))
