"""The seam to `kernel_spec.sandbox`: what the processes here ask of it, in terms of a `KernelPlan`."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from kernel_spec import sandbox
from kernel_spec.codec import to_json
from kernel_spec.limits import Limits
from kernel_spec.messages import Hello, KernelPlan
from kernel_spec.options import LauncherOptions
from kernel_spec.sandbox import cgroup, memory_watch, tiers
from kernel_spec.sandbox.plan import (
    CGROUP,
    DISK_QUOTA,
    IDENTITY,
    LANDLOCK,
    MEMORY_WATCH,
    MOUNT_NAMESPACE,
    PID_NAMESPACE,
    USER_NAMESPACE,
)


@dataclass(frozen=True, slots=True)
class Host:
    """What this host allows, found by trying.

    Attributes
    ----------
    report
        The finding, for people and for the gateway's required tier.
    layers
        The layers that kernels get.
    own_uids
        Whether each seat has a user id of its own.
    groups
        Where the seats' control groups are made; None without that layer.
    notes
        Sentences about what differs from the report.
    starts_inits
        Whether the launcher can make the pid namespaces of kernels, so that they need no middle process for that; it is
        tried where there are any.
    hidden_bytes
        Tells how much memory some seat, it cannot be seen which, hides in /dev/shm; see `_watch_hidden`.
    """

    report: sandbox.Report
    layers: tuple[str, ...]
    own_uids: bool
    groups: cgroup.Tree | None
    notes: tuple[str, ...]
    starts_inits: bool = False
    hidden_bytes: Callable[[], int] = lambda: 0

    def hello(self, seat_gids: tuple[int, ...]) -> Hello:
        """Return what the launcher says of itself when it is ready."""
        return Hello(
            pid=os.getpid(),
            tier=self.report.tier.value,
            own_uids=self.own_uids,
            seat_gids=seat_gids,
            layers=self.layers,
            notes=self.notes,
            report=cast("dict[str, object]", to_json(self.report.to_json())),
        )

    @property
    def watches_memory(self) -> bool:
        """Whether memory is bounded by a watch, because no control group does it."""
        return self.groups is None and MEMORY_WATCH in self.layers

    @property
    def watches_disk(self) -> bool:
        """Whether the size of the seat's directory is watched."""
        return DISK_QUOTA in self.layers


def survey(options: LauncherOptions, scratch_dir: Path, uid: int | None) -> Host:
    """Try in forked processes what works here, and return it less what the options leave out.

    Parameters
    ----------
    options
        Names layers not to use, and further paths to read.
    scratch_dir
        Where seats are made.
    uid
        A user id that nobody uses, to try with; None where seats keep the launcher's user.
    """
    stamp = hashlib.sha256(os.fsencode(options.state_dir)).hexdigest()[:8]
    identity = None if uid is None else sandbox.Identity(uid, uid)
    report = sandbox.probe(
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
        notes.append("seats have no user of their own: a kernel under another user did not work here")
    if not own_uids:
        layers.discard(IDENTITY)
    starts_inits = False
    if PID_NAMESPACE in layers and USER_NAMESPACE not in layers:
        tried = sandbox.can_start_init(identity if own_uids else None)
        starts_inits = tried.succeeded
        if not starts_inits:
            notes.append(f"each kernel takes a process in between to start: {tried.why}")
    groups = cgroup.open_tree(stamp) if CGROUP in layers else None
    if groups is not None:
        groups.sweep()
        cgroup.sweep_abandoned()
    return Host(
        report=report,
        layers=tuple(sorted(layers)),
        own_uids=own_uids,
        groups=groups,
        notes=tuple(notes),
        starts_inits=starts_inits,
        hidden_bytes=_watch_hidden(report, layers, own_uids=own_uids),
    )


def _watch_hidden(report: sandbox.Report, layers: set[str], *, own_uids: bool) -> Callable[[], int]:
    """Return what tells by how much removed but open files in /dev/shm have grown, where jobs can have such.

    A job that removes its file and keeps it open is measured by its descriptors. Where these may not be looked at, as
    in an ordinary container, only the sum over all seats is left. Landlock opens /dev/shm to seats with a user of their
    own only; elsewhere the sum would be that of other programs, a browser's for one.
    """
    measured = report.of(MEMORY_WATCH).state is sandbox.State.ON
    unreachable = MOUNT_NAMESPACE in layers or (LANDLOCK in layers and not own_uids)
    if measured or unreachable or MEMORY_WATCH not in layers:
        return lambda: 0
    before_bytes = memory_watch.hidden_shared_bytes()
    return lambda: max(0, memory_watch.hidden_shared_bytes() - before_bytes)


def _works(report: sandbox.Report) -> bool:
    return all(proof.held for proof in report.proofs if proof.name == tiers.PROOF_WORK)


def enter(plan: KernelPlan, lifeline: int) -> int | None:
    """Enter the namespaces of the plan, so that the caller's next child is in all of them.

    Parameters
    ----------
    plan
        Of the kernel.
    lifeline
        Read end of a pipe that ends with the launcher; see `kernel_spec.sandbox.namespaces`.

    Returns
    -------
    int or None
        The pid of the init of a new pid namespace, as the launcher sees it.
    """
    return sandbox.enter_namespaces(_sandbox_plan(plan), lifeline).init_pid


def enters_directly(plan: KernelPlan, *, starts_inits: bool) -> bool:
    """Return whether the kernel of this plan can be forked as the launcher's child, without a middle process.

    Without root a user namespace has to be entered first, a broker of sockets has to stay outside, and a pid namespace
    has to be made by the launcher.
    """
    if USER_NAMESPACE in plan.layers or _sandbox_plan(plan).brokers_sockets:
        return False
    return starts_inits or PID_NAMESPACE not in plan.layers


def start_init(plan: KernelPlan, lifeline: int) -> int | None:
    """Make the pid namespace of a kernel that enters directly; return the pid of its init, None without that layer.

    Raises
    ------
    SandboxError
        It could not be made.
    """
    return sandbox.start_init(_sandbox_plan(plan), lifeline) if PID_NAMESPACE in plan.layers else None


def enter_directly(plan: KernelPlan, launcher_pidfd: int) -> None:
    """Enter all namespaces of the plan but that of processes, in the kernel itself."""
    sandbox.enter_directly(_sandbox_plan(plan), launcher_pidfd)


def confine(plan: KernelPlan) -> None:
    """Put every other layer of the plan on the calling process, which must have one thread."""
    sandbox.confine(_sandbox_plan(plan))


def bound_memory(limits: Limits) -> None:
    """Set the limit that only a booted kernel can live with."""
    sandbox.bound_memory(limits)


def seal(plan: KernelPlan) -> None:
    """Close what only the boot of a kernel needed, before anything of a job runs."""
    sandbox.seal(_sandbox_plan(plan))


@functools.lru_cache(maxsize=8)
def read_only_paths(allow_network: bool) -> tuple[str, ...]:
    """Return what every kernel may read beside its seat."""
    return sandbox.default_read_only_paths(allow_network=allow_network)


def _sandbox_plan(plan: KernelPlan) -> sandbox.SandboxPlan:
    identity = None
    if plan.uid is not None and plan.gid is not None:
        identity = sandbox.Identity(plan.uid, plan.gid)
    return sandbox.SandboxPlan(
        identity=identity,
        limits=plan.limits,
        seat_dir=plan.seat.seat_dir,
        read_only_paths=plan.read_only_paths,
        layers=frozenset(plan.layers),
        allow_network=plan.allow_network,
        parent_pid=plan.launcher_pid,
        allow_loopback=plan.allow_loopback,
    )
