"""The unit file: systemd takes it, a stop drains, and its hardening takes no layer of the sandbox away."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.cli.install.systemd import DROPPED_CAPABILITIES, UNIT, unit
from tests.gateway.cli.commands import ROOT, SECONDS, call, environment


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_takes_the_unit_without_a_warning(tmp_path: Path) -> None:
    command = tmp_path / "a directory" / "transform-gateway"
    command.parent.mkdir()
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    path = tmp_path / "transform-gateway.service"
    path.write_text(unit(command))
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")


def test_command_prints_the_unit_of_this_installation(tmp_path: Path) -> None:
    done = call(tmp_path, "systemd")
    assert done.returncode == 0
    assert f"ExecStart={Path(sys.executable).parent / 'transform-gateway'}\n" in done.stdout


def test_every_line_that_is_left_out_is_not_in_force() -> None:
    kept = {line.partition("=")[0] for line in UNIT.splitlines() if "=" in line and not line.startswith("#")}
    left_out = UNIT.partition("# Left out")[2]
    named = {word.rstrip("=,") for line in left_out.splitlines() for word in line.split() if word.endswith(("=", "=,"))}
    assert len(named) > 10
    assert not named & kept


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv")
def test_dropped_capabilities_take_no_layer_of_the_sandbox_away(tmp_path: Path) -> None:
    dropped = ",".join("-" + name.removeprefix("CAP_").lower() for name in DROPPED_CAPABILITIES)
    doctor = [sys.executable, "-m", "gateway", "doctor", "--json", "--require", "D"]
    reports = [
        subprocess.run(
            [*prefix, *doctor],
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=True,
        ).stdout
        for prefix in ([], ["setpriv", "--no-new-privs", f"--bounding-set={dropped}"])
    ]
    plain, hardened = ({each["layer"]: each["state"] for each in json.loads(text)["layers"]} for text in reports)
    assert hardened == plain
