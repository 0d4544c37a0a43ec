"""The pages that every kernel writes to, found once and then copied in one go.

A forked process shares the pages of the fork server until it writes to one (fork(2), copy-on-write). A kernel's boot
and its first small job write to some 5,000 of them, each by a fault of its own: a third of the processor time that a
kernel costs. Which ones hardly differs from kernel to kernel (97 of 100, measured), so a child of the fork server lives
a kernel's life once, before there are any, and says which pages have become its own (proc_pid_pagemap(5)). Each kernel
then has these copied by a few system calls while it waits at its gate. That takes what the faults would, 11 to 16 ms,
but ahead of the job; and it saves the rehearsal of a whole job in each kernel, which takes 27 ms and is there for its
faults alone. Where no pages are known a kernel still rehearses (`Started.is_warm`).
"""

from __future__ import annotations

import array
import errno
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kernel_spec.sandbox import syscalls
from kernel_spec.self_test import run_and_exit

# linux/mman.h, since Linux 5.14; as an advice of process_madvise(2) to oneself since 6.13.
MADV_POPULATE_WRITE: Final = 23
_MOST_RANGES: Final = 1024  # IOV_MAX
_PAGE_BYTES: Final = os.sysconf("SC_PAGESIZE")
# Documentation/admin-guide/mm/pagemap.rst
_PRESENT: Final = 1 << 63
_FILE_OR_SHARED: Final = 1 << 61
_OURS_ALONE: Final = 1 << 56

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Pages:
    """Pages of this process, as ranges of addresses: first byte and number of bytes."""

    ranges: tuple[Range, ...] = ()

    @property
    def count(self) -> int:
        """Number of pages."""
        return sum(size_bytes for _, size_bytes in self.ranges) // _PAGE_BYTES

    def copy(self) -> None:
        """Make all of them the calling process's own; to be called in a fork of the process they were found for.

        It saves time and nothing else depends on it, so what cannot be copied now is copied when it is written to.
        """
        with suppress(OSError):
            _populate(self.ranges)


def written_by(work: Callable[[], None]) -> Pages:
    """Fork a child that does the work, and return which of our pages it has written to; none where that failed.

    The child says in the log what went wrong, and is ended when it hangs.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        run_and_exit(lambda: _work_and_tell(work, writer))
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        told = array.array("Q", pipe.read())
    _, status = os.waitpid(child, 0)
    if status:
        return Pages()
    ours = list(_private_mappings())
    pages = (page for page in told if any(begin <= page < end for begin, end in ours))
    return Pages(tuple(_joined(pages)))


def _work_and_tell(work: Callable[[], None], writer: int) -> None:
    work()
    # Without it the files of a process belong to root.
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)
    found = array.array("Q", _pages_of_ours_alone())
    with os.fdopen(writer, "wb") as pipe:
        pipe.write(found.tobytes())


def _pages_of_ours_alone() -> Iterator[int]:
    """Yield the addresses of the pages that no other process has."""
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:  # noqa: PTH123
        for begin, end in list(_private_mappings()):
            pagemap.seek(begin // _PAGE_BYTES * 8)
            entries = array.array("Q", pagemap.read((end - begin) // _PAGE_BYTES * 8))
            for number, entry in enumerate(entries):
                if entry & _PRESENT and entry & _OURS_ALONE and not entry & _FILE_OR_SHARED:
                    yield begin + number * _PAGE_BYTES


def _private_mappings() -> Iterator[Range]:
    """Yield begin and end of each mapping that can be written to and is private (proc_pid_maps(5))."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, permissions, *others = line.split(maxsplit=5)
        is_special = len(others) == 4 and others[3].startswith("[v")  # of the kernel: vvar, vdso
        if permissions == "rw-p" and not is_special:
            begin, end = (int(address, 16) for address in addresses.split("-"))
            yield begin, end


def _joined(pages: Iterable[int]) -> Iterator[Range]:
    """Yield neighbouring pages as one range."""
    begin = end = 0
    for page in pages:
        if page != end:
            if end:
                yield begin, end - begin
            begin = page
        end = page + _PAGE_BYTES
    if end:
        yield begin, end - begin


def _populate(ranges: tuple[Range, ...]) -> None:
    myself = os.pidfd_open(os.getpid())
    try:
        for first in range(0, len(ranges), _MOST_RANGES):
            some = ranges[first : first + _MOST_RANGES]
            vector = array.array("Q", [number for one in some for number in one])
            address, _ = vector.buffer_info()
            syscalls.call("process_madvise", myself, address, len(some), MADV_POPULATE_WRITE, 0)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # Linux before 6.13.
        for begin, size_bytes in ranges:
            syscalls.call("madvise", begin, size_bytes, MADV_POPULATE_WRITE)
    finally:
        os.close(myself)
