"""The limit monitor: it measures running kernels for the limits that no rlimit of a single process enforces.

These are memory, processor time and disk of all processes of a workspace together. Where a control group limits memory,
only processor time and disk are left. A kernel that waits for a job is not monitored: it runs only our own code.
"""

from __future__ import annotations

from collections.abc import Callable

from kernel_spec.launcher.event_loop import Loop
from kernel_spec.launcher.kernel import Kernel, KernelPhase
from kernel_spec.protocol.values import Cause
from kernel_spec.sandbox.accounting.disk import MOST_LEVELS

#: Reading /proc takes some milliseconds. Memory can grow by a gigabyte in half a second.
MEMORY_PERIOD_SECONDS = 0.1
CPU_PERIOD_SECONDS = 0.5
#: A local disk takes more than a gigabyte a second (measured: with a period of one second, a job wrote 3 GB before the
#: second gigabyte was noticed).
DISK_PERIOD_SECONDS = 0.2

OnLimit = Callable[[Kernel, Cause, str], None]


class LimitMonitor:
    """Measures kernels until they end.

    Parameters
    ----------
    loop : Loop
        The launcher's loop.
    memory : bool
        Whether to enforce the limit of memory, because no control group does.
    disk : bool
        Whether to enforce the limit of disk space.
    template_bytes : callable
        Returns the memory of the fork server that each forked process shows as its own.
    on_limit : callable
        Called with the kernel, the cause and a text; at most once for each kernel.
    """

    def __init__(
        self, loop: Loop, *, memory: bool, disk: bool, template_bytes: Callable[[], int], on_limit: OnLimit
    ) -> None:
        self._loop = loop
        self._memory = memory
        self._disk = disk
        self._template_bytes = template_bytes
        self._on_limit = on_limit

    def watch(self, kernel: Kernel) -> None:
        """Measure the kernel until it ends; a second call does nothing."""
        if kernel.is_monitored:
            return
        kernel.is_monitored = True
        self._again(kernel, MEMORY_PERIOD_SECONDS if self._memory else CPU_PERIOD_SECONDS, self._measure_use)
        if self._disk:
            self._again(kernel, DISK_PERIOD_SECONDS, self._measure_disk)

    def _again(self, kernel: Kernel, seconds: float, measure: Callable[[Kernel], bool]) -> None:
        def due() -> None:
            kernel.timers.discard(timer)
            if kernel.phase in (KernelPhase.STARTING, KernelPhase.RUNNING) and measure(kernel):
                self._again(kernel, seconds, measure)

        timer = self._loop.call_later(seconds, due)
        kernel.timers.add(timer)

    def _measure_use(self, kernel: Kernel) -> bool:
        limits = kernel.limits
        usage = kernel.processes.usage(limits, self._template_bytes())
        kernel.cpu_seconds = max(kernel.cpu_seconds, usage.cpu_seconds)
        if self._memory:
            kernel.peak_memory_bytes = max(kernel.peak_memory_bytes, usage.memory_bytes)
            if usage.memory_bytes > limits.memory_bytes:
                reason = f"used {usage.memory_bytes} bytes of memory and may use {limits.memory_bytes}"
                self._on_limit(kernel, "memory_limit", reason)
                return False
        if kernel.processes.oom_kills():
            # A control group may have killed a child only; a result without that child is of no use.
            self._on_limit(kernel, "memory_limit", f"exceeded its {limits.memory_bytes} bytes of memory")
            return False
        used_seconds = kernel.cpu_seconds - kernel.base_cpu_seconds
        # RLIMIT_CPU ends the kernel process itself; this is for the sum with its children.
        if used_seconds > kernel.cpu_limit_seconds + 1:
            reason = f"used {used_seconds:.1f} s of CPU time and may use {kernel.cpu_limit_seconds:g} s"
            self._on_limit(kernel, "cpu_limit", reason)
            return False
        return True

    def _measure_disk(self, kernel: Kernel) -> bool:
        limit_bytes = kernel.limits.disk_bytes
        used_bytes = kernel.processes.disk_bytes(limit_bytes)
        if used_bytes > limit_bytes:
            reason = (
                f"has {used_bytes} bytes on disk, too many files, more than {MOST_LEVELS} levels of directories or "
                f"a directory that cannot be read, and may have {limit_bytes} bytes"
            )
            self._on_limit(kernel, "disk_limit", reason)
            return False
        return True
