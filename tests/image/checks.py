"""The promises of the image, each as a function of a container that asserts it and returns its observation."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time

from tests.image.container import BUCKET, JOB_SECONDS, Container
from tests.image.engine import ROOT, Engine

HEALTHY_SECONDS = 4.0
RESTARTS = 3

KITS = ROOT.parent / "shared"
CONFORMANCE_SECONDS = 240

#: gateway, first kernel, and nothing between root and them
GATEWAY_UID, FIRST_WORKSPACE_UID = 57_999, 58_000

PACKAGES = """
import duckdb
import pandas as pd
import polars
import pyarrow as pa
import pyarrow.parquet
import tabulate

def transform():
    table = pa.table({"n": [1, 2, 3]})
    pyarrow.parquet.write_table(table, "t.parquet")
    doubled = polars.read_parquet("t.parquet").select(polars.col("n") * 2)
    total = duckdb.sql("select sum(n) from 't.parquet'").fetchall()[0][0]
    print(tabulate.tabulate([[1]]))
    return pd.DataFrame({"doubled": doubled["n"].sum(), "total": total}, index=[0])
"""

LEAVES = """
import os, subprocess
import pandas as pd

def transform():
    subprocess.Popen(["sleep", "1000"], start_new_session=True)
    os.makedirs("locked/inner", mode=0o700)
    open("locked/inner/file", "w").close()
    for name in ("locked/inner", "locked"):
        handle = os.open(name, os.O_RDONLY)
        os.fchmod(handle, 0o1000)  # sticky and closed: root without CAP_FOWNER cannot remove it
    return pd.DataFrame({"uid": [os.getuid()]})
"""

TOO_MUCH_MEMORY = """
def transform():
    blocks = [bytearray(100_000_000) for _ in range(20)]
