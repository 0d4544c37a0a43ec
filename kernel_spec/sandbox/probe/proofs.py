"""The proofs: attempts from inside the finished sandbox that must fail, and work that must succeed."""

from __future__ import annotations

import json
import mmap
import os
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from kernel_spec.sandbox.apply import confine
from kernel_spec.sandbox.layers import rlimits
from kernel_spec.sandbox.namespaces import enter
from kernel_spec.sandbox.policy.plan import MOUNT_NAMESPACE, PID_NAMESPACE, USER_NAMESPACE, SandboxPlan
from kernel_spec.sandbox.probe import tiers, trials
from kernel_spec.sandbox.probe.report import Proof

#: Memory that the kernel of the probe may allocate.
ROOM_BYTES: Final = 128 << 20


def run_kernel_with_proofs(plan: SandboxPlan, canary_path: Path, port: int) -> dict[str, str]:
    """Start as a kernel does, by an intermediate process, and try from inside the things that must not be possible."""
    liveness_pipe, _end = os.pipe()
    enter.enter_namespaces(plan, liveness_pipe)
    if os.fork():
        # The kernel answers; the intermediate process ends before it could return.
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
    said = json.dumps([{"name": p.name, "held": p.held, "detail": p.detail} for p in proofs])
    return {"proofs": said, **({"init_seen": "yes"} if _sees_init(plan) else {})}


def _sees_init(plan: SandboxPlan) -> bool:
    """Return whether a private /proc shows the host by its init; with a user namespace, it has the kernel's others."""
    is_private = {MOUNT_NAMESPACE, PID_NAMESPACE} <= plan.layers and not plan.has(USER_NAMESPACE)
    return is_private and Path("/proc/1/mountinfo").exists()


def _proof(name: str, action: Callable[[], object]) -> Proof:
    try:
        action()
    except (OSError, MemoryError) as error:
        return Proof(name, True, getattr(error, "strerror", None) or type(error).__name__)
    return Proof(name, False, "it was possible")


def _connect() -> None:
    """Reach loopback by a datagram, which needs no listener; one family that works is enough."""
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
    """Connect to a listener on loopback; without a socket nothing is proved."""
    try:
        trials.reach_loopback(port)
    except TimeoutError as error:
        return Proof(tiers.PROOF_LOOPBACK, True, error.strerror or "")
    except OSError as error:
        return Proof(tiers.PROOF_LOOPBACK, False, f"no socket could be made: {error.strerror}")
    return Proof(tiers.PROOF_LOOPBACK, False, "it was possible")


def _allocate(limit_bytes: int) -> None:
    mmap.mmap(-1, limit_bytes + ROOM_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()


def _become_root() -> None:
    if os.getuid() == 0:
        return  # it is root already
    os.setresuid(0, 0, 0)


def _prove_work(plan: SandboxPlan) -> Proof:
    try:
        scratch = Path(plan.workspace_dir, "work", "probe")
        scratch.write_text("x")
        scratch.unlink()
    except OSError as error:
        return Proof(tiers.PROOF_WORK, False, f"the workspace cannot be written: {error.strerror}")
    readable = all(os.access(path, os.R_OK) for path in (os.__file__, sys.executable))
    if not readable or not os.access(sys.executable, os.X_OK):
        why = "Python cannot be read by the workspace's user: install it where all can, in /usr or /opt"
        return Proof(tiers.PROOF_WORK, False, why)
    return Proof(tiers.PROOF_WORK, True)
