"""Watches over running kernels, for the limits that no single process has: memory, processor time and disk in all.

Where a control group bounds memory, only processor time and disk are left to watch. A kernel that waits for a job is
not watched: it runs nothing but our own code.
"""

from __future__ import annotations

from collections.abc import Callable

from kernel_spec.kernels import Kernel, Phase
from kernel_spec.loop import Loop
from kernel_spec.messages import Cause

# A look at /proc takes some milliseconds. Memory can grow by a gigabyte in half a second.
MEMORY_PERIOD_SECONDS = 0.1
CPU_PERIOD_SECONDS = 0.5
# A local disk takes more than a gigabyte a second (measured: 3 GB were there before a look each second saw the second).
DISK_PERIOD_SECONDS = 0.2

OnLimit = Callable[[Kernel, Cause, str], None]


class Watches:
    """Starts the watches of a kernel; `on_limit` is called at most once for each kernel."""

    def __init__(
        self, loop: Loop, *, memory: bool, disk: bool, template_bytes: Callable[[], int], on_limit: OnLimit
    ) -> None:
        self._loop = loop
        self._memory = memory
        self._disk = disk
        self._template_bytes = template_bytes
        self._on_limit = on_limit

    def begin(self, kernel: Kernel) -> None:
        """Watch the kernel until it ends; once more is harmless."""
        if kernel.watched:
            return
        kernel.watched = True
        self._again(kernel, MEMORY_PERIOD_SECONDS if self._memory else CPU_PERIOD_SECONDS, self._look_at_use)
        if self._disk:
            self._again(kernel, DISK_PERIOD_SECONDS, self._look_at_disk)

    def _again(self, kernel: Kernel, seconds: float, look: Callable[[Kernel], bool]) -> None:
        def due() -> None:
            kernel.timers.discard(timer)
            if kernel.phase in (Phase.STARTING, Phase.RUNNING) and look(kernel):
                self._again(kernel, seconds, look)

        timer = self._loop.call_later(seconds, due)
        kernel.timers.add(timer)

    def _look_at_use(self, kernel: Kernel) -> bool:
        limits = kernel.limits
        usage = kernel.containment.usage(limits, self._template_bytes())
        kernel.cpu_seconds = max(kernel.cpu_seconds, usage.cpu_seconds)
        if self._memory:
            kernel.peak_memory_bytes = max(kernel.peak_memory_bytes, usage.memory_bytes)
            if usage.memory_bytes > limits.memory_bytes:
                reason = f"used {usage.memory_bytes} bytes of memory and may use {limits.memory_bytes}"
                self._on_limit(kernel, "memory_limit", reason)
                return False
        if kernel.containment.oom_kills():
            # A control group may have ended a child only; what the job makes of it is not worth having.
            self._on_limit(kernel, "memory_limit", f"exceeded its {limits.memory_bytes} bytes of memory")
            return False
        used_seconds = kernel.cpu_seconds - kernel.base_cpu_seconds
        # The kernel process itself is ended by RLIMIT_CPU; this is for the sum of its children.
        if used_seconds > kernel.cpu_limit_seconds + 1:
            reason = f"used {used_seconds:.1f} s of processor time and may use {kernel.cpu_limit_seconds:g} s"
            self._on_limit(kernel, "cpu_limit", reason)
            return False
        return True

    def _look_at_disk(self, kernel: Kernel) -> bool:
        limit_bytes = kernel.limits.disk_bytes
        used_bytes = kernel.containment.disk_bytes(limit_bytes)
        if used_bytes > limit_bytes:
            reason = f"has {used_bytes} bytes or too many files on disk and may have {limit_bytes} bytes"
            self._on_limit(kernel, "disk_limit", reason)
            return False
        return True
