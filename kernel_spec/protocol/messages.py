"""Messages between gateway, launcher, fork server and kernels; `kernel_spec.protocol.channel` carries them.

Requests of the gateway carry an ``id`` that the answer repeats. Every request gets exactly one answer: its own, or
`Refused`. No message may carry a secret: the fork server's memory becomes each kernel's memory.

====================  =================================  ==========================================
from, to              message                            descriptors sent with it
====================  =================================  ==========================================
gateway, launcher     Reserve Signal LimitCpu Stop Kill
                      Remove Usage Status Renew Shutdown
gateway, launcher     Start                              stdout, stderr, then the log pipe if any
provisioner, gateway  Take Start Signal Kill             as to the launcher; the answers are the launcher's too
launcher, gateway     Hello Exited ForkServerChanged     (events, without a request)
launcher, gateway     Started                            pidfd of the kernel
launcher, gateway     Reserved Stopped Killed Removed
                      Signalled Limited UsageReport
                      StatusReport Renewed ShutdownComplete
                      Refused
launcher, fork server Fork                               start barrier, liveness pipe or pidfd of the init,
                                                         stdout, stderr, log pipe if any
fork server, launcher ForkServerReady ForkServerNotForkable
                      Forked ForkRefused
kernel, launcher      KernelForked StageReached          (on the socket of the start barrier)
                      StartFailed
launcher, kernel      Go
====================  =================================  ==========================================
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, field

from kernel_spec.protocol.limits import Limits
from kernel_spec.protocol.values import (
    Count,
    ExitReport,
    KernelPlan,
    Pid,
    Seconds,
    StartedBy,
    Style,
    UserId,
    Value,
    WorkspaceInfo,
)


class Message(Value, frozen=True, tag_field="kind", tag=True):
    """Base of all messages; each carries the name of its class as ``kind``."""


class Request(Message, frozen=True):
    """Base of the gateway's requests."""

    id: Count


class KernelRequest(Request, frozen=True):
    """Base of requests about one kernel."""

    kernel_id: str


class Answer(Message, frozen=True):
    """Base of the launcher's answers; `id` is that of the request."""

    id: Count


# ----------------------------------------------------------------------------- gateway to launcher
class Reserve(KernelRequest, frozen=True):
    """Reserve a free workspace for a kernel.

    Attributes
    ----------
    style : Style
        The gateway writes the inputs of a job, and the companion those of a notebook, as the launcher's user.
    """

    style: Style = "job"


class Start(KernelRequest, frozen=True):
    """Start the kernel of a workspace over its connection file; after a `Kill` this starts another one there.

    Attributes
    ----------
    debugger : bool
        Serve the debugger protocol: the kernel is started plainly and gets a loopback interface of its own.
    has_clients : bool
        Clients may have begun to connect, as those of a kernel that a front end restarts in another workspace.
    """

    limits: Limits
    style: Style = "job"
    allow_network: bool = False
    plain: bool = False
    has_log: bool = True
    debugger: bool = False
    has_clients: bool = False


class Signal(KernelRequest, frozen=True):
    """Send a signal to the kernel's process group."""

    number: Annotated[int, Meta(ge=1, le=64)]


class LimitCpu(KernelRequest, frozen=True):
    """Limit the processor time of the kernel's job, counted from now."""

    cpu_seconds: Annotated[int, Meta(ge=1, le=(1 << 31) - 1)]


class Stop(KernelRequest, frozen=True):
    """Make sure that no process of a kernel runs any more; processes that are only frozen still need a `Kill`."""


class Kill(KernelRequest, frozen=True):
    """Kill all processes of a kernel; the answer comes when none of them lives."""


class Remove(KernelRequest, frozen=True):
    """Remove the workspace's directory and free the workspace; after `Kill`."""


class Usage(KernelRequest, frozen=True):
    """Measure what all processes of a kernel use."""


class Status(Request, frozen=True):
    """Ask for the state of the launcher and of all kernels."""


class Renew(Request, frozen=True):
    """Replace the fork server by one with the current added packages; existing kernels go on."""


class Shutdown(Request, frozen=True):
    """Kill and remove everything, then exit."""


# ----------------------------------------------------------------------------- provisioner to gateway
class Take(Request, frozen=True):
    """Reserve a workspace for the one kernel of this connection, if the gateway's kernels are of the kind asked for.

    Attributes
    ----------
    environment_dir : str
        Directory of the Python environment (`sys.prefix`), whose packages the kernel must have.
    allow_network, allow_loopback : bool
        See `LauncherOptions`.
    """

    environment_dir: str
    allow_network: bool
    allow_loopback: bool


# ----------------------------------------------------------------------------- launcher to gateway
class Hello(Message, frozen=True):
    """The launcher is ready; the first message except for `ForkServerChanged`."""

    pid: Pid
    tier: str
    own_uids: bool
    workspace_gids: tuple[UserId, ...]
    layers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    report: dict[str, Any] = field(default_factory=dict)


class Reserved(Answer, frozen=True):
    """Answer to `Reserve`."""

    workspace: WorkspaceInfo


