# ruff: noqa: PTH108
from __future__ import annotations

import ctypes
import mmap
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kernel_spec.linux import procfs
from kernel_spec.sandbox import Identity
from kernel_spec.sandbox.accounting import memory_use
from kernel_spec.sandbox.layers import dumpable
from tests.kernel_spec.sandbox.children import become, fork, in_child

MIB = 1 << 20
SHM = Path("/dev/shm")


def measure_child(act: Callable[[], object], *, processes: int = 1, **options: int) -> memory_use.MemoryUsage:
    """Measure processes that have acted and wait."""
    pids = []
    for _ in range(processes):
        reader, writer = os.pipe()
        pid = fork()
        if pid == 0:
            kept = act()
            os.write(writer, b"x")
            signal.pause()
            del kept
        os.close(writer)
        os.read(reader, 1)
        os.close(reader)
        pids.append(pid)
    try:
        statuses = [status for status in map(procfs.read_status, pids) if status is not None]
        return memory_use.measure(statuses, **{"limit_bytes": 0, **options})
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def touched(size: int, flags: int) -> mmap.mmap:
    region = mmap.mmap(-1, size, flags=flags)
    ctypes.memset((ctypes.c_char * size).from_buffer(region), 1, size)
    return region


def memory_file() -> int:
    fd = os.memfd_create("x")
    for _ in range(40):
        os.write(fd, bytes(MIB))
    return fd


ACTS: dict[str, Callable[[], object]] = {
    "private": lambda: touched(40 * MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS),
    "shared": lambda: touched(40 * MIB, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS),
    "file that nobody maps": memory_file,
}


@pytest.mark.parametrize("kind", ACTS)
def test_every_kind_of_memory_counts(kind: str) -> None:
    idle = measure_child(lambda: None)
    used = measure_child(ACTS[kind])
    grown = (used.memory_bytes - idle.memory_bytes) / MIB
    assert 35 < grown < 60


def test_children_are_added_up() -> None:
    one = measure_child(ACTS["private"])
    three = measure_child(ACTS["private"], processes=3)
    assert three.processes == 3
    assert three.memory_bytes - one.memory_bytes > 75 * MIB


def test_memory_of_the_template_is_not_counted_for_each_fork() -> None:
    def template() -> list[float]:
        kept = touched(120 * MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        many = measure_child(lambda: None, processes=6)
        rough = measure_child(lambda: None, processes=6, limit_bytes=1 << 40)
        del kept
        return [many.exact, many.memory_bytes / MIB, rough.memory_bytes / MIB]

    exact, by_share, rough = in_child(template)
    if not exact:
        pytest.skip("the page tables of a child may not be read here")
    assert rough > 6 * 120, "the cheap sum only acquits"
    assert by_share < 2 * 120


def test_estimate_takes_the_template_off_where_shares_may_not_be_read() -> None:
    def template() -> list[object]:
        if os.geteuid() == 0:
            become(Identity(60178, 60178))
        dumpable.apply()
        kept = touched(60 * MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        own = procfs.read_status(os.getpid())
        assert own is not None
        used = measure_child(ACTS["private"], processes=2, template_bytes=own.anonymous_bytes)
        del kept
        return [used.exact, used.memory_bytes / MIB]

    exact, megabytes = in_child(template)
    assert exact is False
    assert 75 < megabytes < 110


def test_files_of_the_workspaces_user_in_shared_memory_count_and_are_swept(owner: Identity | None) -> None:
    if owner is None:
        pytest.skip("a user of its own takes root")
    path = SHM / f"tg-test-{os.getpid()}"
    path.write_bytes(bytes(5 * MIB))
    foreign = SHM / f"tg-test-{os.getpid()}-foreign"
    foreign.write_bytes(b"x")
    try:
        os.chown(path, owner.uid, owner.gid)
        assert memory_use.measure([], limit_bytes=0, uid=owner.uid).memory_bytes == 5 * MIB
        assert memory_use.measure([], limit_bytes=0).memory_bytes == 0
        assert memory_use.sweep_shared_files(owner.uid) == 1
        assert not path.exists()
        assert foreign.exists()
    finally:
        path.unlink(missing_ok=True)
        foreign.unlink()


def test_removed_files_in_shared_memory_show_as_hidden() -> None:
    before = memory_use.SharedFiles.read().hidden_bytes
    with (SHM / f"tg-test-{os.getpid()}").open("wb") as file:
        os.unlink(file.name)
        file.write(bytes(8 * MIB))
        file.flush()
        grown = memory_use.SharedFiles.read().hidden_bytes - before
        usage = memory_use.measure([], limit_bytes=0, unlinked_shm_bytes=grown)
    # Others on the machine may free or take some at the same time.
    assert 4 * MIB < grown < 64 * MIB
    assert usage.memory_bytes == grown


def test_more_names_of_a_file_in_shared_memory_hide_no_removed_one() -> None:
    before = memory_use.SharedFiles.read().hidden_bytes
    visible = SHM / f"tg-test-{os.getpid()}"
    names = [visible.with_name(f"{visible.name}-{number}") for number in range(20)]
    try:
        visible.write_bytes(bytes(8 * MIB))
        for name in names:
            name.hardlink_to(visible)
        with (SHM / f"tg-test-{os.getpid()}-removed").open("wb") as file:
            os.unlink(file.name)
            file.write(bytes(32 * MIB))
            file.flush()
            grown = memory_use.SharedFiles.read().hidden_bytes - before
    finally:
        for name in (visible, *names):
            name.unlink(missing_ok=True)
    assert 24 * MIB < grown < 64 * MIB


def test_files_in_shared_memory_are_read_once_for_many_measurements() -> None:
    """A job with many files there must not keep the launcher busy, on which all other jobs wait."""
    names = [SHM / f"tg-test-{os.getpid()}-{number}" for number in range(2_000)]

    def child() -> int:
        reads = []
        sys.addaudithook(lambda event, arguments: reads.append(1) if event == "os.scandir" else None)
        for _ in range(50):
            memory_use.measure([], limit_bytes=0, uid=os.getuid())
            memory_use.hidden_shared_bytes()
            memory_use.count_shared_files(os.getuid())
        return len(reads)

    try:
        for name in names:
            name.touch()
        assert 1 <= in_child(child) <= 50
    finally:
        for name in names:
            name.unlink(missing_ok=True)
