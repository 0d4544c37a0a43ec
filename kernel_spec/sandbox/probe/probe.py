"""Find the layers that this host allows by trying them: fork, apply, try, report. No version number is checked.

Everything happens in a child in the role of the launcher, so the caller does not change; the child leaves no process,
mount or file. First each layer is tried alone, for a line with the reason; then all that worked are applied together,
on a workspace as jobs have it, and proofs are tried from inside. Layers that work alone but not together are dropped
and named.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

from kernel_spec.linux import procfs
from kernel_spec.protocol.limits import Limits
from kernel_spec.sandbox.accounting import processes
from kernel_spec.sandbox.layers import readable_paths, seccomp
from kernel_spec.sandbox.policy import plan as names
from kernel_spec.sandbox.policy.attempt import Attempt, attempt
from kernel_spec.sandbox.policy.plan import Identity, SandboxPlan
from kernel_spec.sandbox.probe import process_trials, proofs, tiers, trials
from kernel_spec.sandbox.probe.report import LayerReport, Proof, Report, State, Tier

#: Outside of the usual ranges of users, services and subordinate ids; the launcher passes its own.
DEFAULT_IDENTITY: Final = Identity(60099, 60099)

_PROBE_SECONDS: Final = 20.0

_ALONE: Final[dict[str, Callable[[SandboxPlan], dict[str, str]]]] = {
    names.IDENTITY: trials.try_identity,
    names.RLIMITS: trials.try_rlimits,
    names.NO_NEW_PRIVS: trials.try_no_new_privs,
    names.DUMPABLE: trials.try_dumpable,
    names.PARENT_DEATH: process_trials.try_parent_death,
    names.LANDLOCK: trials.try_landlock,
    names.SECCOMP: trials.try_seccomp,
    names.PROCESSES: process_trials.try_processes,
    names.MEMORY_WATCH: process_trials.try_memory_watch,
    names.DISK_QUOTA: process_trials.try_disk_quota,
}
_WITH_USER_NAMESPACE: Final = (
    names.MOUNT_NAMESPACE,
    names.PID_NAMESPACE,
    names.NETWORK_NAMESPACE,
    names.IPC_NAMESPACE,
    names.UTS_NAMESPACE,
)


@dataclass(slots=True)
class _Findings:
    lines: dict[str, LayerReport] = field(default_factory=dict)
    proofs: list[Proof] = field(default_factory=list)

    def note(self, layer: str, result: Attempt) -> bool:
        """Record the line of a layer from its trial; return whether the layer may be used."""
        promise = tiers.PROMISES[layer]
        if not result.succeeded:
            self.lines[layer] = LayerReport(layer, State.OFF, promise, result.why, tiers.REMEDIES[layer])
            return False
        degraded = result.facts.get("degraded", "")
        state = State.DEGRADED if degraded else State.ON
        remedy = tiers.REMEDIES[layer] if degraded else ""
        self.lines[layer] = LayerReport(layer, state, promise, degraded or result.facts.get("detail", ""), remedy)
        return True

    def drop(self, layer: str, why: str, remedy: str | None = None) -> None:
        line = LayerReport(
            layer, State.OFF, tiers.PROMISES[layer], why, tiers.REMEDIES[layer] if remedy is None else remedy
        )
        self.lines[layer] = line


def probe(
    *,
    identity: Identity | None = None,
    stamp: str = "probe",
    scratch_dir: str | None = None,
    allow_network: bool = False,
    allow_loopback: bool = False,
    read_only_paths: tuple[str, ...] | None = None,
) -> Report:
    """Return the layers and proofs that hold on this host; takes some 0.1 to 0.3 s.

    Parameters
    ----------
    identity : Identity or None
        A user that no running workspace has; default is `DEFAULT_IDENTITY` when started as root.
    stamp : str
        Name for the cgroup tree, see `cgroup_tree.open_tree`.
    scratch_dir : str or None
        Directory of the workspaces, in which the probe makes one; the workspace's user must be able to reach it.
    allow_network : bool
        Whether jobs have the network.
    allow_loopback : bool
        Whether those jobs also reach this machine and its link.
    read_only_paths : tuple of str or None
        Paths that jobs may read; default is `readable_paths.default_read_only_paths`.
    """
    started = time.monotonic()
    if identity is None and os.geteuid() == 0:
        identity = DEFAULT_IDENTITY
    if read_only_paths is None:
        read_only_paths = readable_paths.default_read_only_paths(allow_network=allow_network)
    base_dir = scratch_dir or tempfile.gettempdir()

    def in_child() -> dict[str, str]:
        workspace_dir = _make_workspace(base_dir, identity)
        try:
            limits = Limits(memory_bytes=_data_bytes() + proofs.ROOM_BYTES)
            plan = SandboxPlan(
                identity=identity,
                limits=limits,
                workspace_dir=workspace_dir,
                read_only_paths=read_only_paths,
                layers=frozenset(),
                allow_network=allow_network,
                parent_pid=os.getpid(),
                allow_loopback=allow_loopback,
            )
            findings = _play_launcher(plan, f"{stamp}-{os.getpid()}")
        finally:
            _end_children()
            shutil.rmtree(workspace_dir, ignore_errors=True)
        return {"report": json.dumps(_report(findings, plan, 0.0).to_json())}

    outcome = attempt(in_child, deadline_seconds=_PROBE_SECONDS)
    if not outcome.succeeded:
        return _nothing(outcome.why, allow_network=allow_network, seconds=time.monotonic() - started)
    report = Report.from_json(json.loads(outcome.facts["report"]))
    return replace(report, seconds=time.monotonic() - started)


def _report(findings: _Findings, plan: SandboxPlan, seconds: float) -> Report:
    lines = tuple(findings.lines[layer] for layer in names.LAYERS)
    active = {line.layer for line in lines if line.state is not State.OFF}
    tier = tiers.tier_of(active, findings.proofs, allow_network=plan.allow_network, allow_loopback=plan.allow_loopback)
    problem = seccomp.NO_MEMORY if findings.lines[names.SECCOMP].why == seccomp.NO_MEMORY else ""
    return Report(tier, lines, tuple(findings.proofs), plan.allow_network, seconds, problem)


def _nothing(why: str, *, allow_network: bool, seconds: float) -> Report:
    findings = _Findings()
    for layer in names.LAYERS:
        findings.drop(layer, f"the probe failed: {why}")
    return Report(Tier.NONE, tuple(findings.lines[layer] for layer in names.LAYERS), (), allow_network, seconds, why)


def _play_launcher(plan: SandboxPlan, stamp: str) -> _Findings:
    processes.become_subreaper()
    findings = _Findings()
    working = set()
    for layer, trial in _ALONE.items():
        if findings.note(layer, attempt(partial(trial, plan))):
            working.add(layer)
        elif layer == names.IDENTITY:
            plan = replace(plan, identity=None)
    if findings.note(names.CGROUP, attempt(partial(trials.try_cgroup, plan, stamp))):
        working.add(names.CGROUP)
    working |= _try_namespaces(plan, findings)
    if _try_network_policy(plan, findings):
        working.add(names.NETWORK_POLICY)
    _try_together(replace(plan, layers=frozenset(working)), findings)
    return findings


def _try_network_policy(plan: SandboxPlan, findings: _Findings) -> bool:
    if plan.brokers_sockets:
        return findings.note(names.NETWORK_POLICY, attempt(partial(trials.try_network_policy, plan)))
    if plan.allow_network:
        findings.drop(names.NETWORK_POLICY, "jobs have all of the network: allow_loopback is set")
    else:
        findings.drop(names.NETWORK_POLICY, "not needed: jobs have no network", "")
    return False


def _try_namespaces(plan: SandboxPlan, findings: _Findings) -> set[str]:
    """Try them directly, else in a user namespace; the first way with a mount namespace is used."""
    direct = _try_each(plan, frozenset())
    if direct[names.MOUNT_NAMESPACE].succeeded:
        results = direct
        findings.drop(names.USER_NAMESPACE, "not needed: started with CAP_SYS_ADMIN", "")
    else:
        user = attempt(partial(trials.try_namespace, _with(plan, names.USER_NAMESPACE), names.USER_NAMESPACE))
        if not findings.note(names.USER_NAMESPACE, user):
            results = direct
        else:
            results = _try_each(plan, frozenset({names.USER_NAMESPACE}))
    working = {layer for layer, result in results.items() if findings.note(layer, result)}
    if working and findings.lines[names.USER_NAMESPACE].state is State.ON:
        working.add(names.USER_NAMESPACE)
    return working


def _try_each(plan: SandboxPlan, layers: frozenset[str]) -> dict[str, Attempt]:
    with_user = replace(plan, layers=layers)
    found = {layer: attempt(partial(trials.try_namespace, with_user, layer)) for layer in _WITH_USER_NAMESPACE}
    if plan.is_on_network:
        found[names.NETWORK_NAMESPACE] = Attempt(False, "jobs have all of the network: allow_loopback is set")
    return found


def _with(plan: SandboxPlan, layer: str) -> SandboxPlan:
    return replace(plan, layers=plan.layers | {layer})


def _try_together(plan: SandboxPlan, findings: _Findings) -> None:
    """Run a kernel with all layers; drop the layer that fails and try again with the rest."""
    canary_path = Path(plan.workspace_dir).parent / f".canary-{os.getpid()}"
    for _ in names.LAYERS:
        canary_path.write_text("not for jobs")
        canary_path.chmod(0o644)
        try:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                result = attempt(
                    partial(proofs.run_kernel_with_proofs, plan, canary_path, int(listener.getsockname()[1]))
                )
            _end_children()
        finally:
            canary_path.unlink()
        if result.succeeded:
            findings.proofs += [Proof(**proof) for proof in json.loads(result.facts["proofs"])]
            if names.SECCOMP in plan.layers and not seccomp.policy_of(plan).allow_connect:
                findings.lines[names.SECCOMP] = replace(
                    findings.lines[names.SECCOMP],
                    why="connect is refused too: nothing else hides the unix sockets of the host",
                )
            if {names.RLIMITS, names.USER_NAMESPACE} <= plan.layers:
                # A user namespace counts only its own processes; without it, all processes of the user count.
                findings.note(names.RLIMITS, Attempt(True))
            if "init_seen" in result.facts:
                why = "/proc shows sockets and mounts of the host: nothing may be mounted on its first process"
                findings.note(names.PID_NAMESPACE, Attempt(True, facts={"degraded": why}))
            return
        layer = result.layer
        if layer not in plan.layers:
            findings.proofs.append(Proof(tiers.PROOF_WORK, False, result.why))
            return
        findings.drop(layer, result.why)
        plan = replace(plan, layers=plan.layers - {layer})
        if layer == names.IDENTITY:
            plan = replace(plan, identity=None)


def _data_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _end_children() -> None:
    """Kill and reap the orphans that became children of this process: kernels and inits of the trials."""
    own = os.getpid()
    processes.end_all(lambda: (status for status in procfs.all_statuses() if status.parent_pid == own))


def _make_workspace(base_dir: str, identity: Identity | None) -> str:
    workspace_dir = tempfile.mkdtemp(prefix="probe-", dir=base_dir)
    uid, gid = (identity.uid, identity.gid) if identity is not None else (-1, -1)
    Path(workspace_dir).chmod(0o750)
    os.chown(workspace_dir, -1, gid)
    for name in ("ipc", "inputs", "work", "out"):
        directory = Path(workspace_dir, name)
        directory.mkdir(mode=0o700)
        os.chown(directory, uid, gid)
    return workspace_dir
