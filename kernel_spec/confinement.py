"""The seam to `kernel_spec.sandbox`: what the processes here ask of it, in terms of a `KernelPlan`."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from kernel_spec import sandbox
from kernel_spec.limits import Limits
from kernel_spec.messages import KernelPlan
from kernel_spec.options import LauncherOptions


def enter(plan: KernelPlan) -> int | None:
    """Enter the namespaces of the plan, so that the caller's next child is in all of them.

    Returns
    -------
    int or None
        The pid of the init of a new pid namespace, as the launcher sees it.
    """
    return sandbox.enter_namespaces(_sandbox_plan(plan)).init_pid


def confine(plan: KernelPlan) -> None:
    """Put every other layer of the plan on the calling process, which must have one thread."""
    sandbox.confine(_sandbox_plan(plan))


def bound_memory(limits: Limits) -> None:
    """Set the limit that only a booted kernel can live with."""
    sandbox.bound_memory(limits)


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
    )



@dataclass(frozen=True, slots=True)
class Host:
    """What this host allows, found by trying.

    Attributes
    ----------
    layers
        The sandbox layers that kernels get.
    own_uids
        Whether each seat has a user id of its own.
    tier
        ``A`` to ``D``, see `kernel_spec.sandbox`.
    notes
        Sentences for people about what is missing.
    """

    layers: tuple[str, ...]
    own_uids: bool
    tier: str
    notes: tuple[str, ...]


def survey(options: LauncherOptions) -> Host:
    """Try which layers work here, in forked processes, and return those that the options leave."""
    import os

    base = ("identity",) if os.geteuid() == 0 and options.own_uids else ()
    spaces = ("mount_namespace", "pid_namespace", "network_namespace", "ipc_namespace", "uts_namespace")
    layers = (*base, "rlimits", "no_new_privs", "dumpable", "parent_death", "landlock", "seccomp", *(spaces if base else ()))
    return Host(tuple(x for x in layers if x not in options.without_layers), bool(base), "?", ())
