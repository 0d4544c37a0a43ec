"""Memory of the fork server in huge pages: where it is in use, and with what it held."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

import pytest

from kernel_spec.fork_server.huge_pages import collapse
from kernel_spec.linux import syscalls

SIZE_PATH = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
LIBC = ctypes.CDLL(None)
MODE_PATH = SIZE_PATH.with_name("enabled")


def huge_bytes(address: int) -> int:
    """Return the bytes of huge pages in the mapping that holds this address (proc_pid_smaps(5))."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name = line.split()[0]
        if "-" in name and not name.endswith(":"):
            begin, end = (int(number, 16) for number in name.split("-"))
            inside = begin <= address < end
        elif inside and name == "AnonHugePages:":
            return 1024 * int(line.split()[1])
    raise AssertionError("there is no such mapping")


def can_collapse(address: int, size_bytes: int) -> bool:
    try:
        syscalls.call("madvise", address, size_bytes, 25)
    except OSError:
        return False
    return True


def test_memory_in_use_moves_to_huge_pages_and_the_rest_stays_unused() -> None:
    if not SIZE_PATH.exists() or "[madvise]" not in MODE_PATH.read_text():
        pytest.skip("this system has no huge pages, or makes some by itself")
    size_bytes = int(SIZE_PATH.read_text())
    memory = mmap.mmap(-1, 7 * size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for end in (start, start + 7 * size_bytes - mmap.PAGESIZE):  # or it would be one mapping with its neighbours
        assert LIBC.mprotect(ctypes.c_void_p(end), mmap.PAGESIZE, 0) == 0
    first = -(-(start + 1) // size_bytes) * size_bytes - start
    full, sparse, trial = (slice(first + n * size_bytes, first + (n + 1) * size_bytes) for n in (0, 2, 4))
    text = bytes(range(256)) * (size_bytes // 256)
    memory[full] = memory[trial] = text
    memory[sparse.start] = 1
    if not can_collapse(start + trial.start, size_bytes):
        pytest.skip("this system gives no huge page now")
    memory.madvise(mmap.MADV_DONTNEED, trial.start, size_bytes)  # gives the page back, for there may be no other
    assert collapse() >= 1
    assert huge_bytes(start + mmap.PAGESIZE) == size_bytes
    assert memory[full] == text


def test_a_system_without_huge_pages_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("kernel_spec.fork_server.huge_pages._SIZE_PATH", tmp_path / "absent")
    assert collapse() == 0
