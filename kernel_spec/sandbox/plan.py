"""What one kernel's sandbox shall be, as a value that the launcher makes and the forked processes carry out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kernel_spec.limits import Limits

IDENTITY: Final = "identity"
RLIMITS: Final = "rlimits"
NO_NEW_PRIVS: Final = "no_new_privs"
DUMPABLE: Final = "dumpable"
PARENT_DEATH: Final = "parent_death"
LANDLOCK: Final = "landlock"
SECCOMP: Final = "seccomp"
USER_NAMESPACE: Final = "user_namespace"
MOUNT_NAMESPACE: Final = "mount_namespace"
PID_NAMESPACE: Final = "pid_namespace"
NETWORK_NAMESPACE: Final = "network_namespace"
IPC_NAMESPACE: Final = "ipc_namespace"
UTS_NAMESPACE: Final = "uts_namespace"
NETWORK_POLICY: Final = "network_policy"
CGROUP: Final = "cgroup"
PROCESSES: Final = "processes"
MEMORY_WATCH: Final = "memory_watch"
DISK_QUOTA: Final = "disk_quota"

NAMESPACES: Final = frozenset(
    {
        USER_NAMESPACE,
        MOUNT_NAMESPACE,
        PID_NAMESPACE,
        NETWORK_NAMESPACE,
        IPC_NAMESPACE,
        UTS_NAMESPACE,
    }
)

# In the order in which reports show them.
LAYERS: Final = (
    IDENTITY,
    RLIMITS,
    NO_NEW_PRIVS,
    DUMPABLE,
    PARENT_DEATH,
    LANDLOCK,
    SECCOMP,
    USER_NAMESPACE,
    MOUNT_NAMESPACE,
    PID_NAMESPACE,
    NETWORK_NAMESPACE,
    IPC_NAMESPACE,
    UTS_NAMESPACE,
    NETWORK_POLICY,
    CGROUP,
    PROCESSES,
    MEMORY_WATCH,
    DISK_QUOTA,
)


@dataclass(frozen=True, slots=True)
class Identity:
    """User and group of a seat; no supplementary groups."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class SandboxPlan:
    """The sandbox of one kernel.

    Attributes
    ----------
    identity
        User to become, or None to stay the current one.
    limits
        Limits of the kernel and everything it starts.
    seat_dir
        Absolute path of the seat directory, with ``ipc/``, ``inputs/``, ``work/`` and ``out/``.
    read_only_paths
        What a job may read and execute beside its seat, see `paths.default_read_only_paths`.
    layers
        Names from `LAYERS` that the probe found; each of those that act on a process must succeed.
    allow_network
        Leave the network to the job: no network namespace, internet sockets by way of the broker.
    parent_pid
        The launcher's pid; a kernel whose parent is another one does not start.
    allow_loopback
        With the network also what is on this machine and on its link: no broker, internet sockets not filtered.
    """

    identity: Identity | None
    limits: Limits
    seat_dir: str
    read_only_paths: tuple[str, ...]
    layers: frozenset[str]
    allow_network: bool
    parent_pid: int
    allow_loopback: bool = False

    def has(self, layer: str) -> bool:
        """Return whether `layer` belongs to the plan."""
        return layer in self.layers

    @property
    def brokers_sockets(self) -> bool:
        """Whether the job has the network but gets its sockets from a broker, see `network_policy`."""
        return self.allow_network and not self.allow_loopback

    @property
    def shares_uid(self) -> bool:
        """Whether processes that are not the job's run under its uid and can be named by it."""
        return self.identity is None and not self.has(PID_NAMESPACE)
