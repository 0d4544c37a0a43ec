"""The files that root gives to the gateway's user at a start, in a directory that this user owned before."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gateway.process.privileges import FALLBACK_UID, GatewayUser, prepare_state_dir
from kernel_spec.launcher.user_leases import FIRST_WORKSPACE_UID

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")

USER = GatewayUser(FALLBACK_UID, FALLBACK_UID)


def test_state_directory_of_root_can_be_entered_by_other_users_whatever_the_umask_is(tmp_path: Path) -> None:
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_mode & 0o001 == 0:
            parent.chmod(0o755)
    umask = os.umask(0o077)
    try:
        prepare_state_dir(tmp_path / "new" / "s", USER)
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(umask)
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "new", tmp_path / "new" / "s")] == [0o755, 0o755]


def test_only_outputs_of_jobs_become_the_gateways(tmp_path: Path) -> None:
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_mode & 0o001 == 0:
            parent.chmod(0o755)
    state_dir, secret = tmp_path / "s", tmp_path / "secret"
    prepare_state_dir(state_dir, USER)
    secret.write_text("root's")
    for name in ("job", "link", "second name", "of root"):
        (state_dir / "outbox" / name).mkdir()
    output = state_dir / "outbox" / "job" / "output"
    output.write_text("of a job")
    os.chown(output, FIRST_WORKSPACE_UID, FIRST_WORKSPACE_UID)
    (state_dir / "outbox" / "link" / "output").symlink_to(secret)
    other = tmp_path / "other"
    other.write_text("of another job")
    os.chown(other, FIRST_WORKSPACE_UID, FIRST_WORKSPACE_UID)
    (state_dir / "outbox" / "second name" / "output").hardlink_to(other)
    (state_dir / "outbox" / "of root" / "output").write_text("root's")
    (state_dir / "outbox" / "linked directory").symlink_to(tmp_path)
    prepare_state_dir(state_dir, USER)
    assert (output.stat().st_uid, output.stat().st_mode & 0o777) == (FALLBACK_UID, 0o600)
    assert secret.stat().st_uid == 0
    assert other.stat().st_uid == FIRST_WORKSPACE_UID
    assert (state_dir / "outbox" / "of root" / "output").stat().st_uid == 0
