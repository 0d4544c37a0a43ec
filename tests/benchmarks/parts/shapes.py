"""The worth of each path that only some hosts have: the gateway with all of them, and without each in turn.

A variant is a copy of the source with a few lines added to one module, which switch one path off. The gateways of all
variants run side by side, and the rounds alternate between them, so that a loaded machine is as slow for each.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from kernel_spec.kernel.environment import interpreter_environment
from kernel_spec.sandbox.probe.probe import DEFAULT_IDENTITY
from tests.benchmarks import processes
from tests.benchmarks.report.results import Results
from tests.benchmarks.workload import SMALL_CODE, Jobs, Table, post

ROOT = Path(__file__).parents[3]
_PACKAGES = ("gateway", "kernel_spec", "transform_shim")
_BURST = 10
#: Time in which a gateway makes its next kernel, so that a job after it meets a ready one.
_PAUSE_SECONDS = 0.3
_QUIET_SECONDS = 0.3
_ALL = "all paths"
_V1 = "without control groups of version 1"
#: Four processes that each stay below the limit of one process and take memory as fast as they can.
_TAKE_MEMORY = """
import os


def transform(orders):
    children = [os.fork() for _ in range(4)]
    if 0 in children:
        kept = [b"x" * (16 << 20) for _ in range(56)]
        os._exit(0)
    for child in children:
        os.waitpid(child, 0)
    return orders
"""


@dataclass(frozen=True, slots=True)
class Variant:
    """A path that is switched off by `lines` of Python at the end of a `module`."""

    module: str
    lines: str


VARIANTS = {
    "without clone-parent fork": Variant(
        "kernel_spec/fork_server/clone_parent.py", "def is_possible() -> bool: return False"
    ),
    "without prefault": Variant(
        "kernel_spec/fork_server/self_test.py", "def has_kernel_modules() -> bool: return False"
    ),
    _V1: Variant(
        "kernel_spec/sandbox/accounting/cgroup_mounts.py",
        "_every = find_hierarchies\n"
        "def find_hierarchies(*texts): return tuple(h for h in _every(*texts) if h.version == 2)",
    ),
}


#: Prints the tier that jobs with the network get.
_PROBE = "from kernel_spec.sandbox.probe.probe import probe; print(probe(allow_network=True).tier.value)"
#: As on a kernel without TCP_MD5SIG.
_WITHOUT_TCP_MD5 = (
    "from kernel_spec.sandbox.egress import tcp_md5\n"
    "def attach(to): raise PermissionError(1, 'switched off')\n"
    "tcp_md5.attach = attach\n"
)


def shapes(jobs: Jobs, table: Table, results: Results, rounds: int) -> None:
    """Measure processor time in all processes of a gateway and the rate of small jobs, with and without each path."""
    with ExitStack() as stack:
        gateways = {_ALL: stack.enter_context(processes.gateway())}
        for name, variant in VARIANTS.items():
            gateways[name] = stack.enter_context(_without(variant))
        for server in gateways.values():
            _burst(jobs, table, server, 0.0)
        tiers = {name: _status(server)["sandbox"]["tier"] for name, server in gateways.items()}
        results.notes.append("tier " + ", ".join(f"{tier} {name}" for name, tier in tiers.items()))
        with_md5, without = (_tier_of_plain_user(lines + _PROBE) for lines in ("", _WITHOUT_TCP_MD5))
        results.notes.append(f"ALLOW_NETWORK as a plain user: tier {with_md5}, without TCP-MD5: tier {without}")
        _compare(jobs, table, results, gateways, rounds)
        for name in (_ALL, _V1):
            peaks = [_peak_mib(jobs, table, gateways[name]) for _ in range(max(3, rounds // 2))]
            results.figure(f"memory of a job of four processes at a limit of 1024 MiB, {name}", "MiB", peaks)


def _tier_of_plain_user(program: str) -> str:
    """Run a program without any capability, as in most containers."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=interpreter_environment(),
        user=DEFAULT_IDENTITY.uid if os.geteuid() == 0 else None,
        group=DEFAULT_IDENTITY.gid if os.geteuid() == 0 else None,
        extra_groups=[] if os.geteuid() == 0 else None,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd="/",
    )
    return done.stdout.strip()


def _compare(jobs: Jobs, table: Table, results: Results, gateways: dict[str, processes.Server], rounds: int) -> None:
    for pattern, pause_seconds in (("back to back", 0.0), ("with pauses", _PAUSE_SECONDS)):
        used: dict[str, list[float]] = defaultdict(list)
        took: dict[str, list[float]] = defaultdict(list)
        order = list(gateways)
        for _ in range(rounds):
            random.shuffle(order)
            for name in order:
                cpu_ms, call_ms = _burst(jobs, table, gateways[name], pause_seconds)
                used[name].append(cpu_ms)
                took[name].append(call_ms)
        for name in gateways:
            results.figure(f"{pattern}, {name}: CPU time a job", "ms", used[name])
            results.figure(f"{pattern}, {name}: one job", "ms", took[name])
            if name != _ALL:
                for what, values in (("CPU time", used), ("duration", took)):
                    ratios = [a / b for a, b in zip(values[name], values[_ALL], strict=True)]
                    results.figure(f"{pattern}, {name}: {what} to that with all paths", "x", ratios)


def _burst(jobs: Jobs, table: Table, server: processes.Server, pause_seconds: float) -> tuple[float, float]:
    """Run some jobs; return the CPU time of all processes and the median duration, in milliseconds a job."""
    before = _quiet_cpu_seconds(server.pid)
    calls = []
    for _ in range(_BURST):
        calls.append(jobs.call(server.url, SMALL_CODE, [table]).seconds)
        time.sleep(pause_seconds)
    used = _quiet_cpu_seconds(server.pid) - before
    return 1000 * used / _BURST, 1000 * statistics.median(calls)


def _peak_mib(jobs: Jobs, table: Table, server: processes.Server) -> float:
    body, _ = jobs.request(_TAKE_MEMORY, [table])
    _, answer = post(f"{server.url}/v1/execute", body)
    assert answer["code"] == "memory_limit", answer
    return float(answer["peak_memory_bytes"]) / 2**20


def _quiet_cpu_seconds(pid: int) -> float:
    """Return the processor time of a gateway and all its descendants, reaped ones too, once it rests."""
    last = -1.0
    while (now := _cpu_seconds(pid)) > last + 0.02:
        last = now
        time.sleep(_QUIET_SECONDS)
    return now


def _cpu_seconds(pid: int) -> float:
    total = 0.0
    gateway = psutil.Process(pid)
    for process in (gateway, *gateway.children(recursive=True)):
        try:
            total += sum(process.cpu_times()[:4])  # its own and that of the children it has waited for
        except psutil.NoSuchProcess:
            continue
    return total


@contextmanager
def _without(variant: Variant) -> Iterator[processes.Server]:
    with TemporaryDirectory(prefix="bench-", dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        for package in _PACKAGES:
            shutil.copytree(ROOT / package, Path(directory, package), ignore=shutil.ignore_patterns("__pycache__"))
        module = Path(directory, variant.module)
        module.write_text(f"{module.read_text()}\n\n{variant.lines}\n")
        with processes.gateway(PYTHONPATH=directory) as server:
            supervisor = psutil.Process(server.pid).children()[0]
            assert supervisor.environ()["PYTHONPATH"] == directory, "the gateway does not run the copy"
            yield server


def _status(server: processes.Server) -> dict[str, Any]:
    with urllib.request.urlopen(f"{server.url}/v1/status", timeout=10) as answer:
        found: dict[str, Any] = json.load(answer)
    return found
