from __future__ import annotations

import os
from pathlib import Path

import pytest

from kernel_spec.sandbox import Identity, SandboxError
from kernel_spec.sandbox.layers import identity
from tests.kernel_spec.sandbox.children import WORKSPACE_USER, in_child, keep_capabilities, outcome
from tests.kernel_spec.sandbox.conftest import needs_root


@needs_root
def test_root_becomes_the_workspaces_user_and_cannot_return(scratch_dir: str) -> None:
    secret = Path(scratch_dir, "secret")
    secret.write_text("for root")
    secret.chmod(0o600)

    def child() -> dict[str, object]:
        os.setgroups([0, 4, 24])
        before = [outcome(secret.read_text), outcome(lambda: os.kill(os.getppid(), 0))]
        identity.become(WORKSPACE_USER)
        return {
            "before": before,
            "after": [outcome(secret.read_text), outcome(lambda: os.kill(os.getppid(), 0))],
            "ids": [*os.getresuid(), *os.getresgid()],
            "groups": os.getgroups(),
            "back": [
                outcome(lambda: os.setresuid(0, 0, 0)),
                outcome(lambda: os.setgroups([0])),
                outcome(lambda: os.setresuid(WORKSPACE_USER.uid + 1, -1, -1)),
            ],
        }

    found = in_child(child)
    assert found["before"] == ["worked", "worked"]
    assert found["after"] == ["EACCES", "EPERM"]
    assert found["ids"] == [WORKSPACE_USER.uid] * 3 + [WORKSPACE_USER.gid] * 3
    assert found["groups"] == []
    assert found["back"] == ["EPERM", "EPERM", "EPERM"]


@needs_root
def test_capabilities_are_gone_from_every_set() -> None:
    def child() -> list[int]:
        identity.drop_capabilities()
        lines = Path("/proc/self/status").read_text().splitlines()
        return [int(line.split()[1], 16) for line in lines if line.startswith("Cap")]

    assert in_child(child) == [0, 0, 0, 0, 0]


def test_a_workspace_is_never_root() -> None:
    with pytest.raises(SandboxError, match="must not be uid 0"):
        identity.become(Identity(0, 60177))


def test_a_plain_user_that_may_not_change_its_uid_gets_an_error() -> None:
    def child() -> str:
        if os.geteuid() == 0:
            os.setresuid(WORKSPACE_USER.uid, WORKSPACE_USER.uid, WORKSPACE_USER.uid)
        try:
            identity.become(Identity(os.getuid() + 7, 60177))
        except SandboxError as error:
            return error.layer
        return "worked"

    assert in_child(child) == "identity"


@needs_root
def test_launcher_without_setuid_keeps_its_user_and_groups() -> None:
    """It may change its groups and not its user: then it must not go on with the groups of a workspace."""

    def child() -> bool:
        keep_capabilities((6, 8))  # SETGID, SETPCAP
        before = os.getresuid(), os.getresgid(), os.getgroups()
        with pytest.raises(SandboxError, match="for a while"), identity.borrowed(WORKSPACE_USER):
            pass
        return before == (os.getresuid(), os.getresgid(), os.getgroups())

    assert in_child(child)
