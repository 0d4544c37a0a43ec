"""What gateway, launcher and fork server say to each other; `kernel_spec.channel` carries it.

Requests of the gateway carry an ``id`` that the answer repeats. Every request gets exactly one answer: its own, or
`Refused`. Nothing here is secret, and nothing here may ever be: the fork server's memory becomes each kernel's memory.

====================  =================================  ==========================================
from, to              message                            descriptors beside it
====================  =================================  ==========================================
gateway, launcher     Reserve Signal LimitCpu Halt Kill
                      Remove Usage Status Stop
gateway, launcher     Start                              stdout, stderr, then the log pipe if any
launcher, gateway     Hello Exited ForkServerChanged     (events, unasked)
launcher, gateway     Started                            pidfd of the kernel
launcher, gateway     Reserved Halted Killed Removed
                      Signalled Limited UsageReport StatusReport Stopped
                      Refused
launcher, fork server Fork                               gate, stdout, stderr, log pipe if any
fork server, launcher ForkServerReady ForkServerUnfit
                      Forked ForkRefused
kernel, launcher      Prepared Staged StartFailed        (on the gate of that one start)
launcher, kernel      Proceed
====================  =================================  ==========================================
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from kernel_spec.limits import Limits

Cause = Literal["exit", "signal", "memory_limit", "cpu_limit", "disk_limit", "killed_by_us", "launcher_lost"]
Style = Literal["job", "notebook"]
StartedBy = Literal["fork", "plain"]


@dataclass(frozen=True, slots=True)
class ExitReport:
    """How a kernel ended, as far as the launcher, its parent, knows.

    Attributes
    ----------
    cause
        ``exit`` and ``signal`` are the kernel's own doing; a ``..._limit`` was enforced by the kernel of the operating
        system or by a watch; ``killed_by_us`` was asked for; ``launcher_lost`` means nobody was left to tell.
    peak_memory_bytes
        Of the whole seat where a watch or a cgroup measured it, else of the kernel process.
    """

    wait_status: int | None
    signal: int | None
    exit_code: int | None
    cause: Cause
    peak_memory_bytes: int
    cpu_seconds: float
    detail: str

    @property
    def return_code(self) -> int:
        """The exit code, or minus the signal, as `subprocess` counts."""
        if self.signal is not None:
            return -self.signal
        return self.exit_code if self.exit_code is not None else -9


@dataclass(frozen=True, slots=True)
class SeatInfo:
    """Where a kernel lives; all paths are absolute."""

    name: str
    uid: int
    gid: int
    seat_dir: str
    ipc_dir: str
    inputs_dir: str
    work_dir: str
    out_dir: str


@dataclass(frozen=True, slots=True)
class KernelPlan:
    """Everything a process needs to become the kernel of one seat.

    ``uid`` and ``gid`` are None where the kernel keeps the launcher's user. ``layers`` are the sandbox layers to
    apply; one that fails ends the start. ``group_entrances`` are the files by which it enters its control group.
    ``allow_loopback`` widens ``allow_network`` to this machine and its link.
    """

    kernel_id: str
    seat: SeatInfo
    connection_path: str
    uid: int | None
    gid: int | None
    limits: Limits
    layers: tuple[str, ...]
    read_only_paths: tuple[str, ...]
    allow_network: bool
    style: Style
    has_log: bool
    launcher_pid: int
    environment: dict[str, str]
    group_entrances: tuple[str, ...] = ()
    allow_loopback: bool = False


# ----------------------------------------------------------------------------- gateway to launcher
@dataclass(frozen=True, slots=True)
class Reserve:
    """Take a free seat for a kernel."""

    id: int
    kernel_id: str


@dataclass(frozen=True, slots=True)
class Start:
    """Start the kernel of a seat over its connection file; once more after it was killed starts another."""

    id: int
    kernel_id: str
    limits: Limits
    style: Style = "job"
    allow_network: bool = False
    plain: bool = False
    has_log: bool = True


@dataclass(frozen=True, slots=True)
class Signal:
    """Send a signal to the kernel's process group."""

    id: int
    kernel_id: str
    number: int


@dataclass(frozen=True, slots=True)
class LimitCpu:
    """Bound the processor time of the kernel's job, counted from now."""

    id: int
    kernel_id: str
    cpu_seconds: int


@dataclass(frozen=True, slots=True)
class Halt:
    """Let nothing of a kernel run any more; answered as soon as that is so. What is then still there takes a `Kill`."""

    id: int
    kernel_id: str


@dataclass(frozen=True, slots=True)
class Kill:
    """End everything of a kernel; answered when nothing of it lives."""

    id: int
    kernel_id: str


