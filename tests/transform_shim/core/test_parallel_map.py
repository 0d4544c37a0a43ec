"""Blocks worked on by several threads."""

from __future__ import annotations

import platform
import subprocess
import sys
import threading

import pytest

from transform_shim.core import parallel_map
from transform_shim.core.parallel_map import ordered_map

#: Page faults of freeing and taking 8 MiB ten times: 2,048 for each where glibc returns it to the system in between.
FAULTS = """
import resource
from transform_shim.core.parallel_map import ordered_map
{prepare}
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
bytearray(8 << 20)
before = faults()
for _ in range(10):
    bytearray(8 << 20)
print(faults() - before)
"""


def faults(prepare: str) -> int:
    command = [sys.executable, "-c", FAULTS.format(prepare=prepare)]
    return int(subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=60).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has another way with memory")
def test_memory_of_a_block_is_used_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_"):
        monkeypatch.delenv(name, raising=False)
    patch = "import os; os.sched_getaffinity = lambda _: range(2)"  # with one processor there are no threads
    assert faults(f"{patch}; list(ordered_map(str, range(3)))") < 200
    assert faults("list(ordered_map(str, range(1)))") > 2000, "a small table changes nothing"


@pytest.mark.parametrize("is_short", [False, True])
def test_results_come_in_order_whether_memory_is_short_or_not(monkeypatch: pytest.MonkeyPatch, is_short: bool) -> None:
    if is_short:
        monkeypatch.setattr(parallel_map, "_THRESHOLD_BYTES", 1 << 60)
    monkeypatch.setattr(parallel_map.os, "sched_getaffinity", lambda _: range(3))
    threads: set[str] = set()

    def work(number: int) -> int:
        threads.add(threading.current_thread().name)
        return number * number

    assert list(ordered_map(work, iter(range(200)))) == [number * number for number in range(200)]
    assert threads
    assert threading.current_thread().name not in threads
