"""Find out what this host allows by doing it: fork, put on, try, report. Versions are never asked.

Everything happens in a child that plays the launcher, so the caller is left as it was; the child ends with nothing of
it alive, mounted or on disk. First each layer alone, for a line that says why; then all that worked together, on a seat
as jobs have it, with proofs from inside. Layers that work alone but not together are dropped and named.
"""

from __future__ import annotations

import json
import mmap
import os
import resource
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

from kernel_spec.limits import Limits
from kernel_spec.sandbox import namespaces, paths, processes, procfs, rlimits, seccomp, tiers, trials
from kernel_spec.sandbox import plan as names
from kernel_spec.sandbox.attempt import Attempt, attempt
from kernel_spec.sandbox.confine import confine
from kernel_spec.sandbox.plan import Identity, SandboxPlan
from kernel_spec.sandbox.report import LayerReport, Proof, Report, State, Tier

# Far from people, services and the usual subordinate ranges; the launcher names its own.
DEFAULT_IDENTITY: Final = Identity(60099, 60099)

_ROOM_BYTES: Final = 128 << 20
_PROBE_SECONDS: Final = 20.0

_ALONE: Final[dict[str, Callable[[SandboxPlan], dict[str, str]]]] = {
    names.IDENTITY: trials.try_identity,
    names.RLIMITS: trials.try_rlimits,
    names.NO_NEW_PRIVS: trials.try_no_new_privs,
    names.DUMPABLE: trials.try_dumpable,
    names.PARENT_DEATH: trials.try_parent_death,
    names.LANDLOCK: trials.try_landlock,
    names.SECCOMP: trials.try_seccomp,
    names.PROCESSES: trials.try_processes,
    names.MEMORY_WATCH: trials.try_memory_watch,
    names.DISK_QUOTA: trials.try_disk_quota,
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
        """Write the line of a layer from its trial; return whether the layer may be used."""
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
    """Return what holds on this host; takes some 0.1 to 0.3 s and leaves nothing.

    Parameters
    ----------
    identity
        A user that no running seat has. By default one of our own choice when started as root.
    stamp
        Name for the cgroup tree, see `cgroup.open_tree`.
    scratch_dir
        Where seats will be: the probe makes one there. It must be reachable for the seat's user.
    allow_network
        Whether jobs have the network: then none of it is probed away.
    allow_loopback
        Whether those jobs reach what is on this machine and on its link, too.
    read_only_paths
        What jobs shall read; by default `paths.default_read_only_paths`.
    """
    started = time.monotonic()
    if identity is None and os.geteuid() == 0:
        identity = DEFAULT_IDENTITY
    if read_only_paths is None:
        read_only_paths = paths.default_read_only_paths(allow_network=allow_network)
    base_dir = scratch_dir or tempfile.gettempdir()

    def in_child() -> dict[str, str]:
        seat_dir = _make_seat(base_dir, identity)
        try:
            limits = replace(Limits(), memory_bytes=_data_bytes() + _ROOM_BYTES)
            plan = SandboxPlan(
                identity=identity,
                limits=limits,
                seat_dir=seat_dir,
                read_only_paths=read_only_paths,
                layers=frozenset(),
                allow_network=allow_network,
                parent_pid=os.getpid(),
                allow_loopback=allow_loopback,
            )
            findings = _play_launcher(plan, f"{stamp}-{os.getpid()}")
        finally:
            _end_children()
            shutil.rmtree(seat_dir, ignore_errors=True)
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
    return Report(tier, lines, tuple(findings.proofs), plan.allow_network, seconds)


def _nothing(why: str, *, allow_network: bool, seconds: float) -> Report:
    findings = _Findings()
    for layer in names.LAYERS:
        findings.drop(layer, f"the probe failed: {why}")
    return Report(Tier.NONE, tuple(findings.lines[layer] for layer in names.LAYERS), (), allow_network, seconds)


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
    """Try them directly, else in a user namespace; the first way that gives mounts is taken."""
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
    if plan.allow_network:
        found[names.NETWORK_NAMESPACE] = Attempt(False, "jobs have the network: allow_network is set")
    return found


def _with(plan: SandboxPlan, layer: str) -> SandboxPlan:
    return replace(plan, layers=plan.layers | {layer})


def _try_together(plan: SandboxPlan, findings: _Findings) -> None:
    """Run a kernel with all layers; drop the layer that fails and try again with the rest."""
    canary_path = Path(plan.seat_dir).parent / f".canary-{os.getpid()}"
    for _ in names.LAYERS:
        canary_path.write_text("not for jobs")
        canary_path.chmod(0o644)
        try:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                result = attempt(partial(_be_kernel, plan, canary_path, int(listener.getsockname()[1])))
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
                # Alone it had to count everything of the user; a user namespace counts its own.
                findings.note(names.RLIMITS, Attempt(True))
            return
        layer = result.layer
        if layer not in plan.layers:
            findings.proofs.append(Proof(tiers.PROOF_WORK, False, result.why))
            return
        findings.drop(layer, result.why)
        plan = replace(plan, layers=plan.layers - {layer})
        if layer == names.IDENTITY:
            plan = replace(plan, identity=None)


def _be_kernel(plan: SandboxPlan, canary_path: Path, port: int) -> dict[str, str]:
    """Go the way of a kernel, middle process and all, and try from inside what must not be possible."""
    lifeline, _end = os.pipe()
    namespaces.enter_namespaces(plan, lifeline)
    if os.fork():
        # The kernel answers, the middle must not: it ends before it could return.
        os._exit(0)
    confine(plan)
    rlimits.bound_memory(plan.limits)
    proofs = [
        _proof(tiers.PROOF_FILE, partial(canary_path.read_bytes)),
        _proof(tiers.PROOF_SIGNAL, partial(os.kill, plan.parent_pid, 0)),
        _proof(tiers.PROOF_MEMORY, partial(_allocate, plan.limits.memory_bytes)),
        _proof(tiers.PROOF_ROOT, partial(_become_root)),
        _prove_work(plan),
    ]
    if not plan.allow_network:
        proofs.insert(0, _proof(tiers.PROOF_NETWORK, _connect))
    elif not plan.allow_loopback:
        proofs.insert(0, _prove_loopback(port))
    return {"proofs": json.dumps([{"name": p.name, "held": p.held, "detail": p.detail} for p in proofs])}


def _proof(name: str, action: Callable[[], object]) -> Proof:
    try:
        action()
    except (OSError, MemoryError) as error:
        return Proof(name, True, getattr(error, "strerror", None) or type(error).__name__)
    return Proof(name, False, "it was possible")


def _connect() -> None:
    """Reach loopback by a datagram, which needs no listener; one family that goes through is enough."""
    refused: OSError | None = None
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe_socket:
                probe_socket.connect((address, 9))
        except OSError as error:
            refused = error
        else:
            return
    if refused is not None:
        raise refused


def _prove_loopback(port: int) -> Proof:
    """Ask a listener on loopback for an answer; without a socket to ask with, nothing is proved."""
    try:
        trials.reach_loopback(port)
    except TimeoutError as error:
        return Proof(tiers.PROOF_LOOPBACK, True, error.strerror or "")
    except OSError as error:
        return Proof(tiers.PROOF_LOOPBACK, False, f"no socket to be had: {error.strerror}")
    return Proof(tiers.PROOF_LOOPBACK, False, "it was possible")


def _allocate(limit_bytes: int) -> None:
    mmap.mmap(-1, limit_bytes + _ROOM_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()


def _become_root() -> None:
    if os.getuid() == 0:
        return  # it is root already, the worst of all
    os.setresuid(0, 0, 0)


def _prove_work(plan: SandboxPlan) -> Proof:
    try:
        scratch = Path(plan.seat_dir, "work", "probe")
        scratch.write_text("x")
        scratch.unlink()
    except OSError as error:
        return Proof(tiers.PROOF_WORK, False, f"the seat cannot be written: {error.strerror}")
    readable = all(os.access(path, os.R_OK) for path in (os.__file__, sys.executable))
    if not readable or not os.access(sys.executable, os.X_OK):
        why = "Python cannot be read by the seat's user: install it where all can, in /usr or /opt"
        return Proof(tiers.PROOF_WORK, False, why)
    return Proof(tiers.PROOF_WORK, True)


def _data_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _end_children() -> None:
    """Kill and reap whatever was handed to this process: kernels and inits of the trials."""
    own = os.getpid()
    processes.end_all(lambda: (status for status in procfs.all_statuses() if status.parent_pid == own))


def _make_seat(base_dir: str, identity: Identity | None) -> str:
    seat_dir = tempfile.mkdtemp(prefix="probe-", dir=base_dir)
    uid, gid = (identity.uid, identity.gid) if identity is not None else (-1, -1)
    Path(seat_dir).chmod(0o750)
    os.chown(seat_dir, -1, gid)
    for name in ("ipc", "inputs", "work", "out"):
        directory = Path(seat_dir, name)
        directory.mkdir(mode=0o700)
        os.chown(directory, uid, gid)
    return seat_dir