@dataclass(frozen=True, slots=True)
class Remove:
    """Remove the seat's directory and free the seat; after `Kill`."""

    id: int
    kernel_id: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Ask what a kernel and all it started use."""

    id: int
    kernel_id: str


@dataclass(frozen=True, slots=True)
class Status:
    """Ask for everything worth showing."""

    id: int


@dataclass(frozen=True, slots=True)
class Stop:
    """End and remove everything, then exit."""

    id: int


# ----------------------------------------------------------------------------- launcher to gateway
@dataclass(frozen=True, slots=True)
class Hello:
    """The launcher is ready; the first message but for `ForkServerChanged`."""

    pid: int
    tier: str
    own_uids: bool
    seat_gids: tuple[int, ...]
    layers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    report: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reserved:
    """The answer to `Reserve`."""

    id: int
    seat: SeatInfo


@dataclass(frozen=True, slots=True)
class Started:
    """The answer to `Start`: clients can connect.

    ``is_warm`` says that the pages which a first job writes to are the kernel's own already.
    """

    id: int
    pid: int
    started_by: StartedBy
    spawn_seconds: float
    bound_seconds: float
    is_warm: bool = False


@dataclass(frozen=True, slots=True)
class Signalled:
    """The answer to `Signal`."""

    id: int


@dataclass(frozen=True, slots=True)
class Limited:
    """The answer to `LimitCpu`."""

    id: int


@dataclass(frozen=True, slots=True)
class Halted:
    """The answer to `Halt`: what the kernel left will not change; `report` is what is known of its end by now."""

    id: int
    report: ExitReport


@dataclass(frozen=True, slots=True)
class Killed:
    """The answer to `Kill`: nothing of the kernel lives."""

    id: int
    report: ExitReport
    seconds: float


@dataclass(frozen=True, slots=True)
class Removed:
    """The answer to `Remove`: nothing of the seat is left."""

    id: int


@dataclass(frozen=True, slots=True)
class UsageReport:
    """The answer to `Usage`."""

    id: int
    processes: int
    memory_bytes: int
    peak_memory_bytes: int
    cpu_seconds: float
    disk_bytes: int


@dataclass(frozen=True, slots=True)
class StatusReport:
    """The answer to `Status`."""

    id: int
    status: dict[str, object]


@dataclass(frozen=True, slots=True)
class Stopped:
    """The answer to `Stop`."""

    id: int


@dataclass(frozen=True, slots=True)
class Refused:
    """A request was not carried out; `code` is for programs, `message` for people."""

    id: int
    code: str
    message: str
    report: ExitReport | None = None


@dataclass(frozen=True, slots=True)
class Exited:
    """A kernel process has ended, asked or not; what else it started is being ended."""

    kernel_id: str
    report: ExitReport


@dataclass(frozen=True, slots=True)
class ForkServerChanged:
    """The fork server has changed its state, see `kernel_spec.fork_keeper`."""

    state: str
    reason: str


# ----------------------------------------------------------------------------- launcher and fork server
@dataclass(frozen=True, slots=True)
class Fork:
    """Fork the kernel of a plan: directly, as the launcher's child, or by a middle process.

    The gate and the outputs come with it, and between them for a direct fork a pidfd of the init in whose pid namespace
    the kernel shall be, else the lifeline.
    """

    number: int
    plan: KernelPlan
    is_direct: bool = False


@dataclass(frozen=True, slots=True)
class ForkServerReady:
    """Imported and tested; from now on it forks.

    ``forks_directly`` says that it can fork the launcher's children, ``copied_pages`` how many pages each kernel is
    given ahead of its boot, ``set_aside`` what is imported but waits for a job that wants it.
    """

    import_seconds: float
    self_test_seconds: float
    modules: int
    resident_bytes: int
    missing: tuple[str, ...] = ()
    set_aside: tuple[str, ...] = ()
    copied_pages: int = 0
    forks_directly: bool = False


@dataclass(frozen=True, slots=True)
class ForkServerUnfit:
    """It must not fork, and ends."""

    reason: str


@dataclass(frozen=True, slots=True)
class Forked:
    """The kernel of this pid is the launcher's child; or the middle process has ended well or badly, the gate tells."""

    number: int
    pid: int = 0


@dataclass(frozen=True, slots=True)
class ForkRefused:
    """It did not fork."""

    number: int
    reason: str


# ----------------------------------------------------------------------------- the gate of one start
@dataclass(frozen=True, slots=True)
class Prepared:
    """The middle process has entered the namespaces and forked the kernel; pids as the launcher sees them."""

    pid: int
    init_pid: int | None = None


@dataclass(frozen=True, slots=True)
class Proceed:
    """The launcher is the kernel's parent and knows it."""


@dataclass(frozen=True, slots=True)
class Staged:
    """The kernel has reached a stage: ``confined``, ``bound`` or ``booted``."""

    stage: Literal["confined", "bound", "booted"]


@dataclass(frozen=True, slots=True)
class StartFailed:
    """The kernel could not be had; its process ends."""

    step: str
    reason: str


GATEWAY_REQUESTS: tuple[type, ...] = (
    Reserve, Start, Signal, LimitCpu, Halt, Kill, Remove, Usage, Status, Stop,
)  # fmt: skip
GATEWAY_ANSWERS: tuple[type, ...] = (
    Hello, Reserved, Started, Signalled, Limited, Halted, Killed, Removed, UsageReport, StatusReport, Stopped, Refused,
    Exited, ForkServerChanged,
)  # fmt: skip
FORK_REQUESTS: tuple[type, ...] = (Fork,)
FORK_ANSWERS: tuple[type, ...] = (ForkServerReady, ForkServerUnfit, Forked, ForkRefused)
GATE_REPORTS: tuple[type, ...] = (Prepared, Staged, StartFailed)
GATE_ORDERS: tuple[type, ...] = (Proceed,)
