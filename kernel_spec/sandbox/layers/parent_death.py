"""End a kernel with its launcher, however the launcher ends.

The parent-death signal follows the process that is the parent *when it dies*. A kernel that is forked as the launcher's
child has one parent in its life. A kernel of a double fork has two: the intermediate process, then the launcher, its
nearest subreaper; a signal asked for too early would come at the end of the intermediate process. getppid(2) tells the
two apart, except in a new pid namespace, where every parent outside is 0. So the intermediate process leaves two pidfds
to the kernel, its own and the launcher's: the first becomes readable only after the kernel has been handed over, the
second shows whether the launcher still lived when the signal was asked for.
"""

from __future__ import annotations

import os
import select
import signal
from dataclasses import dataclass

from kernel_spec.linux import syscalls
from kernel_spec.sandbox.policy.errors import SandboxError
from kernel_spec.sandbox.policy.plan import PARENT_DEATH

_HANDOVER_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Lineage:
    """Pidfds of the intermediate process, None for a kernel that had none, and of the launcher."""

    intermediate_pidfd: int | None
    launcher_pidfd: int

    def close(self) -> None:
        """Close both descriptors; a job must not inherit a handle on the launcher."""
        for descriptor in (self.intermediate_pidfd, self.launcher_pidfd):
            if descriptor is not None:
                os.close(descriptor)


def leave_lineage(launcher_pid: int) -> Lineage:
    """Open the two pidfds, in the intermediate process and before it enters a pid namespace.

    Raises
    ------
    SandboxError
        The launcher is gone already, or this version of Linux has no pidfds.
    """
    try:
        intermediate_pidfd = os.pidfd_open(os.getpid())
    except OSError as error:
        raise SandboxError(PARENT_DEATH, f"pidfd_open: {error}") from error
    try:
        return Lineage(intermediate_pidfd, os.pidfd_open(launcher_pid))
    except OSError as error:
        os.close(intermediate_pidfd)
        raise SandboxError(PARENT_DEATH, f"launcher {launcher_pid} cannot be watched: {error}") from error


def follow_launcher(launcher_pid: int, lineage: Lineage | None) -> None:
    """Ask for SIGKILL at the launcher's death and make sure that it has not happened before.

    Call it after every change of user or of capabilities: those clear the signal. Without a lineage the launcher must
    be the parent already.

    Raises
    ------
    SandboxError
        The intermediate process did not end, the launcher is gone, or another process is the parent.
    """
    if lineage is not None and lineage.intermediate_pidfd is not None:
        _await_handover(lineage.intermediate_pidfd)
    try:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    except OSError as error:
        raise SandboxError(PARENT_DEATH, str(error)) from error
    parent_pid = os.getppid()
    if lineage is not None and _has_ended(lineage.launcher_pidfd, 0.0):
        raise SandboxError(PARENT_DEATH, f"launcher {launcher_pid} ended while the kernel started")
    # 0 is a parent outside of the pid namespace: then the pidfds are the proof.
    if parent_pid != launcher_pid and not (lineage is not None and parent_pid == 0):
        raise SandboxError(PARENT_DEATH, f"the parent is {parent_pid}, not the launcher {launcher_pid}")


def _await_handover(intermediate_pidfd: int) -> None:
    if not _has_ended(intermediate_pidfd, _HANDOVER_SECONDS):
        raise SandboxError(
            PARENT_DEATH, f"the intermediate process still ran {_HANDOVER_SECONDS:g} s after it forked the kernel"
        )


def _has_ended(pidfd: int, timeout_seconds: float) -> bool:
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(timeout_seconds * 1000))
