"""Values inside of the messages: reports, workspaces and plans, and the bounds of their numbers."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from kernel_spec.protocol.limits import Limits

Cause = Literal["exit", "signal", "memory_limit", "cpu_limit", "disk_limit", "killed_by_us", "launcher_lost"]
Style = Literal["job", "notebook"]
StartedBy = Literal["fork", "plain"]

#: A number of bytes, of requests or of anything else that is counted.
Count = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
#: PID_MAX_LIMIT of linux/threads.h; 0 is no process.
Pid = Annotated[int, Meta(ge=0, le=1 << 22)]
#: A user or group id; the largest number of 32 bits means "unchanged" (chown(2)).
UserId = Annotated[int, Meta(ge=0, le=(1 << 32) - 2)]
Seconds = Annotated[float, Meta(ge=0)]


class Value(Struct, frozen=True, forbid_unknown_fields=True):
    """Base of values inside of messages: decoding refuses unknown fields, missing fields and other types."""


class ExitReport(Value, frozen=True):
    """How a kernel ended, by the records of its parent, the launcher.

    Attributes
    ----------
    wait_status : int or None
        As wait(2) returns it; None if the kernel was not reaped.
    signal : int or None
        The signal that ended the kernel.
    exit_code : int or None
        The code with which the kernel exited.
    cause : Cause
        ``exit`` and ``signal`` are the kernel's own doing. Linux or the limit monitor enforced a ``..._limit``. The
        gateway asked for ``killed_by_us``. ``launcher_lost`` means that the launcher itself is gone.
    peak_memory_bytes : int
        Of the whole workspace where the limit monitor measured it, else of the kernel process.
    cpu_seconds : float
        Processor time.
    detail : str
        The cause as the predicate of a sentence about the kernel.
    """

    wait_status: Annotated[int, Meta(ge=0, le=0xFFFF)] | None
    signal: Annotated[int, Meta(ge=1, le=127)] | None
    exit_code: Annotated[int, Meta(ge=0, le=255)] | None
    cause: Cause
    peak_memory_bytes: Count
    cpu_seconds: Seconds
    detail: str

    @property
    def return_code(self) -> int:
        """The exit code, or minus the signal, as `subprocess` counts."""
        if self.signal is not None:
            return -self.signal
        return self.exit_code if self.exit_code is not None else -9


class WorkspaceInfo(Value, frozen=True):
    """The workspace of a kernel; all paths are absolute."""

    name: str
    uid: UserId
    gid: UserId
    workspace_dir: str
    ipc_dir: str
    inputs_dir: str
    work_dir: str
    out_dir: str

    @classmethod
    def below(cls, root_dir: str, name: str, uid: int, gid: int) -> WorkspaceInfo:
        """Return the workspace of this name and user.

        Parameters
        ----------
        root_dir : str
            Directory of all workspaces.
        name : str
            Name of the workspace's own directory.
        uid, gid : int
            Its user and group.
        """
        place = f"{root_dir}/{name}"
        return cls(name, uid, gid, place, f"{place}/ipc", f"{place}/inputs", f"{place}/work", f"{place}/out")


class KernelPlan(Value, frozen=True):
    """Everything a process needs to become the kernel of one workspace.

    Attributes
    ----------
    uid, gid : int or None
        None if the kernel keeps the launcher's user.
    layers : tuple of str
        Sandbox layers to apply; one that fails ends the start.
    group_entrances : tuple of str
        Files by which the process enters its control group.
    allow_loopback : bool
        Extends `allow_network` to this machine and its link.
    debugger : bool
        Whether the kernel serves the debugger protocol, for which it gets a loopback interface of its own.
    is_restart : bool
        Whether another kernel ran before, whose clients connect again.
    """

    kernel_id: str
    workspace: WorkspaceInfo
    connection_path: str
    uid: UserId | None
    gid: UserId | None
    limits: Limits
    layers: tuple[str, ...]
    read_only_paths: tuple[str, ...]
    allow_network: bool
    style: Style
    has_log: bool
    launcher_pid: Pid
    environment: dict[str, str]
    group_entrances: tuple[str, ...] = ()
    allow_loopback: bool = False
    debugger: bool = False
    is_restart: bool = False
