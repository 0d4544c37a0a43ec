"""What is left of a launcher that ends, whatever it was doing."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from kernel_spec.launcher_process import LauncherProcess
from kernel_spec.options import LauncherOptions
from kernel_spec.sandbox import hierarchies


def test_launcher_that_is_closed_while_its_fork_server_still_imports_ends_in_order(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    launcher = LauncherProcess(LauncherOptions(state_dir=str(tmp_path), seats=1))
    launcher.close()
    assert launcher._process.returncode == 0
    assert "Traceback" not in capfd.readouterr().err
    stamp = hashlib.sha256(os.fsencode(tmp_path)).hexdigest()[:8]
    found = hierarchies.find_hierarchies()
    assert not [tree for h in found for tree in h.directory.glob(f"{hierarchies.PREFIX}{stamp}*")]
