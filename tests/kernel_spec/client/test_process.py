"""A launcher that ends leaves nothing, in any of its states."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from kernel_spec.client.process import LauncherError, LauncherProcess
from kernel_spec.protocol.options import LauncherOptions
from kernel_spec.sandbox.accounting import cgroup_mounts


def test_launcher_that_is_closed_while_its_fork_server_still_imports_ends_in_order(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    launcher = LauncherProcess(LauncherOptions(state_dir=str(tmp_path), workspaces=1))
    launcher.close()
    assert launcher._process.returncode == 0
    assert "Traceback" not in capfd.readouterr().err
    stamp = hashlib.sha256(os.fsencode(tmp_path)).hexdigest()[:8]
    found = cgroup_mounts.find_hierarchies()
    assert not [tree for h in found for tree in h.directory.glob(f"{cgroup_mounts.PREFIX}{stamp}*")]


@pytest.mark.parametrize("field", ["state_dir", "read_only_paths"])
def test_path_that_is_not_utf8_is_refused_in_one_line(field: str) -> None:
    path = os.fsdecode(b"/tmp/\xff")
    options = {"state_dir": "/tmp", field: path if field == "state_dir" else (path,)}
    with pytest.raises(LauncherError, match=r"^STATE_DIR and all paths must be valid UTF-8: .*'/tmp/\\udcff'$"):
        LauncherProcess(LauncherOptions(**options))  # type: ignore[arg-type]
