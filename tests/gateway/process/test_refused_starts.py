"""Starts that are refused: for good with status 2, which systemd does not repeat, and otherwise with status 1."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from gateway.core.errors import ConfigurationError, NotReady
from gateway.core.settings import Settings
from gateway.process import privileges, serve
from kernel_spec.sandbox.probe.report import Proof, Report, Tier
from tests.support.gateway_process import gateway_command

OTHER_USER = 60178


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_state_directory_of_another_user_is_refused_for_good() -> None:
    with tempfile.TemporaryDirectory(prefix="tg-", dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        workspaces = Path(directory, "s", "workspaces")
        workspaces.mkdir(parents=True)
        os.chown(workspaces, OTHER_USER, OTHER_USER)
        done = gateway_command(PORT="0", STATE_DIR=str(workspaces.parent))
    assert done.returncode == 2, "systemd starts it again after any other status"
    assert f"{workspaces} belongs to user {OTHER_USER}; set STATE_DIR" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("tier", "required", "unsandboxed", "refused"),
    [
        ("A", "A", False, ""),
        ("B", "C", False, ""),
        ("B", "A", False, "tier A is required"),
        ("C", "B", False, "tier B is required"),
        ("C", "", False, ""),
        ("D", "", False, "ALLOW_UNSANDBOXED"),
        ("D", "", True, ""),
        ("D", "C", True, "tier C is required"),
    ],
)
def test_tier_decides_whether_the_gateway_starts(tier: str, required: str, unsandboxed: bool, refused: str) -> None:
    settings = Settings(state_dir=Path("/tmp/unused"), require_tier=required, allow_unsandboxed=unsandboxed)
    other = privileges.GatewayUser(57_999, 57_999)
    if not refused:
        serve._check_tier(settings, _report(tier), other)
        return
    with pytest.raises(ConfigurationError, match=refused):
        serve._check_tier(settings, _report(tier), other)


def _report(tier: str, problem: str = "") -> Report:
    proofs = (Proof("work", tier != "D", "no answer within 5 s"),)
    return Report(Tier(tier), (), proofs, allow_network=False, seconds=0.0, problem=problem)


@pytest.mark.parametrize(("required", "unsandboxed"), [("", False), ("C", True)])
def test_a_host_that_is_too_busy_to_be_tried_is_not_refused_for_good(required: str, unsandboxed: bool) -> None:
    settings = Settings(state_dir=Path("/tmp/unused"), require_tier=required, allow_unsandboxed=unsandboxed)
    with pytest.raises(NotReady, match="could not be tried: no answer within 20 s"):
        serve._check_tier(settings, _report("D", "no answer within 20 s"), privileges.GatewayUser(57_999, 57_999))


def test_refusal_for_want_of_a_sandbox_names_what_does_not_work() -> None:
    with pytest.raises(ConfigurationError, match=r"tier D\) \(work: no answer within 5 s\)"):
        serve._check_tier(Settings(), _report("D"), privileges.GatewayUser(57_999, 57_999))


def test_refusal_for_want_of_a_sandbox_names_the_python_that_no_kernel_can_read() -> None:
    root = privileges.GatewayUser(0, 0, "the gateway keeps root: other users cannot read /root/venv")
    with pytest.raises(ConfigurationError, match=r"tier D\) \(.* cannot read /root/venv; work"):
        serve._check_tier(Settings(), _report("D"), root)
