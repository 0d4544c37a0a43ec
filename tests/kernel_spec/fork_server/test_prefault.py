from __future__ import annotations

import ctypes
import mmap
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from kernel_spec.fork_server.prefault import PageRanges, pages_dirtied_by
from kernel_spec.fork_server.preload import REHEARSAL_CODE
from kernel_spec.kernel.environment import interpreter_environment
from kernel_spec.linux import syscalls
from tests.kernel_spec.conftest import Desk
from tests.kernel_spec.sandbox.children import PLAIN_USER, in_child

PAGE = mmap.PAGESIZE
MANY = 2000


def memory() -> mmap.mmap:
    """Return private memory of which each page is there."""
    block = mmap.mmap(-1, MANY * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    block.madvise(mmap.MADV_NOHUGEPAGE)
    block.write(b"x" * (MANY * PAGE))
    return block


def write_every_second(block: mmap.mmap) -> None:
    for number in range(0, MANY, 2):
        block[number * PAGE] = 1


def faults_of(work: Callable[[], None]) -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def as_a_process_that_forks() -> tuple[int, int, int, int]:
    block = memory()
    pages = pages_dirtied_by(lambda: write_every_second(block))
    address = ctypes.addressof(ctypes.c_char.from_buffer(block))
    numbers = {(first + offset - address) // PAGE for first, size in pages.ranges for offset in range(0, size, PAGE)}
    found = len(numbers & set(range(0, MANY, 2)))
    surplus = len(numbers & set(range(1, MANY, 2)))

    def child(copy: bool) -> int:
        if copy:
            pages.prefault()
        return faults_of(lambda: write_every_second(block))

    return found, surplus, in_child(lambda: child(False)), in_child(lambda: child(True))


def test_pages_that_a_child_writes_to_are_found_and_then_cost_no_fault() -> None:
    found, surplus, without, with_copies = in_child(as_a_process_that_forks)
    assert (found, surplus) == (MANY // 2, 0)
    assert without >= MANY // 2
    assert with_copies < MANY // 20


def test_pages_are_copied_where_the_kernel_takes_no_such_advice_for_many_ranges(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As Linux before 6.13 refuses it."""
    real = syscalls.call

    def old(name: str, *arguments: object) -> int:
        if name == "process_madvise":
            raise OSError(22, "process_madvise: Invalid argument")
        return real(name, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(syscalls, "call", old)
    _, _, without, with_copies = in_child(as_a_process_that_forks)
    assert with_copies < MANY // 20 < without


def test_pages_that_are_gone_do_no_harm() -> None:
    block = memory()
    address = ctypes.addressof(ctypes.c_char.from_buffer(block))

    def child() -> bool:
        unmap = ctypes.CDLL(None).munmap
        unmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        unmap(address, MANY * PAGE)
        PageRanges(((address, MANY * PAGE),)).prefault()
        return True

    assert in_child(child)


@pytest.mark.parametrize("work", [lambda: 1 / 0, lambda: os.kill(os.getpid(), signal.SIGKILL)])
def test_work_that_fails_names_no_pages(work: Callable[[], None]) -> None:
    assert in_child(lambda: pages_dirtied_by(work).count) == 0


def test_forked_kernel_has_the_pages_of_a_first_job_before_it(desk: Desk) -> None:
    """A job takes some 2,400 faults in a kernel that has been forked and booted only."""
    desk.wait_for_fork_server("ready")
    code = f"""
import resource
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
{REHEARSAL_CODE}
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    with desk.kernel() as kernel:
        assert kernel.process.is_prefaulted
        assert int(kernel.run(code)) < 900


def test_plainly_started_kernel_says_that_it_has_to_rehearse(desk: Desk) -> None:
    with desk.kernel(plain=True) as kernel:
        assert not kernel.process.is_prefaulted


def test_pages_are_found_for_a_user_without_an_account() -> None:
    """As a container in a cluster runs: some number for a user, and no home."""
    program = """
import tempfile
from kernel_spec.fork_server import prefault, preload, self_test
preload.import_all()
with tempfile.TemporaryDirectory(prefix="tg-") as directory:
    print(prefault.pages_dirtied_by(lambda: self_test.simulate_kernel(directory)).count)
"""
    environment = {name: value for name, value in interpreter_environment().items() if name != "HOME"}
    user = PLAIN_USER.uid if os.geteuid() == 0 else None
    command = [sys.executable, "-P", "-c", program]
    done = subprocess.run(command, env=environment, user=user, cwd="/", capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert int(done.stdout) > 1000
