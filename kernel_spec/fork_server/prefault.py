"""The memory pages that every kernel writes to, found once and then copied at once.

A forked process shares the pages of the fork server until it writes to one (fork(2), copy-on-write). A kernel's boot
and its first small job write to some 5,000 of them, each with a fault of its own: a third of the processor time that a
kernel takes. The pages hardly differ from kernel to kernel (97 of 100, measured), so one child of the fork server boots
and runs one job before there are kernels, and reports which pages have become its own (proc_pid_pagemap(5)). Each
kernel then copies these by a few system calls while it waits at its start barrier. That takes as long as the faults,
11 to 16 ms, but ahead of the job; and it saves the rehearsal of a whole job in each kernel, which takes 27 ms and has
no other purpose than these faults (measured; docs/sandbox-shapes.md). Where no pages are known a kernel still
rehearses (`Started.is_prefaulted`).
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

from kernel_spec.fork_server.self_test import run_and_exit
from kernel_spec.linux import syscalls

#: linux/mman.h, since Linux 5.14; as an advice of process_madvise(2) to oneself since 6.13.
MADV_POPULATE_WRITE: Final = 23
_MOST_RANGES: Final = 1024  # IOV_MAX
PAGE_BYTES: Final = os.sysconf("SC_PAGESIZE")
#: Documentation/admin-guide/mm/pagemap.rst
_PRESENT: Final = 1 << 63
_FILE_OR_SHARED: Final = 1 << 61
_OURS_ALONE: Final = 1 << 56

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class PageRanges:
    """Memory pages of this process, as ranges of addresses: first byte and number of bytes."""

    ranges: tuple[Range, ...] = ()

    @property
    def count(self) -> int:
        """Number of pages."""
        return sum(size_bytes for _, size_bytes in self.ranges) // PAGE_BYTES

    def prefault(self) -> None:
        """Copy all of them; call it in a fork of the process in which they were found.

        It only saves time: a page that cannot be copied now is copied when it is written to.
        """
        with suppress(OSError):
            _populate(self.ranges)


def pages_dirtied_by(work: Callable[[], None]) -> PageRanges:
    """Fork a child that does the work, and return the pages of this process that it wrote to; none if it failed.

    The child logs its error, and an alarm ends it when it hangs.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        run_and_exit(lambda: _work_and_report(work, writer))
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        reported = array.array("Q", pipe.read())
    _, status = os.waitpid(child, 0)
    if status:
        return PageRanges()
    ours = list(private_mappings())
    pages = (page for page in reported if any(begin <= page < end for begin, end in ours))
    return PageRanges(tuple(_joined(pages)))


def _work_and_report(work: Callable[[], None], writer: int) -> None:
    work()
    # The /proc files of a process that is not dumpable belong to root.
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)
    found = array.array("Q", _pages_of_ours_alone())
    with os.fdopen(writer, "wb") as pipe:
        pipe.write(found.tobytes())


def _pages_of_ours_alone() -> Iterator[int]:
    """Yield the addresses of the pages that no other process has."""
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:  # noqa: PTH123
        for begin, end in list(private_mappings()):
            pagemap.seek(begin // PAGE_BYTES * 8)
            entries = array.array("Q", pagemap.read((end - begin) // PAGE_BYTES * 8))
            for number, entry in enumerate(entries):
                if entry & _PRESENT and entry & _OURS_ALONE and not entry & _FILE_OR_SHARED:
                    yield begin + number * PAGE_BYTES


def private_mappings() -> Iterator[Range]:
    """Yield begin and end of each mapping that can be written to and is private (proc_pid_maps(5))."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, permissions, *others = line.split(maxsplit=5)
        is_special = len(others) == 4 and others[3].startswith("[v")  # of the kernel: vvar, vdso
        if permissions == "rw-p" and not is_special:
            begin, end = (int(address, 16) for address in addresses.split("-"))
            yield begin, end


def _joined(pages: Iterable[int]) -> Iterator[Range]:
    """Yield ranges of adjacent pages."""
    begin = end = 0
    for page in pages:
        if page != end:
            if end:
                yield begin, end - begin
            begin = page
        end = page + PAGE_BYTES
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
