"""Limits of each process, by setrlimit(2), hard and soft alike, and the mark that identifies a workspace's processes.

Two of them are subtle:

* RLIMIT_AS counts address space, not memory. A kernel with pandas, pyarrow, Polars and DuckDB maps 569 MB while 139 MB
  are resident, so the limit is set only when the kernel is ready, to *what it maps then* plus the memory limit
  (`bound_memory`). RLIMIT_DATA, private writable memory, is the limit itself and gives the MemoryError.
* RLIMIT_NPROC counts all processes and threads of the user, in whatever container. Where jobs share a uid with others,
  the limit is what runs already plus the job's own.

They cannot bound the sum over children of memory or processor time, nor shared memory that no process maps. The control
group or the limit monitor does.
"""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path
from typing import Final

from kernel_spec.linux import procfs
from kernel_spec.protocol.limits import Limits
from kernel_spec.sandbox.policy.errors import SandboxError
from kernel_spec.sandbox.policy.plan import PID_NAMESPACE, RLIMITS, USER_NAMESPACE, SandboxPlan

#: After the soft limit the process gets SIGXCPU each second; a job that ignores it is killed here.
CPU_GRACE_SECONDS: Final = 2

_STACK_BYTES: Final = 8 << 20

#: RLIMIT_RTTIME bounds real-time scheduling only, which no job may use: its value is free to carry a mark.
MARK_RESOURCE: Final = resource.RLIMIT_RTTIME
_MARK_BASE: Final = 1 << 40


class _Statm:
    """The descriptor of /proc/self/statm, opened while /proc can still be reached."""

    fd: int | None = None


def workspace_mark(workspace_dir: str) -> int:
    """Return the number that all processes of the workspace carry as their RLIMIT_RTTIME.

    Children inherit it, and the seccomp layer refuses to change it, so it identifies the workspace of a process even
    where jobs share one uid and processes have left their session and their parents. Every user can read it in
    ``/proc/<pid>/limits``.
    """
    name = Path(workspace_dir).name
    try:
        number = int(name, 16)
    except ValueError:
        number = int.from_bytes(name.encode()[-4:], "big")
    return _MARK_BASE + (number & 0xFFFFFFFF)


def apply(plan: SandboxPlan) -> None:
    """Set all limits of the plan but the address space, which `bound_memory` sets.

    Raises
    ------
    SandboxError
        A limit could not be set, for instance because a lower hard limit is in force.
    """
    limits = plan.limits
    # A write past the limit then fails with EFBIG, which Python reports; the signal would end the kernel.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if os.getpriority(os.PRIO_PROCESS, 0) < 0:
        # A launcher may have been started with a higher priority; jobs get the normal one.
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    # 0 forbids a core file, but not a program on the host that takes the core (core(5)); 1 byte forbids both.
    _set(resource.RLIMIT_CORE, 1)
    _set(resource.RLIMIT_FSIZE, limits.file_size_bytes)
    _set(resource.RLIMIT_NOFILE, limits.descriptors)
    _set(resource.RLIMIT_NPROC, _processes(plan))
    _set(resource.RLIMIT_MEMLOCK, 0)
    _set(resource.RLIMIT_MSGQUEUE, 0)
    _set(resource.RLIMIT_NICE, 0)
    _set(resource.RLIMIT_RTPRIO, 0)
    _set(resource.RLIMIT_STACK, _STACK_BYTES)
    _set(resource.RLIMIT_DATA, limits.memory_bytes)
    _set(resource.RLIMIT_CPU, limits.cpu_seconds, limits.cpu_seconds + CPU_GRACE_SECONDS)
    _set(MARK_RESOURCE, workspace_mark(plan.workspace_dir))


def _processes(plan: SandboxPlan) -> int:
    """Return RLIMIT_NPROC: the job's own processes, the init of its pid namespace, its broker, others of its uid."""
    own = plan.limits.processes + plan.has(PID_NAMESPACE) + plan.brokers_sockets
    # A user namespace counts its own processes, so others of this uid do not count.
    if plan.identity is not None or plan.has(USER_NAMESPACE):
        return own
    return own + _tasks_of_uid(os.getuid())


def _tasks_of_uid(uid: int) -> int:
    return sum(status.threads for status in procfs.all_statuses() if status.uid == uid)


def _set(kind: int, soft: int, hard: int | None = None) -> None:
    """Set a limit, or keep a lower hard limit of the host, which may not be raised."""
    hard = soft if hard is None else hard
    ceiling = resource.getrlimit(kind)[1]
    if ceiling != resource.RLIM_INFINITY and ceiling < hard:
        hard = ceiling
        soft = min(soft, hard)
    try:
        resource.setrlimit(kind, (soft, hard))
    except (OSError, ValueError) as error:
        raise SandboxError(RLIMITS, f"setrlimit {kind} to {soft}: {error}") from error


def remember_own_mappings(proc_fd: int | None = None) -> None:
    """Open the file that `bound_memory` reads; the kernel cannot reach /proc once Landlock is on.

    Parameters
    ----------
    proc_fd : int or None
        A descriptor of /proc, for a process whose root has no /proc; "self" is the process that opens the file.
    """
    forget_own_mappings()
    path = "/proc/self/statm" if proc_fd is None else "self/statm"
    _Statm.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc_fd)


def forget_own_mappings() -> None:
    """Close the file that `remember_own_mappings` opened."""
    if _Statm.fd is not None:
        os.close(_Statm.fd)
        _Statm.fd = None


def bound_memory(limits: Limits) -> int:
    """Limit the address space to the current mappings plus the memory limit, and return the sum in bytes.

    Call it once in the kernel process, when the kernel is ready and before anything of a job runs.

    Raises
    ------
    SandboxError
        The mappings are unknown or the limit could not be set.
    """
    try:
        if _Statm.fd is None:
            remember_own_mappings()
        raw = os.pread(_Statm.fd, 256, 0) if _Statm.fd is not None else b""
        mapped_bytes = int(raw.split()[0]) * resource.getpagesize()
    except (OSError, ValueError, IndexError) as error:
        raise SandboxError(RLIMITS, f"cannot read the size of the kernel's mappings: {error}") from error
    finally:
        forget_own_mappings()
    total = mapped_bytes + limits.memory_bytes
    _set(resource.RLIMIT_AS, total)
    return total
