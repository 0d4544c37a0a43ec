"""Calls of `kernel_spec.sandbox` by launcher, fork server and kernel, in terms of a `KernelPlan`."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kernel_spec import sandbox
from kernel_spec.protocol.limits import Limits
from kernel_spec.protocol.messages import Hello
from kernel_spec.protocol.options import LauncherOptions
from kernel_spec.protocol.values import KernelPlan
from kernel_spec.sandbox.accounting import cgroup_mounts, cgroup_tree, memory_use
from kernel_spec.sandbox.policy.plan import (
    CGROUP,
    DISK_QUOTA,
    IDENTITY,
    LANDLOCK,
    MEMORY_WATCH,
    MOUNT_NAMESPACE,
    PID_NAMESPACE,
    USER_NAMESPACE,
)
from kernel_spec.sandbox.probe import tiers
from kernel_spec.sandbox.probe.probe import probe
from kernel_spec.sandbox.probe.report import Report, State


@dataclass(frozen=True, slots=True)
class Host:
    """The layers and abilities of this host, found by trying.

    Attributes
    ----------
    report : Report
        The probe's report, for users and for the gateway's required tier.
    layers : tuple of str
        The layers that kernels get.
    own_uids : bool
        Whether each workspace has a user id of its own.
    groups : Tree or None
        The tree of the workspaces' control groups; None without that layer.
    notes : tuple of str
        Sentences about differences from the report.
    can_start_inits : bool
        Whether the launcher can make the pid namespaces of kernels, so that they need no intermediate process for
        that; it is tried where there are any.
    unlinked_shm_bytes : callable
        Returns the memory of removed files in /dev/shm whose workspace is unknown; see `_unlinked_shm_reader`.
    """

    report: Report
    layers: tuple[str, ...]
    own_uids: bool
    groups: cgroup_tree.Tree | None
    notes: tuple[str, ...]
    can_start_inits: bool = False
    unlinked_shm_bytes: Callable[[], int] = lambda: 0

    def hello(self, workspace_gids: tuple[int, ...]) -> Hello:
        """Return the launcher's message when it is ready."""
        return Hello(
            pid=os.getpid(),
            tier=self.report.tier.value,
            own_uids=self.own_uids,
            workspace_gids=workspace_gids,
            layers=self.layers,
            notes=self.notes,
            report=self.report.to_json(),
        )

    @property
    def watches_memory(self) -> bool:
        """Whether memory is bounded by a watch, because no control group does it."""
        return self.groups is None and MEMORY_WATCH in self.layers

    @property
    def watches_disk(self) -> bool:
        """Whether the size of the workspace's directory is watched."""
        return DISK_QUOTA in self.layers


def survey(options: LauncherOptions, scratch_dir: Path, uid: int | None) -> Host:
    """Try the layers in forked processes, and return those that work and are not switched off.

    Parameters
    ----------
    options : LauncherOptions
        Names layers not to use, and further paths to read.
    scratch_dir : Path
        Directory of the workspaces.
    uid : int or None
        An unused user id for the trials; None where workspaces keep the launcher's user.
    """
    if CGROUP not in options.without_layers:
        # Without it the probe reports that there are no control groups.
        with contextlib.suppress(sandbox.SandboxError):
            cgroup_mounts.free_own_group()
    stamp = hashlib.sha256(os.fsencode(options.state_dir)).hexdigest()[:8]
    identity = None if uid is None else sandbox.Identity(uid, uid)
    report = probe(
        identity=identity,
        stamp=stamp,
        scratch_dir=str(scratch_dir),
        allow_network=options.allow_network,
        allow_loopback=options.allow_loopback,
        read_only_paths=(*read_only_paths(options.allow_network), *options.read_only_paths),
    )
    layers = set(report.active) - set(options.without_layers)
    notes = [f"{layer} is switched off" for layer in options.without_layers if layer in report.active]
    own_uids = identity is not None and IDENTITY in layers
    if own_uids and not _works(report):
        # Most often an interpreter in a directory that only root may enter.
        own_uids = False
        notes.append("workspaces have no user of their own: a kernel under another user did not work here")
    if not own_uids:
        layers.discard(IDENTITY)
    can_start_inits = False
    if PID_NAMESPACE in layers and USER_NAMESPACE not in layers:
        tried = sandbox.can_start_init(identity if own_uids else None)
        can_start_inits = tried.succeeded
        if not can_start_inits:
            notes.append(f"each kernel needs an intermediate process to start: {tried.why}")
    groups = cgroup_tree.open_tree(stamp) if CGROUP in layers else None
    if groups is not None:
        groups.sweep()
        cgroup_tree.sweep_abandoned()
    return Host(
        report=report,
        layers=tuple(sorted(layers)),
        own_uids=own_uids,
        groups=groups,
        notes=tuple(notes),
        can_start_inits=can_start_inits,
        unlinked_shm_bytes=_unlinked_shm_reader(report, layers, own_uids=own_uids),
    )


