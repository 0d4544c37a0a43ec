"""The processes of one workspace: finding them, measuring what they use together, and killing them all."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

from kernel_spec.linux import procfs
from kernel_spec.protocol.limits import Limits
from kernel_spec.protocol.values import WorkspaceInfo
from kernel_spec.sandbox import Identity, SandboxError
from kernel_spec.sandbox.accounting import disk, memory_use, processes
from kernel_spec.sandbox.accounting.cgroup import Group
from kernel_spec.sandbox.accounting.cgroup_tree import Tree
from kernel_spec.sandbox.policy.plan import MEMORY_WATCH

#: How long the launcher may work on one workspace before it serves the others: enough to stop all its processes once
#: and to kill them once.
_BLOCKING_SECONDS = 0.03
#: Directory entries beyond which a workspace counts as over its limit, so that a measurement takes bounded time.
_MOST_ENTRIES = 20_000
#: The same for a shared /dev/shm, which is read more often, and whose files one by one when a kernel ends.
_MOST_SHARED_FILES = 1_000

#: The kernel and, where an intermediate process starts them, the init of its pid namespace and the broker of its
#: sockets; they do not count as the job's. Where there are fewer, RLIMIT_NPROC keeps the job from having more.
_OWN_PROCESSES = 3


@dataclass(frozen=True, slots=True)
class WorkspaceUsage:
    """Resources that all processes of a workspace use now."""

    processes: int
    memory_bytes: int
    cpu_seconds: float


class KernelProcesses:
    """The processes of one workspace: of its control group if it has one, else of its user, else with its mark.

    Parameters
    ----------
    workspace : WorkspaceInfo
        The workspace.
    own_uid : bool
        Whether the workspace has a user id of its own.
    unlinked_shm_bytes : callable
        Returns the size of the unlinked files in /dev/shm that belong to an unknown workspace.
    """

    def __init__(
        self, workspace: WorkspaceInfo, *, own_uid: bool, unlinked_shm_bytes: Callable[[], int] = lambda: 0
    ) -> None:
        self._workspace = workspace
        self._unlinked_shm_bytes = unlinked_shm_bytes
        self._identity = Identity(workspace.uid, workspace.gid) if own_uid else None
        self._group: Group | None = None
        self._own_cpu: dict[tuple[int, int], float] = {}
        self._ended_cpu_seconds = 0.0

    def create_group(self, tree: Tree | None, limits: Limits) -> tuple[str, ...]:
        """Make a control group for the workspace, if there are control groups.

        The first process enters it itself. Moving that process from here would block the launcher for 10 ms each time
        (measured, version 1: Linux waits for a grace period), and with it every kill that is under way.

        Parameters
        ----------
        tree : Tree or None
            Where groups are made; None without control groups.
        limits : Limits
            Limits of the group.

        Returns
        -------
        tuple of str
            The files by which a process enters the group.

        Raises
        ------
        SandboxError
            The group could not be made; the kernel must not start.
        """
        self._own_cpu, self._ended_cpu_seconds = {}, 0.0
        if tree is None:
            return ()
        if self._group is not None:
            # Its counters are those of the previous kernel, which may have exceeded its limits.
            self._group.remove()
        self._group = tree.create(self._workspace.name, limits, extra_processes=_OWN_PROCESSES)
        return self._group.entrances

    def kill_group(self) -> None:
        """Send SIGKILL to all processes of the control group, at once and without reading /proc."""
        if self._group is not None:
            self._group.kill()

    def freeze(self) -> bool:
        """Freeze the control group, and return whether there is one that can freeze; see `is_frozen`."""
        return self._group is not None and self._group.freeze()

    def is_frozen(self) -> bool:
        """Return whether all processes of the control group are frozen."""
        return self._group is not None and self._group.is_frozen()

    def is_stopped(self) -> bool:
        """Return whether no process of the workspace can run any more; always False without a control group."""
        return self._group is not None and self._group.is_stopped()

    def end(self) -> bool:
        """Kill all processes, for a short time, and return whether none lives; the caller reaps and repeats this.

        Nothing is reaped here: one place collects the status and the usage of a kernel. And the init of a pid namespace
        ends only when the kernel has been reaped, so waiting for it here would never end.
        """
        try:
            if self._group is not None:
                processes.end_all(self._statuses, deadline_seconds=_BLOCKING_SECONDS, reaps=False)
            else:
                directory = self._workspace.workspace_dir
                processes.end_workspace(directory, self._identity, deadline_seconds=_BLOCKING_SECONDS, reaps=False)
        except SandboxError:
            return False
        return True

    def usage(self, limits: Limits, template_bytes: int) -> WorkspaceUsage:
        """Measure memory and processor time of all processes of the workspace.

        Parameters
        ----------
        limits : Limits
            Limits of the kernel.
        template_bytes : int
            Memory of the fork server that each forked process shows as its own.

        Returns
        -------
        WorkspaceUsage
        """
        uid = self._identity.uid if self._identity is not None else None
        statuses = self._statuses()
        found = memory_use.measure(
            statuses,
            limit_bytes=limits.memory_bytes,
            template_bytes=template_bytes,
            uid=uid,
            unlinked_shm_bytes=self._unlinked_shm_bytes(),
        )
        counted_seconds = self._group.cpu_seconds() if self._group is not None else None
        if counted_seconds is None:
            counted_seconds = self._seen_cpu_seconds(statuses)
        return WorkspaceUsage(found.processes, found.memory_bytes, max(found.cpu_seconds, counted_seconds))

    def _seen_cpu_seconds(self, statuses: Iterable[procfs.ProcessStatus]) -> float:
        """Return the processor time of all processes that were ever measured, as of their last measurement.

        The time of a process that ends is added to that of its parent only if the parent waits for it (times(2)): not
        if the parent ignores SIGCHLD or has ended before.
        """
        before, self._own_cpu = self._own_cpu, {}
        for status in statuses:
            started, seconds = procfs.read_own_cpu(status.pid)
            self._own_cpu[status.pid, started] = seconds
        self._ended_cpu_seconds += sum(before[process] for process in before.keys() - self._own_cpu.keys())
        return self._ended_cpu_seconds + sum(self._own_cpu.values())

    def disk_bytes(self, limit_bytes: int) -> int:
        """Return the size of the job's files on disk.

        Inputs do not count: a job cannot write them, and they may be far larger than the limit.

        Parameters
        ----------
        limit_bytes : int
            The limit; too many files, in /dev/shm too, too many levels of directories, or a directory that this process
            may not read, count as one byte more.

        Returns
        -------
        int
        """
        workspace = self._workspace
        directories = filter(os.path.lexists, (workspace.work_dir, workspace.out_dir, workspace.ipc_dir))
        try:
            living = [status.pid for status in self._statuses() if status.is_alive]
            found = disk.measure(*directories, pids=living, most_entries=_MOST_ENTRIES)
        except (PermissionError, NotADirectoryError):  # a job of the launcher's own user could hide its files
            return limit_bytes + 1
        except OSError:  # too many open files: the next measurement follows soon
            return 0
        shared = 0 if self._identity is None else memory_use.count_shared_files(self._identity.uid)
        is_countable = found.complete and found.entries <= _MOST_ENTRIES and shared <= _MOST_SHARED_FILES
        return found.used_bytes if is_countable else max(found.used_bytes, limit_bytes + 1)

    def oom_kills(self) -> int:
        """Return the number of processes that the control group's memory limit has killed."""
        return self._group.oom_kills() if self._group is not None else 0

    def release(self) -> None:
        """Remove the control group and shared memory of the workspace; none of its processes may live.

        Raises
        ------
        SandboxError
            Something could not be removed; the workspace must not be used again.
        """
        group, self._group = self._group, None
        if group is not None:
            group.remove()
        if self._identity is not None:
            # Without a private /dev/shm the next kernel of this user could open such files by name.
            try:
                memory_use.sweep_shared_files(self._identity.uid)
            except OSError as error:
                raise SandboxError(MEMORY_WATCH, f"a file in /dev/shm could not be removed: {error}") from error

    def _statuses(self) -> tuple[procfs.ProcessStatus, ...]:
        if self._group is not None:
            # The first process entered the group before it forked any other, and none can leave. So these are all
            # processes, at a twentieth of the cost of reading /proc.
            found = map(procfs.read_status, self._group.pids())
            return tuple(status for status in found if status is not None)
        return processes.of_workspace(self._workspace.workspace_dir, self._identity)


def kill_process(pidfd: int) -> None:
    """Send SIGKILL through a pidfd; a process that has ended is no error."""
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def end_marked(workspace_dir: str) -> None:
    """Kill the processes with the mark of a workspace that a dead launcher left, under the launcher's own user."""
    processes.end_workspace(workspace_dir, None)


def end_leftovers(uid: int) -> None:
    """Kill the processes of a newly leased user id and remove its shared memory; a dead launcher left them."""
    processes.end_workspace("/", Identity(uid, uid))
    memory_use.sweep_shared_files(uid)
