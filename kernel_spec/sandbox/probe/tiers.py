"""The tier that layers amount to, and the texts about each layer.

========== ==================================================================================================
A strong   B, and: a cgroup for each job, pid, mount, network and ipc namespaces, so the host is not visible
B standard C, and: a user for each job. The tier of an ordinary container that is started as root
C reduced  one user for all; files by Landlock or a private root, system calls filtered, no network
D none     no filter of system calls, or files not confined: refused without ALLOW_UNSANDBOXED
========== ==================================================================================================

A proof that fails lowers the tier as well: tiers A to C guarantee that a job has no network, cannot read a file outside
and is limited in memory; A and B that it cannot signal the launcher.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from kernel_spec.sandbox.policy import plan
from kernel_spec.sandbox.probe.report import Proof, Tier

PROOF_NETWORK: Final = "no network"
PROOF_LOOPBACK: Final = "no network to this machine"
PROOF_FILE: Final = "no file outside"
PROOF_SIGNAL: Final = "no signal to the launcher"
PROOF_MEMORY: Final = "memory is bounded"
PROOF_ROOT: Final = "no way back to root"
PROOF_WORK: Final = "Python and the workspace work"

_NEEDED_FOR_C: Final = frozenset(
    {plan.RLIMITS, plan.NO_NEW_PRIVS, plan.SECCOMP, plan.PARENT_DEATH, plan.PROCESSES, plan.DUMPABLE}
)
_NEEDED_FOR_A: Final = frozenset(
    {
        plan.CGROUP,
        plan.PID_NAMESPACE,
        plan.MOUNT_NAMESPACE,
        plan.NETWORK_NAMESPACE,
        plan.IPC_NAMESPACE,
        plan.LANDLOCK,
    }
)

PROMISES: Final[dict[str, str]] = {
    plan.IDENTITY: "each job has a user of its own, which is not the gateway's",
    plan.RLIMITS: "memory, CPU time, processes, descriptors and file sizes of each process are bounded",
    plan.NO_NEW_PRIVS: "no program gives a job more rights, setuid or not",
    plan.DUMPABLE: "processes of one user cannot read each other's memory",
    plan.PARENT_DEATH: "no kernel survives its launcher",
    plan.LANDLOCK: "a job opens its own files and Python, nothing else; no TCP; no signals out",
    plan.SECCOMP: "no network sockets, namespaces, mounts, tracing or exotic interfaces of Linux",
    plan.USER_NAMESPACE: "namespaces without root",
    plan.MOUNT_NAMESPACE: "files of the host do not exist for a job; private /tmp and /dev/shm",
    plan.PID_NAMESPACE: "a job sees and signals its own processes only; all of them end at once",
    plan.NETWORK_NAMESPACE: "no network device, no abstract socket of the host",
    plan.IPC_NAMESPACE: "no System V or POSIX message objects of the host",
    plan.UTS_NAMESPACE: "a host name of its own",
    plan.NETWORK_POLICY: "a job that has the network reaches neither this machine nor its link; TCP only",
    plan.CGROUP: "Linux bounds memory and processes of a whole job",
    plan.PROCESSES: "all processes that a job started are found and killed",
    plan.MEMORY_WATCH: "memory of a whole job is measured, children and shared memory included",
    plan.DISK_QUOTA: "space of a whole job is measured",
}

_ROOT: Final = (
    "start the gateway as root (it gives root up for all but the launcher), with CAP_SETUID, CAP_SETGID, CAP_KILL"
)
_NAMESPACES: Final = (
    "start as root with CAP_SYS_ADMIN and a seccomp profile that allows unshare and mount, or allow unprivileged user "
    "namespaces (sysctl kernel.unprivileged_userns_clone=1, user.max_user_namespaces>0, "
    "kernel.apparmor_restrict_unprivileged_userns=0)"
)
REMEDIES: Final[dict[str, str]] = {
    plan.IDENTITY: _ROOT,
    plan.RLIMITS: "raise the hard limits of the service above those of a job",
    plan.NO_NEW_PRIVS: "Linux 3.5 or newer",
    plan.DUMPABLE: "Linux with prctl(PR_SET_DUMPABLE)",
    plan.PARENT_DEATH: "Linux 5.3 or newer, and a container profile that allows pidfd_open and prctl",
    plan.LANDLOCK: "Linux 5.13 or newer with landlock among the active security modules (boot parameter lsm=)",
    plan.SECCOMP: "Linux 4.14 or newer with seccomp filters, on x86_64 or aarch64",
    plan.USER_NAMESPACE: _NAMESPACES,
    plan.MOUNT_NAMESPACE: _NAMESPACES,
    plan.PID_NAMESPACE: _NAMESPACES + "; in a container with a masked /proc also --security-opt systempaths=unconfined",
    plan.NETWORK_NAMESPACE: _NAMESPACES,
    plan.IPC_NAMESPACE: _NAMESPACES,
    plan.UTS_NAMESPACE: _NAMESPACES,
    plan.NETWORK_POLICY: "Linux 5.14 or newer on x86_64 or aarch64, and no ALLOW_LOOPBACK, which lets jobs have "
    "the network without it; where names are not found, a name server elsewhere (docker run --dns) or CAP_NET_ADMIN",
    plan.CGROUP: "give the service a cgroup of its own to write in (systemd: Delegate=yes; Docker: a writable "
    "/sys/fs/cgroup with --cgroupns=private); else bound the container with --memory and --pids-limit",
    plan.PROCESSES: "a /proc without hidepid",
    plan.MEMORY_WATCH: "start as root with CAP_SYS_PTRACE, or rely on a cgroup",
    plan.DISK_QUOTA: "a state directory that can be read, and a start as root with CAP_SYS_PTRACE",
}


def tier_of(
    active: Collection[str], proofs: Collection[Proof], *, allow_network: bool, allow_loopback: bool = False
) -> Tier:
    """Return the tier of these layers and proofs."""
    failed = {proof.name for proof in proofs if not proof.held}
    files_confined = plan.LANDLOCK in active or plan.MOUNT_NAMESPACE in active
    hard = failed & {PROOF_NETWORK, PROOF_LOOPBACK, PROOF_FILE, PROOF_MEMORY, PROOF_ROOT, PROOF_WORK}
    # The policy is required: without it no job could start.
    policy_missing = allow_network and not allow_loopback and plan.NETWORK_POLICY not in active
    if hard or policy_missing or not files_confined or not set(active) >= _NEEDED_FOR_C:
        return Tier.NONE
    if plan.IDENTITY not in active or PROOF_SIGNAL in failed:
        return Tier.REDUCED
    exempt = {plan.NETWORK_NAMESPACE} if allow_network and allow_loopback else frozenset()
    return Tier.STRONG if _NEEDED_FOR_A - exempt <= set(active) else Tier.STANDARD
