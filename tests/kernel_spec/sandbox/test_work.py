"""Real work inside each tier, and the calls that must fail there, in the same program and the same order of layers."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest

from kernel_spec.protocol.limits import Limits
from kernel_spec.sandbox import Identity
from tests.kernel_spec.sandbox.children import (
    NAMESPACES,
    PLAIN_USER,
    TIER_A,
    TIER_B,
    TIER_C,
    TIER_C_USER_NAMESPACE,
    WORKSPACE_USER,
    Run,
    be_in_default_container,
    become,
    in_child,
    make_plan,
    make_workspace,
    outcome,
    run_confined,
    scratch,
)

TIERS: dict[str, frozenset[str]] = {
    "A": TIER_A,
    "B": TIER_B,
    "C": TIER_C,
    "C with user namespace": TIER_C_USER_NAMESPACE,
}

WORK = """
import importlib.util, json, multiprocessing, os, subprocess, sys, tempfile, zoneinfo, datetime
import numpy as np
import pandas as pd

def square(x):
    return x * x

def main():
    done = {}
    left = pd.DataFrame({"k": np.arange(20000) % 100, "v": np.arange(20000.0)})
    right = pd.DataFrame({"k": np.arange(100), "w": np.arange(100.0)})
    merged = left.merge(right, on="k").groupby("k", as_index=False).agg({"v": "sum", "w": "mean"})
    done["groupby"] = len(merged) == 100
    index = pd.date_range("2024-01-01", periods=2000, freq="min")
    done["resample"] = len(pd.Series(1.0, index=index).resample("1h").sum()) == 34
    merged.to_parquet("t.parquet")
    done["parquet"] = pd.read_parquet("t.parquet").equals(merged)
    a = np.random.default_rng(1).random((60, 60))
    done["linalg"] = bool(np.allclose(np.linalg.inv(a) @ a, np.eye(60), atol=1e-6))
    with tempfile.NamedTemporaryFile(dir=None) as f, tempfile.TemporaryDirectory() as d:
        done["tempfile"] = f.name.startswith(os.getcwd()) and d.startswith(os.getcwd())
    berlin = datetime.datetime(2024, 7, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin"))
    done["zoneinfo"] = berlin.utcoffset() == datetime.timedelta(hours=2)
    ran = subprocess.run([sys.executable, "-c", "print(6 * 7)"], capture_output=True, text=True)
    done["subprocess"] = (ran.stdout, ran.stderr) == ("42\\n", "") or ran.stderr[-300:]
    ran = subprocess.run("echo $((6 * 7))", shell=True, capture_output=True, text=True)
    done["shell"] = ran.stdout == "42\\n" or ran.stderr[-300:]
    try:
        with multiprocessing.Pool(2) as pool:
            done["pool"] = pool.map(square, range(5)) == [0, 1, 4, 9, 16]
    except OSError as error:
        done["pool"] = type(error).__name__
    try:
        with multiprocessing.Manager() as manager:
            done["manager"] = manager.list([1])[0] == 1
    except (OSError, EOFError) as error:
        done["manager"] = type(error).__name__
    if importlib.util.find_spec("scipy"):
        from scipy import optimize, stats
        root = optimize.brentq(lambda x: x * x - 2, 0, 2)
        done["scipy"] = abs(root - 2 ** 0.5) < 1e-9 and stats.ttest_ind(range(50), range(10, 60)).pvalue < 0.01
        done["scipy"] = bool(done["scipy"])
    if importlib.util.find_spec("matplotlib"):
        import matplotlib
        matplotlib.use("Agg")
        from matplotlib import pyplot
        merged.plot.scatter("k", "v", title="Sum of v")
        pyplot.savefig("plot.png")
        pyplot.savefig("plot.svg")
        done["matplotlib"] = open("plot.png", "rb").read(4) == b"\\x89PNG" and os.path.getsize("plot.svg") > 1000
    done["cwd"] = os.getcwd()
    open("../out/output.jsonl", "w").write("{}")
    done["inputs"] = open("../inputs/data.jsonl").read()
    print(json.dumps(done))

if __name__ == "__main__":
    main()
"""

HOSTILE = """
import ctypes, json, os, resource, signal, socket, subprocess
LAUNCHER, OUTSIDE = {launcher}, {outside!r}
def tried(f):
    try: f()
    except (OSError, MemoryError, ValueError) as e: return type(e).__name__
    return "worked"
print(json.dumps({{
    "tcp": tried(lambda: socket.create_connection(("127.0.0.1", 9), 1)),
    "udp": tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)),
    "outside": tried(lambda: open(OUTSIDE).read()),
    "chmod": tried(lambda: os.chmod(OUTSIDE, 0o666)),
    "shadow": tried(lambda: open("/etc/shadow")),
    "proc": tried(lambda: open("/proc/%d/environ" % LAUNCHER)),
    "kill": tried(lambda: os.kill(LAUNCHER, 0)),
    "root": tried(lambda: os.setresuid(0, 0, 0)),
    "prlimit": tried(lambda: resource.prlimit(LAUNCHER, resource.RLIMIT_NOFILE, (5, 5))),
    "unshare": tried(lambda: os.unshare(0x10000000) if hasattr(os, "unshare") else (_ for _ in ()).throw(OSError())),
    "memory": tried(lambda: bytearray(2 << 30)),
    "memfd": tried(lambda: os.memfd_create("x")),
    "write usr": tried(lambda: open("/usr/x", "w")),
    "raise limit": tried(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (99999, 99999))),
    "mark": tried(lambda: resource.setrlimit(resource.RLIMIT_RTTIME, (1, 1))),
}}))
"""


@lru_cache(maxsize=4)
def unreadable_for(uid: int) -> str:
    """Why this interpreter is of no use to another user, or an empty string."""

    def child() -> str:
        os.setgroups([])
        os.setresuid(uid, uid, uid)
        pandas = importlib.util.find_spec("pandas")
        for path in (sys.executable, os.__file__, pandas.origin if pandas is not None else None):
            if path is None:
                return "pandas is not installed where another user could read it"
            found = outcome(Path(path).read_bytes)
            if found != "worked":
                return f"{path} cannot be read by another user"
        return ""

    return str(in_child(child))


@pytest.fixture(params=TIERS)
def tier(request: pytest.FixtureRequest) -> Iterator[Sandboxed]:
    name: str = request.param
    layers = TIERS[name]
    as_root = os.geteuid() == 0
    if "identity" in layers and not as_root:
        pytest.skip("a user for the workspace takes root")
    if as_root and not layers & NAMESPACES and (why := unreadable_for(WORKSPACE_USER.uid)):
        pytest.skip(f"{why}; without a private root it stays out of reach")
    if as_root and "user_namespace" in layers and (why := unreadable_for(PLAIN_USER.uid)):
        pytest.skip(f"{why}; a plain user cannot show it to itself")
    with scratch() as directory:
        yield Sandboxed(name, layers, directory)


class Sandboxed:
    """One tier: runs programs on a workspace of its own."""

    def __init__(self, name: str, layers: frozenset[str], directory: str) -> None:
        self.name = name
        self.layers = layers
        self.identity: Identity | None = WORKSPACE_USER if "identity" in layers else None
        self.plain = None if self.identity is not None or os.geteuid() != 0 else PLAIN_USER
        self.directory = directory
        self.workspace_dir = make_workspace(directory, self.identity or self.plain)
        if self.plain is not None:
            os.chown(self.workspace_dir, self.plain.uid, self.plain.gid)
        Path(self.workspace_dir, "inputs", "data.jsonl").write_text("{}")
        Path(self.workspace_dir, "inputs", "data.jsonl").chmod(0o644)

    def run(self, code: str, limits: Limits | None = None) -> Run:
        def make() -> object:
            if self.name == "B":
                be_in_default_container()
            if self.plain is not None:
                become(self.plain)
            return make_plan(self.workspace_dir, self.layers, self.identity, limits=limits or Limits())

        return run_confined(make, code)


def said(run: Run) -> dict[str, object]:
    assert os.WIFEXITED(run.status), run
    assert os.WEXITSTATUS(run.status) == 0, run.output
    result: dict[str, object] = json.loads(run.output.splitlines()[-1])
    return result


@pytest.mark.parametrize(
    "tier", ["A", *(pytest.param(name, marks=pytest.mark.soak) for name in TIERS if name != "A")], indirect=True
)
def test_real_work_passes(tier: Sandboxed) -> None:
    done = said(tier.run(WORK))
    assert done.pop("cwd") == f"{tier.workspace_dir}/work"
    assert done.pop("inputs") == "{}"
    pool, manager = done.pop("pool"), done.pop("manager")
    assert set(done.values()) == {True}, done
    # Semaphores need /dev/shm: a private one, or the host's with files of the workspace's own user.
    assert pool == (True if tier.name != "C" else "PermissionError")
    # A manager is reached by connect, refused where nothing hides the host's sockets.
    assert manager is True or not tier.layers & NAMESPACES
    assert Path(tier.workspace_dir, "out", "output.jsonl").read_text() == "{}"


def test_duckdb_opens_a_database(tier: Sandboxed) -> None:
    if importlib.util.find_spec("duckdb") is None:
        pytest.skip("DuckDB is not installed")
    code = "import duckdb, json\nprint(json.dumps({'sum': duckdb.connect().sql('select 6 * 7').fetchall()[0][0]}))"
    assert said(tier.run(code)) == {"sum": 42}


def test_nothing_outside_is_reached(tier: Sandboxed) -> None:
    outside = Path(tier.directory, "outside")
    outside.write_text("another's")
    outside.chmod(0o644)
    if tier.plain is not None:
        os.chown(outside, tier.plain.uid, tier.plain.gid)  # one user for all: even its own
    code = HOSTILE.format(launcher=os.getpid(), outside=str(outside))
    found = said(tier.run(code))
    assert [name for name, result in found.items() if result == "worked"] == []


def test_memory_limit_is_a_memory_error_and_leaves_the_kernel_alive(tier: Sandboxed) -> None:
    code = """
import json
kept, error = [], ""
try:
    while True: kept.append(bytearray(16 << 20))
except MemoryError as e:
    error = type(e).__name__
size = len(kept) * 16
del kept
print(json.dumps({"megabytes": size, "error": error}))
"""
    found = said(tier.run(code, Limits(memory_bytes=256 << 20)))
    assert found["error"] == "MemoryError"
    assert 128 <= found["megabytes"] <= 256