def _unlinked_shm_reader(report: Report, layers: set[str], *, own_uids: bool) -> Callable[[], int]:
    """Return a function for the growth of removed but open files in /dev/shm, where jobs can have such files.

    A file that a job removes and keeps open is measured by its descriptors. Where these may not be read, as in an
    ordinary container, only the sum over all workspaces is known. Landlock opens /dev/shm only to workspaces with a
    user of their own; elsewhere the sum would include other programs, such as a browser.
    """
    measured = report.of(MEMORY_WATCH).state is State.ON
    unreachable = MOUNT_NAMESPACE in layers or (LANDLOCK in layers and not own_uids)
    if measured or unreachable or MEMORY_WATCH not in layers:
        return lambda: 0
    before_bytes = memory_use.hidden_shared_bytes()
    return lambda: max(0, memory_use.hidden_shared_bytes() - before_bytes)


def _works(report: Report) -> bool:
    return all(proof.held for proof in report.proofs if proof.name == tiers.PROOF_WORK)


def enter(plan: KernelPlan, liveness_pipe: int) -> int | None:
    """Enter the namespaces of the plan, so that the caller's next child is in all of them.

    Parameters
    ----------
    plan : KernelPlan
        Plan of the kernel.
    liveness_pipe : int
        Read end of a pipe that ends with the launcher; see `kernel_spec.sandbox.namespaces.enter`.

    Returns
    -------
    int or None
        The pid of the init of a new pid namespace, as the launcher sees it.
    """
    return sandbox.enter_namespaces(_sandbox_plan(plan), liveness_pipe).init_pid


def enters_directly(plan: KernelPlan, *, can_start_inits: bool) -> bool:
    """Return whether the kernel of this plan can be forked as the launcher's child, without an intermediate process.

    Without root a user namespace has to be entered first, a broker of sockets has to stay outside, and a pid namespace
    has to be made by the launcher.
    """
    if USER_NAMESPACE in plan.layers or _sandbox_plan(plan).brokers_sockets:
        return False
    return can_start_inits or PID_NAMESPACE not in plan.layers


def start_init(plan: KernelPlan, liveness_pipe: int) -> int | None:
    """Make the pid namespace of a kernel that enters directly; return the pid of its init, None without that layer.

    Raises
    ------
    SandboxError
        It could not be made.
    """
    return sandbox.start_init(_sandbox_plan(plan), liveness_pipe) if PID_NAMESPACE in plan.layers else None


def enter_directly(plan: KernelPlan, launcher_pidfd: int) -> None:
    """Enter all namespaces of the plan but that of processes, in the kernel itself."""
    sandbox.enter_directly(_sandbox_plan(plan), launcher_pidfd)


def confine(plan: KernelPlan) -> None:
    """Apply every other layer of the plan to the calling process, which must have one thread."""
    sandbox.confine(_sandbox_plan(plan))


def bound_memory(limits: Limits) -> None:
    """Limit the address space; a kernel cannot boot under this limit."""
    sandbox.bound_memory(limits)


def seal(plan: KernelPlan) -> None:
    """Refuse calls that only the boot of a kernel needs, before anything of a job runs."""
    sandbox.seal(_sandbox_plan(plan))


@functools.lru_cache(maxsize=8)
def read_only_paths(allow_network: bool) -> tuple[str, ...]:
    """Return the paths that every kernel may read in addition to its workspace."""
    return sandbox.default_read_only_paths(allow_network=allow_network)


def _sandbox_plan(plan: KernelPlan) -> sandbox.SandboxPlan:
    identity = None
    if plan.uid is not None and plan.gid is not None:
        identity = sandbox.Identity(plan.uid, plan.gid)
    return sandbox.SandboxPlan(
        identity=identity,
        limits=plan.limits,
        workspace_dir=plan.workspace.workspace_dir,
        read_only_paths=plan.read_only_paths,
        layers=frozenset(plan.layers),
        allow_network=plan.allow_network,
        parent_pid=plan.launcher_pid,
        allow_loopback=plan.allow_loopback,
        own_loopback=plan.debugger,
    )
