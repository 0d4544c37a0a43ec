"""The gateway that a command starts for itself."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from gateway import cli
from tests.gateway.cli.commands import SECONDS, environment
from tests.support.gateway_process import alive, ephemeral_gateway_below


def test_run_without_url_starts_a_gateway_and_leaves_nothing(here: Path) -> None:
    (here / "says.py").write_text(
        "import time\ndef transform(orders):\n    print('started', flush=True)\n    time.sleep(1)\n    return orders\n"
    )
    command = [sys.executable, "-m", "gateway", "run", "says.py", "--table", "orders=orders.csv", "--out", "o.csv"]
    with subprocess.Popen(
        command, cwd=here, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        gateway, directory = ephemeral_gateway_below(process.pid)  # before its job runs, at whose end it ends
        assert process.stdout.readline() == "started\n"
        _, stderr = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, stderr
    assert (here / "o.csv").read_text().startswith("status,amount")
    assert not alive(gateway)
    assert not directory.exists()


def test_run_is_not_led_astray_by_modules_of_the_users_directory(here: Path) -> None:
    (here / "json.py").write_text("raise SystemExit('not the json that was meant')")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "gateway", "run", "totals.py", "--table", "orders=orders.csv", "--quiet"],
        cwd=here, env=environment(), capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_run_where_a_member_of_a_cluster_is_configured_stays_alone(here: Path) -> None:
    member = {
        "CLUSTER_URL": "nats://127.0.0.1:1",  # where no broker is
        "CLUSTER_ADVERTISE_URL": "http://127.0.0.1:1",
        "CLUSTER_TLS_KEY_FILE": "/of/the/gateways/user/alone",
        "SLOTS": "0",
        "ENABLE_INTERNAL_S3": "true",
        "INTERNAL_S3_PORT": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "run", "totals.py", "--table", "orders=orders.csv", "--quiet"],
        cwd=here, env=environment() | member, capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_run_with_internal_s3_starts_a_gateway_with_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(cli, "_start_gateway", lambda arguments: started.append(arguments) or 0)
    assert cli.main(["run", "--internal-s3", "--port=5003"]) == 0
    assert started == [["--enable-internal-s3=true", "--port=5003"]]
    assert cli.main(["run", "totals.py", "--internal-s3"]) == 2


@pytest.mark.parametrize("open_files", [0, 1100])
def test_ephemeral_gateway_goes_when_the_command_is_killed(here: Path, open_files: int) -> None:
    program = f"import os; files = [os.open('/dev/null', 0) for _ in range({open_files})]\nfrom gateway import cli\n"
    command = [sys.executable, "-c", f"{program}cli.main(['run', 'sleeps.py', '--out', 'x.csv'])"]
    settings = environment() | {"TMPDIR": str(here)}  # nobody removes the scratch directory of a process that is killed
    with subprocess.Popen(command, cwd=here, env=settings, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        gateway, directory = ephemeral_gateway_below(process.pid)
        assert alive(gateway)
        process.kill()
    deadline = time.monotonic() + 60
    while alive(gateway) or directory.exists():
        assert time.monotonic() < deadline, "the gateway outlived the command that started it"
        time.sleep(0.1)
