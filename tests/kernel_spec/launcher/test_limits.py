"""Limits of all processes of a kernel together, which the launcher watches."""

from __future__ import annotations

import asyncio
import os

import pytest

from kernel_spec.protocol.limits import Limits
from tests.kernel_spec.conftest import Desk, wait_until


def test_processor_time_is_counted_from_the_jobs_start(desk: Desk) -> None:
    with desk.kernel(Limits(cpu_seconds=1)) as kernel:
        kernel.run("sum(range(10**7))")
        desk.do(desk.launcher.limit_cpu(kernel.kernel_id, 1))
        kernel.run("while True: pass", waits=False)
        report = kernel.ended()
        assert report.cause == "cpu_limit", report
        assert report.cpu_seconds >= 1
        assert "1 s" in report.detail


def test_processor_time_of_children_is_added_up(desk: Desk) -> None:
    with desk.kernel() as kernel:
        desk.do(desk.launcher.limit_cpu(kernel.kernel_id, 1))
        kernel.run(
            "import os\n"
            "while True:\n"
            "    if os.fork() == 0:\n"
            "        import time; t = time.process_time() + 0.4\n"
            "        while time.process_time() < t: pass\n"
            "        os._exit(0)\n"
            "    os.wait()",
            waits=False,
        )
        assert kernel.ended().cause == "cpu_limit"


def test_another_limit_does_not_count_what_children_used_before(desk: Desk) -> None:
    """As for a job that failed and is held."""
    with desk.kernel() as kernel:
        desk.do(desk.launcher.limit_cpu(kernel.kernel_id, 60))
        kernel.run(
            "import os, signal, time\ndef burn(seconds):\n    end = time.process_time() + seconds\n"
            "    while time.process_time() < end: pass\n"
            "if os.fork() == 0: burn(3); os.kill(os.getpid(), signal.SIGSTOP)"
        )
        assert wait_until(lambda: desk.do(desk.launcher.usage(kernel.kernel_id)).cpu_seconds > 3)
        desk.do(desk.launcher.limit_cpu(kernel.kernel_id, 2))
        # longer than it takes to measure a kernel
        assert kernel.run("burn(1)\nprint('runs')") == "runs\n"


def test_memory_of_children_is_added_up(desk: Desk) -> None:
    with desk.kernel(Limits(memory_bytes=400 << 20)) as kernel:
        desk.do(desk.launcher.limit_cpu(kernel.kernel_id, 60))
        # eight processes, each of them within the limit
        kernel.run(
            "import os, time\nfor _ in range(3): os.fork()\ndata = b'x' * (90 << 20)\ntime.sleep(60)", waits=False
        )
        report = kernel.ended()
        assert report.cause == "memory_limit", report
        # the kernel counts pages in batches, so the peak can be some of them below the limit
        assert report.peak_memory_bytes > 390 << 20


def test_files_beyond_the_disk_limit_end_the_kernel(desk: Desk) -> None:
    limits = Limits(disk_bytes=20_000_000, file_size_bytes=10_000_000)
    with desk.kernel(limits) as kernel:
        desk.do(desk.launcher.limit_cpu(kernel.kernel_id, 60))
        kernel.run(
            "import time\nfor n in range(4): open(f'f{n}', 'wb').write(b'x' * 9_000_000)\ntime.sleep(60)", waits=False
        )
        assert kernel.ended().cause == "disk_limit"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may look into the descriptors of a job")
@pytest.mark.parametrize("place", [".", "../out", "../ipc"])
def test_removed_files_count_wherever_a_job_keeps_them_open(desk: Desk, place: str) -> None:
    limits = Limits(disk_bytes=20_000_000, file_size_bytes=10_000_000)
    with desk.kernel(limits) as kernel:
        desk.do(desk.launcher.limit_cpu(kernel.kernel_id, 60))
        kernel.run(
            "import os, time\nfiles = []\nfor n in range(4):\n"
            f"    files.append(open('{place}/gone', 'wb', 0))\n    os.unlink('{place}/gone')\n"
            "    files[-1].write(b'x' * 9_000_000)\ntime.sleep(60)",
            waits=False,
        )
        assert kernel.ended().cause == "disk_limit"


def test_kernel_that_follows_one_beyond_its_memory_limit_runs(desk: Desk) -> None:
    limits = Limits(memory_bytes=300 << 20)
    with desk.kernel(limits) as kernel:
        desk.do(desk.launcher.limit_cpu(kernel.kernel_id, 60))
        kernel.run(
            "import os, time\nfor _ in range(3): os.fork()\ndata = b'x' * (90 << 20)\ntime.sleep(60)", waits=False
        )
        assert kernel.ended().cause == "memory_limit"
        kernel.kill()
        null = os.open(os.devnull, os.O_RDWR)
        again = desk.do(desk.launcher.start_kernel(kernel.kernel_id, output_fds=(null, null), limits=limits))
        os.close(null)
        desk.do(desk.launcher.limit_cpu(kernel.kernel_id, 1))
        kernel.run("while True: pass", waits=False)
        report = desk.do(asyncio.shield(again.exited))
        assert report.cause == "cpu_limit", "it was measured for a second, and ended by nothing else"
