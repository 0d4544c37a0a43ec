"""The client's side of a kernel process of a launcher."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass

from kernel_spec.protocol.values import ExitReport, StartedBy, WorkspaceInfo

#: The report of a kernel whose launcher is gone.
LOST = ExitReport(
    wait_status=None,
    signal=None,
    exit_code=None,
    cause="launcher_lost",
    peak_memory_bytes=0,
    cpu_seconds=0.0,
    detail="the launcher is gone, and its kernels with it",
)


@dataclass(slots=True, eq=False)
class KernelProcess:
    """A kernel that clients can connect to.

    Attributes
    ----------
    kernel_id : str
        The id under which the workspace was reserved.
    pid : int
        Process id.
    pidfd : int
        Readable when the process has ended (pidfd_open(2)); `close` closes it.
    workspace : WorkspaceInfo
        The kernel's workspace.
    exited : asyncio.Future of ExitReport
        Resolves when the launcher has reported how the process ended; never fails.
    started_by : StartedBy
        Whether the fork server forked it.
    is_prefaulted : bool
        Whether the kernel has already copied the memory pages that a first job writes to.
    """

    kernel_id: str
    pid: int
    pidfd: int
    workspace: WorkspaceInfo
    exited: asyncio.Future[ExitReport]
    started_by: StartedBy
    is_prefaulted: bool

    @property
    def uid(self) -> int:
        """User of the workspace."""
        return self.workspace.uid

    @property
    def gid(self) -> int:
        """Group of the workspace."""
        return self.workspace.gid

    def close(self) -> None:
        """Close the pidfd; safe to call twice."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1