"""

PROCESSES = (
    "[(p.name, (p / 'cmdline').read_text().replace(chr(0), ' '), (p / 'status').read_text().split('Uid:')[1].split()[0])"
    " for p in pathlib.Path('/proc').iterdir() if p.name.isdigit() and int(p.name) != os.getpid()]"
)


def at_most(value: float, largest: float, unit: str) -> str:
    assert value <= largest, f"{value:g} {unit}, more than {largest:g}"
    return f"{value:g} {unit}, at most {largest:g}"


def refuses_without_token(engine: Engine, image: str) -> str:
    command = [*engine.command, "run", "--rm", *engine.run_options.split(), image]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, f"exit status {done.returncode}"
    assert "Set AUTH_TOKEN" in done.stderr + done.stdout, done.stderr
    return "exit status 2, and it says what to set"


def restart_is_fast(container: Container) -> str:
    """The median of a few starts: this is a test of what a start does, on a machine that does other things too."""
    seconds = sorted(container.restart() for _ in range(RESTARTS))
    at_most(seconds[RESTARTS // 2], HEALTHY_SECONDS, "s")
    assert container.run(LEAVES)["exit_code"] == 0
    return f"{seconds[RESTARTS // 2]:.2f} s (median of {RESTARTS} restarts), and a job runs after the last"


def has_tier(container: Container, tier: str) -> str:
    assert container.tier() == tier, f"status reports {container.tier()}"
    told = json.loads(container.exec("transform-gateway", "doctor", "--json", "--require", tier))
    assert told["tier"] == tier, f"doctor reports {told['tier']}"
    return "status and doctor agree"


def only_the_launcher_is_root(container: Container) -> str:
    users: dict[str, set[int]] = {}
    for pid, command, uid in container.inside(PROCESSES):
        part = re.search(r"^tini|kernel_spec\.\w+|bin/transform-gateway", command)
        if pid == "1":
            assert command.startswith("tini "), f"PID 1 is {command}"
        if part:
            users.setdefault(part[0], set()).add(int(uid))
    assert users["bin/transform-gateway"] == {GATEWAY_UID}, users
    kernels = users["kernel_spec.fork_server"] - {0}
    assert kernels, "no kernel is ready"
    assert min(kernels) >= FIRST_WORKSPACE_UID, users
    assert {part for part, uids in users.items() if 0 in uids} == {
        "tini",
        "kernel_spec.supervisor",
        "kernel_spec.launcher",
        "kernel_spec.fork_server",
    }
    return f"the gateway is {GATEWAY_UID}, kernels are {sorted(kernels)}, root is the launcher with what belongs to it"


def packages_work(container: Container) -> str:
    answer = container.run(PACKAGES)
    assert answer["exit_code"] == 0, answer
    assert json.loads(answer["output"]) == {"doubled": 12, "total": 6}, answer
    return "pandas, pyarrow, Polars, DuckDB and an extra package"


def limits_hold_and_nothing_is_left(container: Container) -> str:
    left = container.run(LEAVES)
    assert left["exit_code"] == 0, left
    assert container.run("def transform():\n    while True: pass", timeout=1)["code"] == "timeout"
    assert container.run(TOO_MUCH_MEMORY)["code"] == "memory_limit"
    assert container.run(LEAVES)["exit_code"] == 0
    commands = [command for _, command, _ in container.inside(PROCESSES)]
    assert not [command for command in commands if command.startswith("sleep ")], commands
    workspaces = container.inside("os.listdir('/var/lib/transform-gateway/state/workspaces')")
    assert len(workspaces) <= 3, f"workspaces of jobs that are over: {workspaces}"
    return "time and memory end a job; no process and no directory stays"


def health_check_passes(container: Container) -> str:
    engine = container.engine
    if engine.is_podman:  # it only runs by itself under systemd
        engine.call("healthcheck", "run", container.name)
        return "transform-gateway status"
    state = engine.call("inspect", container.name, "--format", "{{.State.Health.Status}}").strip()
    assert state in ("healthy", "starting"), state
    return state


def smoke(container: Container) -> str:
    done = container.command("smoke")
    assert done.returncode == 0, done.stdout + done.stderr
    seconds = re.search(r"([\d.]+) s  the whole call", done.stdout)
    return f"336,776 rows in {seconds[1] if seconds else '?'} s"


def conformance(container: Container) -> str:
    if not (KITS / "conformance").is_dir():
        return "not tried: the kit does not lie beside the checkout"
    command = [sys.executable, "-B", "-m", "conformance", "--base-url", container.url, "--token", container.token]
    command += ["--fast", "--level", "must"]
    # it starts an S3 server of its own, another than ours, and takes the program for it from PATH
    with tempfile.TemporaryDirectory(prefix="tg-kit-") as own:
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", own]
        subprocess.run([*install, "-r", str(KITS / "conformance/requirements.txt")], check=True, timeout=120)
        environment = os.environ | {"PATH": f"{own}/bin{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": own}
        done = subprocess.run(
            command, cwd=KITS, env=environment, capture_output=True, text=True, timeout=CONFORMANCE_SECONDS, check=False
        )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    return done.stdout.strip().splitlines()[-1]


def logs_and_stop(container: Container) -> str:
    logs = container.engine.make("docker-logs", CONTAINER=container.name, LINES="1000")
    assert "listening on" in logs.stdout + logs.stderr, logs
    assert container.token not in logs.stdout + logs.stderr
    stop = container.engine.make("docker-stop", CONTAINER=container.name)
    assert (stop.returncode, stop.stdout) == (0, "stopped\n"), stop
    assert container.name not in container.engine.call("ps", "--all", "--format", "{{.Names}}")
    return "the log holds the start and no token; no container is left"


def from_s3_to_s3(container: Container) -> str:
    """As Metabase does it: presigned URLs of the embedded server, with the well-known bucket and keys."""
    storage = container.storage()
    manifest = {
        "schema_version": 1, "data_format": "jsonl", "data_version": 1, "table_metadata": {"table_id": 1},
        "fields": [{"name": "n", "base_type": "Integer", "root_type": "Number", "database_type": "int4"}],
    }  # fmt: skip
    storage.put_object(Bucket=BUCKET, Key="run/orders.jsonl", Body=b'{"n":1}\n{"n":41}\n')
    storage.put_object(Bucket=BUCKET, Key="run/orders.manifest.json", Body=json.dumps(manifest).encode())

    def url(operation: str, key: str) -> str:
        signed: str = storage.generate_presigned_url(operation, {"Bucket": BUCKET, "Key": f"run/{key}"})
        return signed

    answer = container.run(
        "def transform(orders):\n    return orders.sum().to_frame().T",
        request_id=1,
        table_mapping={"orders": url("get_object", "orders.jsonl")},
        manifest_mapping={"orders": url("get_object", "orders.manifest.json")},
        output_url=url("put_object", "output.csv"),
        output_manifest_url=url("put_object", "output-manifest.json"),
        events_url=url("put_object", "events.jsonl"),
    )
    assert answer["exit_code"] == 0, answer
    output = storage.get_object(Bucket=BUCKET, Key="run/output.csv")["Body"].read()
    assert output == b'{"n":42}\n', output
    events = storage.get_object(Bucket=BUCKET, Key="run/events.jsonl")["Body"].read().decode()
    assert "Successfully saved 1 rows to S3" in events, events
    return "a table in, a result, its manifest and its log out"


def no_limits_and_an_answer_at_once(container: Container) -> str:
    limits = container.request("GET", "/v1/status")[1]["limits"]
    assert limits["memory_bytes"] > 1 << 40, limits
    body = {"request_id": 5, "code": TOO_MUCH_MEMORY + "    return len(blocks)"}
    status, _ = container.request("POST", "/v1/execute", body)
    assert status == 202, status
    deadline = time.monotonic() + JOB_SECONDS
    while (told := container.request("GET", "/v1/status?request_id=5")[1]).get("state") != "finished":
        assert time.monotonic() < deadline, told
        time.sleep(0.2)  # this form of the interface is polled
    assert "must return a pandas DataFrame" in told["result"]["error"], told
    return "202, and 2 GB are no trouble"