class Started(Answer, frozen=True):
    """Answer to `Start`: clients can connect.

    Attributes
    ----------
    is_prefaulted : bool
        Whether the kernel has already copied the memory pages that a first job writes to.
    """

    pid: Pid
    started_by: StartedBy
    is_prefaulted: bool = False


class Signalled(Answer, frozen=True):
    """Answer to `Signal`."""


class Limited(Answer, frozen=True):
    """Answer to `LimitCpu`."""


class Stopped(Answer, frozen=True):
    """Answer to `Stop`: the kernel's files do not change any more; `report` says what is known about its end so far."""

    report: ExitReport


class Killed(Answer, frozen=True):
    """Answer to `Kill`: no process of the kernel lives."""

    report: ExitReport


class Removed(Answer, frozen=True):
    """Answer to `Remove`: nothing of the workspace is left."""


class UsageReport(Answer, frozen=True):
    """Answer to `Usage`."""

    processes: Count
    memory_bytes: Count
    peak_memory_bytes: Count
    cpu_seconds: Seconds
    disk_bytes: Count


class StatusReport(Answer, frozen=True):
    """Answer to `Status`."""

    status: dict[str, Any]


class Renewed(Answer, frozen=True):
    """Answer to `Renew`: the new fork server is starting."""


class ShutdownComplete(Answer, frozen=True):
    """Answer to `Shutdown`."""


class Refused(Answer, frozen=True):
    """A request was not carried out; `code` is for programs, `message` for people."""

    code: str
    message: str
    report: ExitReport | None = None


class Exited(Message, frozen=True):
    """A kernel process has ended, with or without a request; the launcher kills the other processes of its job."""

    kernel_id: str
    report: ExitReport


class ForkServerChanged(Message, frozen=True):
    """The fork server has changed its state, see `kernel_spec.launcher.fork_server_client`."""

    state: str
    reason: str


# ----------------------------------------------------------------------------- launcher and fork server
class Fork(Message, frozen=True):
    """Fork the kernel of a plan: as the launcher's child, or by an intermediate process.

    Attributes
    ----------
    is_direct : bool
        Whether to fork the launcher's child. The second descriptor is then a pidfd of the init in whose pid namespace
        the kernel shall be, else the liveness pipe.
    """

    number: Count
    plan: KernelPlan
    is_direct: bool = False


class ForkServerReady(Message, frozen=True):
    """The fork server has imported and tested everything; from now on it forks.

    Attributes
    ----------
    deferred : tuple of str
        Packages that are imported but stay hidden until a job imports them.
    prefault_pages : int
        Number of memory pages that each kernel copies before its boot.
    can_clone_parent : bool
        Whether it can fork children of the launcher.
    """

    import_seconds: Seconds
    resident_bytes: Count
    missing: tuple[str, ...] = ()
    deferred: tuple[str, ...] = ()
    prefault_pages: Count = 0
    can_clone_parent: bool = False


class ForkServerNotForkable(Message, frozen=True):
    """The fork server must not fork, and ends."""

    reason: str


class Forked(Message, frozen=True):
    """The kernel `pid` is the launcher's child; or, with pid 0, the intermediate process has ended.

    Only the start barrier shows whether an intermediate process succeeded.
    """

    number: Count
    pid: Pid = 0


class ForkRefused(Message, frozen=True):
    """The fork server did not fork."""

    number: Count
    reason: str


# ----------------------------------------------------------------------------- the start barrier of one kernel
class KernelForked(Message, frozen=True):
    """The intermediate process has entered the namespaces and forked the kernel; pids as the launcher sees them."""

    pid: Pid
    init_pid: Pid | None = None


class Go(Message, frozen=True):
    """The launcher is the kernel's parent and has its pid."""


class StageReached(Message, frozen=True):
    """The kernel has reached a stage of its start."""

    stage: Literal["bound", "booted"]


class StartFailed(Message, frozen=True):
    """The kernel could not be started; its process ends."""

    step: str
    reason: str


GATEWAY_REQUESTS: tuple[type[Message], ...] = (
    Reserve, Start, Signal, LimitCpu, Stop, Kill, Remove, Usage, Status, Renew, Shutdown,
)  # fmt: skip
GATEWAY_ANSWERS: tuple[type[Message], ...] = (
    Hello, Reserved, Started, Signalled, Limited, Stopped, Killed, Removed, UsageReport, StatusReport,
    Renewed, ShutdownComplete, Refused, Exited, ForkServerChanged,
)  # fmt: skip
PROVISIONER_REQUESTS: tuple[type[Message], ...] = (Take, Start, Signal, Kill)
FORK_REQUESTS: tuple[type[Message], ...] = (Fork,)
FORK_ANSWERS: tuple[type[Message], ...] = (ForkServerReady, ForkServerNotForkable, Forked, ForkRefused)
BARRIER_REPORTS: tuple[type[Message], ...] = (KernelForked, StageReached, StartFailed)
BARRIER_ORDERS: tuple[type[Message], ...] = (Go,)
