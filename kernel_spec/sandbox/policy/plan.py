"""The plan of one kernel's sandbox: a value that the launcher makes and the forked processes carry out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kernel_spec.protocol.limits import Limits

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

#: All layers, in the order in which reports show them.
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
    """User and group of a workspace; no supplementary groups."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class SandboxPlan:
    """The sandbox of one kernel.

    Attributes
    ----------
    identity : Identity or None
        User to become, or None to stay the current one.
    limits : Limits
        Limits of the kernel and everything it starts.
    workspace_dir : str
        Absolute path of the workspace directory, with ``ipc/``, ``inputs/``, ``work/`` and ``out/``.
    read_only_paths : tuple of str
        Paths that a job may read and execute in addition to its workspace, see
        `readable_paths.default_read_only_paths`.
    layers : frozenset of str
        Names from `LAYERS` that the probe found; each of those that act on a process must succeed.
    allow_network : bool
        Give the job the network: its internet sockets come from the broker, which is outside of its network namespace.
    parent_pid : int
        The launcher's pid; a kernel with another parent does not start.
    allow_loopback : bool
        Give a job with the network also access to this machine and its link: no broker and no network namespace.
    own_loopback : bool
        Give the kernel a loopback interface in its network namespace and unfiltered sockets, which reach nothing else.
    """

    identity: Identity | None
    limits: Limits
    workspace_dir: str
    read_only_paths: tuple[str, ...]
    layers: frozenset[str]
    allow_network: bool
    parent_pid: int
    allow_loopback: bool = False
    own_loopback: bool = False

    def has(self, layer: str) -> bool:
        """Return whether `layer` belongs to the plan."""
        return layer in self.layers

    @property
    def brokers_sockets(self) -> bool:
        """Whether the job has the network but gets its sockets from a broker, see `socket_broker`."""
        return self.allow_network and not self.allow_loopback

    @property
    def is_on_network(self) -> bool:
        """Whether the job makes its own sockets on the machine's network."""
        return self.allow_network and self.allow_loopback

    @property
    def opens_sockets(self) -> bool:
        """Whether the job may open internet sockets."""
        return self.allow_network or self.own_loopback

    @property
    def shares_uid(self) -> bool:
        """Whether the job can name other processes that run under its uid."""
        return self.identity is None and not self.has(PID_NAMESPACE)
