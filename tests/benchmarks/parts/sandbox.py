"""The cost of the sandbox: at the start of a kernel, and in the work that is done inside.

``python -m tests.benchmarks.parts.sandbox ROUNDS`` is the process under measurement: warm as a fork server is, it forks
kernels with and without layers in turn, so that both sides of a difference saw the same machine.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kernel_spec.kernel.environment import interpreter_environment
from kernel_spec.protocol.limits import Limits
from kernel_spec.sandbox import (
    SandboxPlan,
    bound_memory,
    children_in,
    confine,
    default_read_only_paths,
    enter_directly,
    enter_namespaces,
    start_init,
)
from kernel_spec.sandbox.accounting import cgroup_tree, processes
from kernel_spec.sandbox.policy.plan import CGROUP, NETWORK_POLICY, PID_NAMESPACE
from kernel_spec.sandbox.probe.probe import DEFAULT_IDENTITY, probe

if TYPE_CHECKING:
    from tests.benchmarks.report.results import Results

BARE_LIMIT_MS = 5.0
NAMESPACES_LIMIT_MS = 10.0
WORK_LIMIT = 1.03
ROOT = Path(__file__).parents[3]


def costs(results: Results, rounds: int) -> None:
    """Measure in a process of its own: this one has threads, which a fork would not survive."""
    command = [sys.executable, "-m", "tests.benchmarks.parts.sandbox", str(rounds)]
    environment = {**interpreter_environment(), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    found = json.loads(done.stdout)
    limits = {"without namespaces": BARE_LIMIT_MS, "and a control group": NAMESPACES_LIMIT_MS}
    results.figure("kernel start without sandbox: a fork", "ms", found["starts"]["none"])
    for name, added in found["added"].items():
        results.figure(f"sandbox at a kernel's start, {name}: added", "ms", added, limits.get(name))
        results.figure(f"sandbox at a kernel's start, {name}: added CPU time", "ms", found["added_cpu"][name])
    results.figure("work inside: pandas, pyarrow, numpy, CPU time to that outside", "x", found["work"], WORK_LIMIT)
    results.notes.append(f"sandbox measured in tier {found['tier']}; added is by pairs that ran one after the other")


# ------------------------------------------------------------------------------------------------- under measurement
def measure(rounds: int) -> dict[str, object]:
    """Return milliseconds of starts by layers, what each set adds to none, and the ratio of work inside to outside."""
    processes.become_subreaper()
    with _workspace() as plan:
        tree = cgroup_tree.open_tree(f"bench-{os.getpid()}") if CGROUP in plan.layers else None
        try:
            return _measure(plan, tree, rounds)
        finally:
            if tree is not None:
                tree.close()


def _measure(plan: SandboxPlan, tree: cgroup_tree.Tree | None, rounds: int) -> dict[str, object]:
    bare = frozenset(layer for layer in plan.layers if not layer.endswith("_namespace")) - {NETWORK_POLICY, CGROUP}
    sets = {
        "none": replace(plan, layers=frozenset()),
        "without namespaces": replace(plan, layers=bare),
        "with namespaces": replace(plan, layers=plan.layers - {NETWORK_POLICY, CGROUP}),
        "and a control group": replace(plan, layers=plan.layers - {NETWORK_POLICY}),
        "and the network": replace(plan, allow_network=True),
    }
    starts: dict[str, list[float]] = {name: [] for name in sets}
    used: dict[str, list[float]] = {name: [] for name in sets}
    for number in range(8 * rounds + 2):
        for name, wanted in sets.items():
            before = _cpu_seconds()
            took = _start(wanted, tree if CGROUP in wanted.layers else None, lambda: 0.0)[0]
            if number >= 2:  # the first ones fill caches
                starts[name].append(1000 * took)
                used[name].append(1000 * (_cpu_seconds() - before))
    ratios = []
    for number in range(rounds + 1):
        order = ("none", "with namespaces") if number % 2 else ("with namespaces", "none")
        seconds = {name: _start(sets[name], None, _work)[1] for name in order}
        if number:
            ratios.append(seconds["with namespaces"] / seconds["none"])
    tier = "A" if tree is not None else "B" if plan.identity else "C"
    return {"starts": starts, "added": _added(starts), "added_cpu": _added(used), "work": ratios, "tier": tier}


def _added(by_layers: dict[str, list[float]]) -> dict[str, list[float]]:
    """Subtract what it took without layers, round by round."""
    bare = by_layers["none"]
    return {name: [a - b for a, b in zip(v, bare, strict=True)] for name, v in by_layers.items() if name != "none"}


def _cpu_seconds() -> float:
    """Return the processor time of this process and of all kernels so far, which are reaped here."""
    found = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in found)


def _start(plan: SandboxPlan, tree: cgroup_tree.Tree | None, then: Callable[[], float]) -> tuple[float, float]:
    """Go the way of a kernel; return the seconds until it is confined and what `then` returned in there."""
    began = time.perf_counter()
    group = tree.create("bench", plan.limits, extra_processes=3) if tree is not None else None
    reader, writer = os.pipe()
    liveness_pipe, end = os.pipe()

    def become() -> None:
        if plan.layers:
            confine(plan)
            bound_memory(plan.limits)
        else:
            os.chdir(f"{plan.workspace_dir}/work")
        os.write(writer, b"x")
        os.write(writer, repr(then()).encode())

    entrances = group.entrances if group is not None else ()
    intermediate = (_fork_intermediate if plan.brokers_sockets else _fork_directly)(
        plan, liveness_pipe, entrances, become
    )
    os.close(writer)
    os.close(liveness_pipe)
    if intermediate:
        os.waitpid(intermediate, 0)
    with os.fdopen(reader, "rb") as pipe:
        ready = pipe.read(1)
        took = time.perf_counter() - began
        said = pipe.read()
    assert ready, "the kernel did not start"
    processes.end_workspace(plan.workspace_dir, plan.identity)
    os.close(end)
    _reap()
    if group is not None:
        group.remove()
    return took, float(said)


def _fork_directly(plan: SandboxPlan, liveness_pipe: int, entrances: Sequence[str], become: Callable[[], None]) -> int:
    """Fork a kernel as a fork server does; there is no intermediate process to wait for."""
    myself = os.pidfd_open(os.getpid())
    init_pidfd = os.pidfd_open(start_init(plan, liveness_pipe)) if plan.has(PID_NAMESPACE) else None
    with children_in(init_pidfd) if init_pidfd is not None else nullcontext():
        if os.fork() == 0:
            try:
                _enter(entrances)
                enter_directly(plan, myself)
                become()
            finally:
                os._exit(0)
    for descriptor in (myself, init_pidfd):
        if descriptor is not None:
            os.close(descriptor)
    return 0


def _fork_intermediate(
    plan: SandboxPlan, liveness_pipe: int, entrances: Sequence[str], become: Callable[[], None]
) -> int:
    """Fork a kernel by an intermediate process, and return its pid."""
    intermediate = os.fork()
    if intermediate == 0:
        try:
            _enter(entrances)
            enter_namespaces(plan, liveness_pipe)
            if os.fork() == 0:
                become()
        finally:
            os._exit(0)
    return intermediate


def _enter(entrances: Sequence[str]) -> None:
    for entrance in entrances:
        Path(entrance).write_text("0")


def _reap() -> None:
    try:
        while True:
            os.waitpid(-1, 0)
    except ChildProcessError:
        return


def _work() -> float:
    """Run a mix as transforms do; return its processor time, which other programs on the machine disturb least."""
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    began = time.process_time()
    random = np.random.default_rng(1)
    left = pd.DataFrame({"k": random.integers(0, 1000, 300_000), "v": random.random(300_000)})
    left["text"] = left["k"].astype(str)
    right = pd.DataFrame({"k": np.arange(1000), "w": random.random(1000)})
    merged = left.merge(right, on="k")
    merged.groupby("k", as_index=False).agg({"v": "sum", "w": "mean"})
    merged.groupby("text")["v"].mean()
    merged.to_parquet("bench.parquet")
    table = pq.read_table("bench.parquet")
    pc.sum(table["v"])
    table.filter(pc.greater(table["v"], pa.scalar(0.5))).to_pandas()
    matrix = random.random((300, 300))
    np.linalg.svd(matrix @ matrix)
    Path("bench.parquet").unlink()
    return time.process_time() - began


@contextmanager
def _workspace() -> Iterator[SandboxPlan]:
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp") as directory:
        Path(directory).chmod(0o711)
        identity = DEFAULT_IDENTITY if os.geteuid() == 0 else None
        report = probe(scratch_dir=directory, allow_network=True, stamp="bench")
        without = probe(scratch_dir=directory, stamp="bench")
        workspace = Path(directory, os.urandom(4).hex())
        for name in ("", "ipc", "inputs", "work", "out"):
            (workspace / name).mkdir(mode=0o755 if not name else 0o700)
            if identity is not None and name:
                os.chown(workspace / name, identity.uid, identity.gid)
        yield SandboxPlan(
            identity=identity,
            limits=Limits(cpu_seconds=3600),
            workspace_dir=str(workspace),
            read_only_paths=default_read_only_paths(allow_network=True),
            layers=without.active | (report.active & {NETWORK_POLICY}),
            allow_network=False,
            parent_pid=os.getpid(),
        )


def main() -> None:
    """Warm up, measure, and print JSON."""
    import pandas
    import pyarrow.parquet  # noqa: F401

    pandas.DataFrame({"x": [1]}).groupby("x").sum()
    print(json.dumps(measure(int(sys.argv[1]))))


if __name__ == "__main__":
    main()
