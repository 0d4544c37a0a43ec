"""The kernels of a launcher as its client knows them: workspaces, processes, and ends that came before a process."""

from __future__ import annotations

import asyncio
import os

from kernel_spec.client.connection import resolve
from kernel_spec.client.kernel_process import LOST, KernelProcess
from kernel_spec.client.process import LauncherError
from kernel_spec.protocol.messages import Started
from kernel_spec.protocol.values import ExitReport, WorkspaceInfo


class LiveKernels:
    """The kernels between the answer to `Reserve` and that to `Remove`, or until the launcher ends."""

    def __init__(self) -> None:
        self._workspaces: dict[str, WorkspaceInfo] = {}
        self._processes: dict[str, KernelProcess] = {}
        self._unclaimed_exits: dict[str, ExitReport] = {}

    def reserved(self, kernel_id: str, workspace: WorkspaceInfo) -> None:
        """Record the workspace of a kernel."""
        self._workspaces[kernel_id] = workspace

    def starting(self, kernel_id: str) -> None:
        """Forget an earlier start in this workspace, which failed; the answer to that start said it all."""
        self._unclaimed_exits.pop(kernel_id, None)

    def started(self, kernel_id: str, answer: Started, pidfd: int) -> KernelProcess:
        """Return the process of a kernel, which owns the pidfd.

        Raises
        ------
        LauncherError
            The launcher ended just after its answer.
        """
        workspace = self._workspaces.get(kernel_id)
        if workspace is None:
            os.close(pidfd)
            raise LauncherError("launcher_lost", "the launcher is gone")
        process = KernelProcess(
            kernel_id=kernel_id,
            pid=answer.pid,
            pidfd=pidfd,
            workspace=workspace,
            exited=asyncio.get_running_loop().create_future(),
            started_by=answer.started_by,
            is_prefaulted=answer.is_prefaulted,
        )
        if (former := self._processes.get(kernel_id)) is not None:
            former.close()
        self._processes[kernel_id] = process
        if kernel_id in self._unclaimed_exits:
            process.exited.set_result(self._unclaimed_exits.pop(kernel_id))
        return process

    def exited(self, kernel_id: str, report: ExitReport) -> None:
        """Record how a kernel ended, also before its start was answered or after that request was cancelled."""
        process = self._processes.get(kernel_id)
        if process is not None:
            resolve(process.exited, report)
        elif kernel_id in self._workspaces:
            self._unclaimed_exits[kernel_id] = report

    def removed(self, kernel_id: str) -> None:
        """Forget a kernel."""
        self._workspaces.pop(kernel_id, None)
        self._unclaimed_exits.pop(kernel_id, None)
        process = self._processes.pop(kernel_id, None)
        if process is not None:
            process.close()

    def end_all(self) -> None:
        """Forget all kernels, because their launcher is gone, and they with it."""
        for process in self._processes.values():
            resolve(process.exited, LOST)
            process.close()
        self._processes.clear()
        self._workspaces.clear()
        self._unclaimed_exits.clear()
